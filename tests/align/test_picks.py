"""Picks to pairs, lists and thumbs: dissent, ties, held-out annotators, prior noise, regions."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from run_data import CAPTIONS, dpo_config, losses, write_data

from align.checkpoint import read_json
from align.config import JsonlPairsConfig, SnapshotPairsConfig, TimestepConfig
from align.data.batches import PairBatches, named_noise
from align.data.draws import Draws
from align.data.images import MarkedRegion
from align.data.picks import read_lists, read_pairs, read_thumbs
from align.mmdit.flow import seeded_noise
from align.offline import train_dpo
from annotate.records import Candidate, Generation, Outcome, Prompt
from annotate.schema import Mark, Region
from annotate.snapshot import cut_snapshot, load_snapshot
from annotate.store import Answer, PreferenceStore


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data")


def generation(prompt_id: str, index: int) -> Generation:
    return Generation(
        model="tiny", model_sha256="0" * 64, seed="7", noise_key=f"7/{prompt_id}/{index}",
        steps=8, guidance_scale=1.0, height=32, width=32, dtype="float32", device="cpu",
    )  # fmt: skip


@pytest.fixture(scope="module")
def snapshot(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four prompts of three candidates; ada, bob and cyd answer, and cyd dissents on p0."""
    folder = tmp_path_factory.mktemp("snapshot") / "snapshot"
    files = {f"p{i}-{k}": data / f"images/{3 * i + k}.png" for i in range(4) for k in range(3)}
    contents = {name: path.read_bytes() for name, path in files.items()}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    candidates = [
        Candidate(id=n, prompt_id=n[:2], image_sha256=digests[n], width=32, height=32,
                  generation=generation(n[:2], int(n[3])))
        for n in files
    ]  # fmt: skip
    with PreferenceStore.open(folder.with_name("studio"), pseudonym_key="a" * 32) as store:
        store.add_prompts([Prompt(id=f"p{i}", text=CAPTIONS[i]) for i in range(4)])
        store.add_candidates(candidates, {digests[n]: contents[n] for n in files})
        shown = {f"p{i}": [n for n in files if n[1] == str(i)] for i in range(4)}
        tasks = {task.prompt_id: task.id for task in store.add_tasks(shown, annotators_per_task=3)}
        for name in ("ada", "bob", "cyd"):
            best, worst = ("p0-2", "p0-0") if name != "cyd" else ("p0-0", "p0-2")
            answers = [
                Answer(task_id=tasks["p0"], outcome=Outcome.PICKED, win_id=best, lose_id=worst),
                Answer(task_id=tasks["p1"], outcome=Outcome.PICKED, win_id="p1-0", lose_id="p1-1"),
                Answer(task_id=tasks["p2"], outcome=Outcome.ALL_EQUAL),
                Answer(task_id=tasks["p3"], outcome=Outcome.ALL_BAD),
            ]
            user = store.add_user(name, "a long password")
            store.add_answers(user.id, answers if name != "bob" else answers[:2])
        cut_snapshot(store, folder)
    return folder


@pytest.mark.parametrize("read", [read_pairs, read_lists, read_thumbs])
def test_a_changed_image_of_a_snapshot_is_named(snapshot, tmp_path, read):
    folder = tmp_path / "snapshot"
    shutil.copytree(snapshot, folder)
    for image in (folder / "images").iterdir():
        image.write_bytes(image.read_bytes() + b"more")
    rows = read(SnapshotPairsConfig(path=folder), 0.0)
    with pytest.raises(ValueError, match=r"(\w{64})\.png was changed: .* is \w{64}, expected \1"):
        rows.named(train=rows.train)


def test_dissent_becomes_label_smoothing(snapshot):
    config = SnapshotPairsConfig(path=snapshot, smoothing_from_agreement=True)
    merged = {pair.prompt: pair for pair in read_pairs(config, 0.0).train}
    assert len(merged) == 2
    # Of the six couples of votes, 1 + 3 agree: 2/3 = p^2 + (1 - p)^2.
    flipped = (1 - (2 * 4 / 6 - 1) ** 0.5) / 2
    disputed, agreed = merged[CAPTIONS[0]], merged[CAPTIONS[1]]
    assert disputed.label_smoothing == pytest.approx((1 + 2 * flipped) / 5)
    assert agreed.label_smoothing == pytest.approx(2 * flipped / 5)
    assert disputed.weight == agreed.weight == 3
    plain = read_pairs(SnapshotPairsConfig(path=snapshot), 0.0).train
    assert len(plain) == 6
    majority = [p.chosen.path.name for p in plain if p.prompt == CAPTIONS[0]]
    assert majority.count(disputed.chosen.path.name) == 2


def test_agreement_cannot_be_told_from_single_votes(snapshot):
    names = sorted({pick.annotator for pick in load_snapshot(snapshot).picks})
    config = SnapshotPairsConfig(
        path=snapshot, smoothing_from_agreement=True, held_out_annotators=tuple(names[:2])
    )
    with pytest.raises(ValueError, match="needs two picks on the same candidates"):
        read_pairs(config, 0.0)


def test_all_equal_gives_ties_that_weigh_one_pick(snapshot):
    pairs = read_pairs(SnapshotPairsConfig(path=snapshot), 0.0, ties=True).train
    ties = [pair for pair in pairs if pair.is_tie]
    assert len(ties) == 2 * 3
    assert {pair.prompt for pair in ties} == {CAPTIONS[2]}
    assert sum(pair.weight for pair in ties) == pytest.approx(2)
    assert len({pair.id for pair in pairs}) == len(pairs) == 12


def test_a_held_out_annotator_is_measured_and_never_trained_on(snapshot):
    names = sorted({pick.annotator for pick in load_snapshot(snapshot).picks})
    config = SnapshotPairsConfig(path=snapshot, held_out_annotators=(names[0],))
    rows = read_pairs(config, 0.0)
    assert {pair.annotator for pair in rows.train} == set(names[1:])
    assert {pair.annotator for pair in rows.annotators} == {names[0]}
    with pytest.raises(ValueError, match=rf"\['nobody'\]; .* has picks of {names[0]}, "):
        read_pairs(config.model_copy(update={"held_out_annotators": ("nobody",)}), 0.0)


def test_lists_and_thumbs_of_each_outcome(snapshot):
    config = SnapshotPairsConfig(path=snapshot)
    lists = read_lists(config, 0.0).train
    assert len(lists) == 6 + 2
    first = next(x for x in lists if x.prompt == CAPTIONS[1])
    names = load_snapshot(snapshot)
    expected = [names.image_path(names.candidate_of[f"p1-{k}"]).name for k in (0, 2, 1)]
    assert [image.path.name for image in first.images] == expected
    assert [x.prompt for x in lists if x.is_equal] == [CAPTIONS[2]] * 2
    thumbs = read_thumbs(config, 0.0).train
    bad = [x for x in thumbs if x.prompt == CAPTIONS[3]]
    assert len(bad) == 6
    assert not any(x.is_desirable for x in bad)
    assert sum(x.weight for x in bad) == pytest.approx(2)
    assert sum(x.is_desirable for x in thumbs) == 6
    assert len(thumbs) == 12 + 6


def batches(pairs, features=None, **options):
    draws = Draws(seed=0, shape=(4, 4, 4), mu=0.0, timesteps=TimestepConfig())
    return PairBatches(pairs, features, draws, 2, **options)


def test_prior_noise_is_the_one_each_image_came_from(snapshot, data):
    pairs = read_pairs(SnapshotPairsConfig(path=snapshot), 0.0).train
    found = batches(pairs, noise="prior")
    pair = next(p for p in pairs if p.prompt == CAPTIONS[1])
    chosen, rejected = found._noise([pair], ["x"], [0])
    assert torch.equal(chosen[0], seeded_noise(7, "p1", 0, (4, 4, 4)))
    assert torch.equal(rejected[0], seeded_noise(7, "p1", 1, (4, 4, 4)))
    assert batches(pairs).digest() != found.digest()
    unknown = read_pairs(JsonlPairsConfig(path=data / "pairs.jsonl"), 0.0).train
    with pytest.raises(ValueError, match=r"needs the noise .*images/0\.png or .* is not known"):
        batches(unknown, noise="prior")
    assert torch.equal(named_noise("3/a/b/5", (2,)), seeded_noise(3, "a/b", 5, (2,)))
    with pytest.raises(ValueError, match="'x/a/5' is not of the form seed/name/draw"):
        named_noise("x/a/5", (2,))


def test_a_region_weighs_the_latents_places(data, tmp_path):
    region = Image.new("L", (32, 32), 0)
    region.paste(255, (0, 0, 32, 8))
    region.save(tmp_path / "region.png")
    line = {"prompt": "a", "chosen": str(data / "images/0.png"), "region": "region.png"}
    line["rejected"] = str(data / "images/1.png")
    (tmp_path / "pairs.jsonl").write_text(json.dumps(line) + "\n")
    pairs = read_pairs(JsonlPairsConfig(path=tmp_path / "pairs.jsonl"), 0.0).train
    features = type("Device", (), {"device": torch.device("cpu")})()
    weights = batches(pairs, features)._regions(pairs)
    assert weights is not None
    expected = torch.zeros(1, 1, 4, 4)
    expected[:, :, 0] = 1
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)
    Image.new("L", (32, 32), 0).save(tmp_path / "region.png")
    with pytest.raises(ValueError, match=r"region\.png is black everywhere"):
        batches(pairs, features)._regions(pairs)


def test_marks_and_faulty_regions_of_a_pick_are_read(snapshot, monkeypatch):
    """As the studio stores them: thumbs stand over best and worst, faults say where to compare."""
    whole = load_snapshot(snapshot)
    picks = []
    for pick in whole.picks:
        prompt_id = whole.task_of[pick.task_id].prompt_id
        if pick.outcome == Outcome.PICKED and prompt_id == "p1":
            faults = [Region(ordinal=o, x=8 * o, y=0, width=8, height=16) for o in (0, 1)]
            pick = pick.model_copy(update={"regions": tuple(faults)})
        elif pick.outcome == Outcome.ALL_EQUAL:
            marks = (Mark(ordinal=1, rating=4), Mark(ordinal=2, thumb="up"))
            pick = pick.model_copy(update={"marks": marks})
        picks.append(pick)
    changed = replace(whole, picks=tuple(picks))
    monkeypatch.setattr("align.data.picks.load_snapshot", lambda *args, **options: changed)

    config = SnapshotPairsConfig(path=snapshot, compare="faulty_regions")
    regions = {pair.prompt: pair.region for pair in read_pairs(config, 0.0).train}
    assert regions[CAPTIONS[0]] is None
    assert isinstance(regions[CAPTIONS[1]], MarkedRegion)
    white = (regions[CAPTIONS[1]].load(config)[0] > 0).nonzero()
    lost = changed.task_of[next(p for p in picks if p.regions).task_id].candidate_ids.index("p1-1")
    assert white.amin(0).tolist() == [0, 8 * lost]
    assert white.amax(0).tolist() == [15, 8 * lost + 7]
    assert all(p.region is None for p in read_pairs(SnapshotPairsConfig(path=snapshot), 0.0).train)

    thumbs = [x for x in read_thumbs(config, 0.0).train if x.prompt == CAPTIONS[2]]
    assert [(len(x.images), x.is_desirable, x.weight) for x in thumbs] == [(1, True, 1.0)] * 2


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ({"loss_type": "ipo", "auto_beta": {"lowest": 1}}, {"noise": "prior"}),
        ({"tie_threshold": 0.5, "chosen_alarm": 1e-9}, {}),
        ({"loss_type": "plackett_luce", "anchor_weight": 0.5}, {}),
        ({"loss_type": "kto", "beta": 5000}, {}),
    ],
    ids=["ipo", "ties", "plackett_luce", "kto"],
)
def test_each_loss_trains_on_a_snapshot(
    data, snapshot, untrained_folder, tmp_path, objective, options, caplog
):
    config = dpo_config(
        data,
        untrained_folder,
        tmp_path / "run",
        data={
            "type": "snapshot",
            "path": snapshot,
            "held_out_annotators": [load_snapshot(snapshot).picks[0].annotator],
        },
        objective={"beta": 2000} | objective,
        optimizer={"lr": 3e-4},
        max_steps=6,
        micro_batch_size=2,
        save_every=0,
        **options,
    )
    result = train_dpo(config)
    rows = losses(result.folder)
    assert all(row["grad_norm"] > 0 for row in rows.values())
    if objective.get("loss_type") == "kto":
        assert rows[6]["rewards/accuracies"] > rows[1]["rewards/accuracies"]
    elif "auto_beta" not in objective:  # which asks for margins of 1.4, from the second step on
        assert rows[6]["rewards/margins"] > rows[1]["rewards/margins"]
    assert any(name.startswith("rewards/accuracies/sigma_") for name in rows[6])
    assert not any(name.endswith("/share") for name in rows[6])
    if "auto_beta" in objective:
        assert rows[1]["beta"] == 2000
        assert 1 <= rows[6]["beta"] < 2000
    if objective.get("chosen_alarm"):
        alarm = read_json(result.folder / "run.json").get("chosen_alarm")
        assert (alarm is not None) == ("chosen images' error is" in caplog.text)
