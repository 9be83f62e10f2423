import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from killed_training import kill_at_first_checkpoint
from PIL import Image

from align import cli
from align.mmdit.adapters import load_adapter
from annotate.records import Prompt, Question, Split, load_snapshot
from annotate.settings import parse_config
from rewards.base import RewardItem
from rewards.config import RewardTrainConfig
from rewards.curve import CURVE_FILE, learning_curve
from rewards.evaluate import evaluate_model, held_out_sets, require_accuracy
from rewards.folder import CHECKPOINTS, WEIGHTS_FILE
from rewards.judgements import (
    CandidateSet,
    Judgement,
    candidate_sets,
    divide,
    keep_training,
)
from rewards.lock import FolderInUseError, FolderLock
from rewards.models.features import Features, collate
from rewards.models.preference import PreferenceOutput
from rewards.objective import preference_loss
from rewards.scorers import load_scorer
from rewards.splits import LeakError
from rewards.train import train_reward
from rewards.trainer import SetCollator, to_dataset


@pytest.fixture(scope="module")
def settings(random_base, snapshot_folder, tmp_path_factory):
    """Settings of a short run; the feature cache is shared by all runs of this module."""
    cache = tmp_path_factory.mktemp("features")

    def make(output_dir, **changes):
        return {
            "snapshot": str(snapshot_folder),
            "base": str(random_base),
            "output_dir": str(output_dir),
            "cache_dir": str(cache),
            "encoder": {"num_blocks": 1, "grid": 4},
            "head": {"width": 32, "num_members": 1, "num_layers": 0},
            "learning_rate": 3e-3,
            "epochs": 10,
            "patience": 10,
            **changes,
        }

    return make


@pytest.fixture(scope="module")
def trained(settings, tmp_path_factory):
    config = parse_config(RewardTrainConfig, settings(tmp_path_factory.mktemp("reward")))
    return train_reward(config)


def test_it_learns_what_designers_prefer_on_prompts_it_never_saw(trained):
    report = trained.report
    assert list(report["criteria"]) == ["aesthetics", "detail", "overall"]
    assert report["ci_low"] > 0.6
    assert report["accuracy"] == pytest.approx(
        (report["criteria"]["aesthetics"]["accuracy"] + report["criteria"]["detail"]["accuracy"])
        / 2
    )
    assert 0.8 < report["ceiling"] < 1
    assert (report["held_out"], report["num_prompts"]) == ("test", 10)
    assert report["trained_on"]["questions"] == {"aesthetics": 64, "detail": 64, "overall": 64}
    assert require_accuracy(trained.folder, 0.6) == json.loads(
        (trained.folder / "report.json").read_text()
    )


def test_an_interrupted_run_continues_to_the_same_bits(settings, trained, tmp_path):
    output = tmp_path / "run"
    kill_at_first_checkpoint(settings(output))
    # A kill while a checkpoint is written leaves a part of it.
    torn = output / CHECKPOINTS / "checkpoint-999"
    torn.mkdir()
    (torn / "trainer_state.json").write_text('{"global_st')
    resumed = train_reward(parse_config(RewardTrainConfig, settings(output)))
    assert not torn.exists()
    assert (output / WEIGHTS_FILE).read_bytes() == (trained.folder / WEIGHTS_FILE).read_bytes()
    assert resumed.report == trained.report


@pytest.mark.parametrize("loss", ["bradley_terry", "rao_kupper", "gaussian"])
def test_each_loss_learns_from_the_same_snapshot(settings, tmp_path, loss):
    options = {"loss": loss, "epochs": 4, "annotator_weights": "reliability"}
    result = train_reward(parse_config(RewardTrainConfig, settings(tmp_path, **options)))
    assert result.report["accuracy"] > 0.6
    scorer = load_scorer(result.folder)
    [score] = scorer.score([RewardItem("s", "g", "a poster", image=Image.new("RGB", (64, 64)))])
    # One member has no spread of its own: only a loss with variances has a sigma.
    assert (score.sigma > 0) == (loss == "gaussian")
    assert ("tie_threshold" in dict(scorer.model.named_parameters())) == (loss == "rao_kupper")


@pytest.fixture
def damageable(settings, trained, tmp_path):
    """Settings of the trained run, which is put back as it was after the test."""
    shutil.copytree(trained.folder, tmp_path / "whole")
    yield parse_config(RewardTrainConfig, settings(trained.folder))
    shutil.rmtree(trained.folder)
    shutil.copytree(tmp_path / "whole", trained.folder)


def checkpoints_of(config):
    """The newest and the best."""
    found = (config.output_dir / CHECKPOINTS).glob("checkpoint-*")
    newest = max(found, key=lambda path: int(path.name.split("-")[1]))
    state = json.loads((newest / "trainer_state.json").read_text())
    return newest, newest.parent / Path(state["best_model_checkpoint"]).name


def test_a_damaged_checkpoint_is_named_and_the_one_before_gives_the_same_model(
    damageable, trained, caplog
):
    newest, best = checkpoints_of(damageable)
    assert best != newest
    optimizer = newest / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-1])
    resumed = train_reward(damageable)
    assert f"{optimizer} has " in caplog.text
    assert (newest.parent / f"damaged-{newest.name}").is_dir()
    assert resumed.report == trained.report


def test_a_run_whose_best_checkpoint_is_damaged_is_refused(damageable):
    _, best = checkpoints_of(damageable)
    weights = bytearray((best / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (best / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match=rf"{best.name}/model\.safetensors was changed(.|\n)*anew"):
        train_reward(damageable)


def test_a_folder_in_use_and_a_run_on_other_picks_are_refused(damageable):
    with (
        FolderLock(damageable.output_dir),
        pytest.raises(FolderInUseError, match="in use by process"),
    ):
        train_reward(damageable)
    inputs = damageable.output_dir / "inputs.json"
    there = json.loads(inputs.read_text())
    inputs.write_text(json.dumps(there | {"snapshot_digest": "another"}))
    with pytest.raises(ValueError, match=r"snapshot_digest: 'another' there, '\w+' now"):
        train_reward(damageable)


def test_a_folder_with_other_settings_is_refused(settings, trained):
    other = settings(trained.folder, learning_rate=1e-4)
    with pytest.raises(ValueError, match=r"learning_rate: 0.003 there, 0.0001 asked"):
        train_reward(parse_config(RewardTrainConfig, other))


def test_the_scorer_scores_latents_and_images_alike(trained, random_base, snapshot_folder):
    adapter = load_adapter(random_base)
    scorer = load_scorer(trained.folder, adapter=adapter)
    snapshot = load_snapshot(snapshot_folder)
    report = evaluate_model(trained.folder, scorer, snapshot, Split.TEST)
    assert report["accuracy"] == pytest.approx(trained.report["accuracy"], abs=1e-6)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(3, *adapter.latent_shape(64, 64), generator=generator)
    latents[1, 0, 0, 0] = float("nan")
    items = [RewardItem(f"s{i}", "g", "a poster", latents=x) for i, x in enumerate(latents)]
    items.append(RewardItem("lost", "g", "a poster"))
    good, bad, other, lost = scorer.score(items)
    assert bad.value is None
    assert bad.error == "latents are not finite"
    assert lost.value is None
    assert "neither an image nor latents" in lost.error
    assert set(good.components) == {"aesthetics", "detail"} == set(scorer.spec.components)
    alone = scorer.score([items[2]])[0]
    assert alone.value == pytest.approx(other.value, abs=1e-4)
    assert scorer.score([]) == []


def test_a_scorer_on_another_base_is_refused(trained, random_base, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(random_base, other)
    weights = next((other / "transformer").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="but the base given is"):
        load_scorer(trained.folder, base=other)
    with pytest.raises(FileNotFoundError, match="no reward model in"):
        load_scorer(tmp_path)


def test_evaluation_refuses_prompts_of_the_training(trained, random_base, snapshot_folder):
    scorer = load_scorer(trained.folder, base=random_base)
    with pytest.raises(LeakError, match="was trained on it"):
        evaluate_model(trained.folder, scorer, load_snapshot(snapshot_folder), Split.TRAIN)


def test_evaluation_refuses_prompts_alike_those_of_the_training(trained, snapshot_folder):
    snapshot = load_snapshot(snapshot_folder)
    learned = next(prompt for prompt in snapshot.prompts if prompt.split == Split.TRAIN)
    held_out = next(prompt for prompt in snapshot.prompts if prompt.split == Split.TEST)
    twin = held_out.model_copy(update={"text": learned.text + " x"})
    prompts = tuple(twin if p.id == held_out.id else p for p in snapshot.prompts)
    changed = replace(snapshot, prompts=prompts)
    with pytest.raises(LeakError, match=f"was trained on one like it: {learned.text!r}"):
        held_out_sets(trained.folder, changed, Split.TEST)
    assert held_out_sets(trained.folder, changed, Split.TEST, alike=False)
    assert held_out_sets(trained.folder, snapshot, Split.TEST)


def test_a_leak_is_refused(snapshot_folder):
    snapshot = load_snapshot(snapshot_folder)
    first, *rest = snapshot.prompts
    test = next(prompt for prompt in rest if prompt.split == Split.TEST)
    leaked = Prompt(id="leak", text=test.text.upper() + "!", split=Split.TRAIN)
    object.__setattr__(snapshot, "prompts", (first, *rest, leaked))
    with pytest.raises(LeakError, match="a prompt may be in one split only"):
        divide(snapshot, Split.TEST, 0.15, 0)


def test_training_keeps_a_nested_share_and_leaves_annotators_out(snapshot_folder):
    whole = divide(load_snapshot(snapshot_folder), Split.TEST, 0.15, 0)

    def prompts(share):
        return {s.prompt.id for s in keep_training(whole, share, (), 0).train}

    assert len(prompts(0.25)) == 8
    assert prompts(0.25) < prompts(0.5) < prompts(1.0)
    ada, ben = sorted({j.annotator for s in whole.train for j in s.judgements})
    kept = keep_training(whole, 1.0, (ada,), 0)
    for part in (kept.train, kept.development):
        assert {j.annotator for s in part for j in s.judgements} == {ben}
    assert kept.held_out == whole.held_out
    with pytest.raises(ValueError, match=f"leave_out names 'zoe', .*choose from {ada}, {ben}"):
        keep_training(whole, 1.0, ("zoe",), 0)
    with pytest.raises(ValueError, match="nothing to learn from"):
        keep_training(whole, 1.0, (ada, ben), 0)


def test_a_learning_curve_measures_all_shares_on_the_same_picks(settings, tmp_path):
    config = parse_config(RewardTrainConfig, settings(tmp_path, epochs=2))
    points = learning_curve(config, [1.0, 0.25])
    assert [(p["share"], p["num_prompts"]) for p in points] == [(0.25, 8), (1.0, 32)]
    assert points[0]["ceiling"] == points[1]["ceiling"]
    assert json.loads((tmp_path / CURVE_FILE).read_text()) == points


def test_the_development_part_never_meets_the_held_out_one(snapshot_folder):
    snapshot = load_snapshot(snapshot_folder)
    for held_out in (Split.TEST, Split.VALIDATION):
        parts = divide(snapshot, held_out, 0.15, 0)
        ids = [
            {candidates.prompt.id for candidates in part}
            for part in (parts.train, parts.development, parts.held_out)
        ]
        assert all(ids)
        assert sum(map(len, ids)) == len(set.union(*ids))
    assert {s.prompt.split for s in parts.development} == {Split.TRAIN}


def test_sets_gather_what_all_annotators_said_of_the_same_candidates(snapshot_folder):
    snapshot = load_snapshot(snapshot_folder)
    sets = candidate_sets(snapshot)
    assert len(sets) == 48
    assert sum(len(candidates.judgements) for candidates in sets) == len(snapshot.picks)
    picks = {pick.id: pick for pick in snapshot.picks}
    for candidates in sets:
        for judgement in candidates.judgements:
            pick = picks[judgement.pick_id]
            task = snapshot.task_of[pick.task_id]
            assert candidates.candidate_ids[judgement.best] == task.candidate_ids[pick.win]
            assert candidates.candidate_ids[judgement.worst] == task.candidate_ids[pick.lose]


def test_each_pick_is_scored_by_the_head_that_it_asked():
    def judgement(question, best, worst):
        return Judgement("p", "t", "ada", question, best, worst)

    prompt = Prompt(id="p", text="p")
    sets = [
        CandidateSet(prompt, ("a", "b"), (judgement(Question.DETAIL, 0, 1),)),
        CandidateSet(
            prompt,
            ("c", "d", "e"),
            (judgement(Question.AESTHETICS, 2, 0), judgement(Question.DETAIL, None, None)),
        ),
    ]
    outputs = ("aesthetics", "detail", "overall")
    rows = to_dataset(sets, outputs, keep_ties=True)
    blank = Features(torch.zeros(4, 2), torch.zeros(1, 2), torch.zeros(1))
    bank = {(candidate_id, "p"): blank for candidate_id in "abcde"}
    batch = SetCollator(bank, lambda inputs: collate(inputs).as_dict())(list(rows))
    assert batch["members"].tolist() == [[0, 1, 0], [2, 3, 4], [2, 3, 4]]
    assert batch["mask"].tolist() == [[True, True, False], [True] * 3, [True] * 3]
    logits = torch.zeros(5, 2, 3, requires_grad=True)
    result = preference_loss(PreferenceOutput(logits=logits), batch)
    log2, log6 = torch.tensor([2.0, 6.0]).log().tolist()
    for member in result.nll.tolist():
        assert member == pytest.approx([log2, log6, 0.0])
    result.nll.mean().backward()
    touched = logits.grad.abs().sum(dim=1) > 1e-6
    assert touched.tolist() == [
        [False, True, False],
        [False, True, False],
        [True, False, False],
        [True, False, False],
        [True, False, False],
    ]
    assert len(to_dataset(sets, ("detail", "overall"), keep_ties=False)) == 1


def test_one_command_measures_audits_and_registers(trained, snapshot_folder, tmp_path, capsys):
    page = tmp_path / "report.html"
    command = ["reward", "evaluate", str(trained.folder), str(snapshot_folder), "--audit=2"]
    assert cli.main([*command, "--register", f"--page={page}"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"saturation \+10 % +[+-]\d\.\d\d \[", said)
    assert re.search(r"mean +0\.\d{3}", said)
    assert "Edits that should change nothing" in page.read_text(encoding="utf-8")
    report = json.loads((trained.folder / "report.json").read_text())
    assert set(report["audit"]["jpeg 95"]) == {"aesthetics", "detail", "overall"}
    assert report["trained_on"] == trained.report["trained_on"]
    status = cli.main([*command, f"--after={snapshot_folder}"])
    assert (status, "0 are new since" in capsys.readouterr().err) == (2, True)
