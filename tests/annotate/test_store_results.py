"""``winsome store wins`` and ``winsome store add-run``: what comes back into a studio."""

from __future__ import annotations

import csv
import json

import pytest
from studio import add_users, answer, make_prompts, png, sha256

from annotate.records import Candidate, Generation
from annotate.store import PreferenceStore

HOW = {"model_sha256": "0" * 64, "seed": "1", "steps": 1, "guidance_scale": 1, "height": 6}
HOW |= {"width": 8, "dtype": "float32", "device": "cpu"}


def compared_studio(folder) -> None:
    """Ten prompts drawn by "base" and "dpo"; ada likes "dpo" seven times, once neither."""
    prompts = make_prompts(10)
    images = {sha256(png(c)): png(c) for c in range(20)}
    candidates = [
        Candidate(
            id=f"{prompt.id}-{model}", prompt_id=prompt.id, image_sha256=sha256(png(2 * p + m)),
            width=8, height=6, generation=Generation(model=model, **HOW),
        )
        for p, prompt in enumerate(prompts)
        for m, model in enumerate(("base", "dpo"))
    ]  # fmt: skip
    with PreferenceStore.open(folder) as store:
        store.add_prompts(prompts)
        store.add_candidates(candidates, images)
        groups = {p.id: [f"{p.id}-base", f"{p.id}-dpo"] for p in prompts}
        store.add_tasks(groups, question="detail")
        (ada,) = add_users(store, "ada")
        for number in range(10):
            claim = store.claim(ada.id)
            shown = [store.task(claim.task_id).candidate_ids[o] for o in claim.display_order]
            if number == 9:
                store.submit(ada.id, answer(claim, f"k{number}", "all_equal"))
                continue
            win = next(p for p, name in enumerate(shown) if name.endswith("dpo") == (number < 7))
            picked = {"win_position": win, "lose_position": 1 - win}
            store.submit(ada.id, answer(claim, f"k{number}", **picked))


def test_win_rates_of_ones_own_comparisons(winsome, tmp_path):
    compared_studio("studio")
    status, printed, error = winsome("store wins studio --question detail --csv wins.csv")
    assert (status, error) == (0, "")
    with (tmp_path / "wins.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = [
        (row["model"], row["against"], row["wins"], row["losses"], row["ties"]) for row in rows
    ]
    assert found == [
        ("dpo", "(all)", "7", "2", "1"), ("base", "(all)", "2", "7", "1"),
        ("base", "dpo", "2", "7", "1"), ("dpo", "base", "7", "2", "1"),
    ]  # fmt: skip
    assert [float(row["win rate"]) for row in rows] == [0.75, 0.25, 0.25, 0.75]
    # Wilson's interval of 7.5 out of 10 prompts.
    assert (float(rows[3]["low"]), float(rows[3]["high"])) == (0.4422, 0.9191)
    assert "dpo    base     7     2       1     0.75" in printed
    assert "no answer compares two" in winsome("store wins studio --question overall")[2]
    assert "no answer compares two" in winsome("store wins studio --kind second-round")[2]


def write_run(folder, status: str, **lines: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    info = {"command": "dpo", "status": status, "started": "2026-01-01T00:00:00+00:00",
            "data": {"snapshot_digest": "d" * 64}}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(info))
    (folder / "config.yaml").write_text("objective: {type: dpo}\n")
    metrics = [{"step": 1, "loss": 0.7}, {"step": 2, "bad": float("nan"), **lines}]
    text = "".join(json.dumps(line) + "\n" for line in metrics)
    (folder / "metrics.jsonl").write_text(text + '{"step": 3, "lo')


def test_a_run_folder_is_listed_and_brought_up_to_date(winsome, tmp_path):
    winsome("store init studio")
    write_run(tmp_path / "a/dpo", "running", loss=0.6)
    assert "Added dpo run dpo, running" in winsome("store add-run studio a/dpo")[1]
    write_run(tmp_path / "a/dpo", "finished", loss=0.5)
    assert "Updated dpo run dpo, finished" in winsome("store add-run studio a/dpo")[1]
    reward = tmp_path / "reward"
    reward.mkdir()
    (reward / "report.json").write_text(
        '{"accuracy": 0.64, "much": 1' + "0" * 400 + ', "snapshot_digest": "e"}'
    )
    assert "Added reward run scorer" in winsome("store add-run studio reward --id scorer")[1]
    with PreferenceStore.open("studio") as store:
        dpo, scorer = store.run("dpo"), store.run("scorer")
    assert (dpo.metrics, dpo.snapshot_digest) == ({"step": 2, "loss": 0.5}, "d" * 64)
    assert dpo.config == {"objective": {"type": "dpo"}}
    assert (scorer.kind, scorer.metrics) == ("reward", {"accuracy": 0.64})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("store add-run studio nowhere", "no run in nowhere: there is neither run.json nor"),
        ("store add-run studio b/dpo", "run 'dpo' is there already, of"),
        ("store add-run studio broken", "broken/run.json is not valid JSON"),
        ("store add-run studio deep", "deep/run.json is not valid JSON"),
        ("store add-run studio odd", "odd is not a run that can be listed"),
    ],
)
def test_a_folder_that_is_no_run_is_one_clear_message(winsome, tmp_path, line, message):
    winsome("store init studio")
    for name in ("a/dpo", "b/dpo"):
        write_run(tmp_path / name, "finished")
    winsome("store add-run studio a/dpo")
    write_run(tmp_path / "odd", "asleep")
    write_run(tmp_path / "broken", "finished")
    (tmp_path / "broken/run.json").write_text("{")
    write_run(tmp_path / "deep", "finished")
    (tmp_path / "deep/run.json").write_text("[" * 100_000)
    status, _, error = winsome(line)
    assert (status, message in error) == (2, True), error
