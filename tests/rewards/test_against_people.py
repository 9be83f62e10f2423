"""Scorers that were trained elsewhere, held against the designers' picks of a snapshot."""

from __future__ import annotations

import json

import pytest
import tiny_clip
import yaml

from align import cli
from annotate.records import Split, load_snapshot
from rewards.against_people import measure_scorer
from rewards.base import Score, ScorerSpec, ScoringError
from rewards.evaluate import build_report
from rewards.judgements import candidate_sets


class Oracle:
    """Pays for how often a candidate was picked as the best less the worst, on its own scale."""

    def __init__(self, snapshot, scale, components=(), deed=lambda name, score: score):
        self.spec = ScorerSpec("oracle", "1", tuple(components), frozenset({"image"}))
        self.points: dict[str, float] = {}
        self.deed = deed
        for candidates in candidate_sets(snapshot):
            for judgement in candidates.judgements:
                for place, gain in ((judgement.best, scale), (judgement.worst, -scale)):
                    name = candidates.candidate_ids[place]
                    self.points[name] = self.points.get(name, 0.0) + gain

    def score(self, items):
        assert all(item.image.size == (64, 64) for item in items)
        return [
            self.deed(
                item.sample_id,
                Score(
                    self.points.get(item.sample_id, 0.0),
                    {name: -self.points.get(item.sample_id, 0.0) for name in self.spec.components},
                ),
            )
            for item in items
        ]


@pytest.fixture(scope="module")
def snapshot(snapshot_folder):
    return load_snapshot(snapshot_folder)


def test_a_scorers_accuracy_is_that_of_its_scores_on_the_picks(snapshot):
    report = measure_scorer(Oracle(snapshot, 4.0), snapshot)
    assert report["accuracy"] > 0.6  # one number for criteria that have little to do with another
    assert set(report["criteria"]) == {"aesthetics", "detail", "overall"}
    # Another scale is another temperature, and the same confidence.
    small = measure_scorer(Oracle(snapshot, 1.0), snapshot)
    assert small["criteria"]["detail"]["nll"] == pytest.approx(
        report["criteria"]["detail"]["nll"], rel=0.05
    )
    assert report["temperatures"]["detail"] > small["temperatures"]["detail"]
    assert report["criteria"]["detail"]["accuracy"] == small["criteria"]["detail"]["accuracy"]
    held_out = [s for s in candidate_sets(snapshot) if s.prompt.split == Split.TEST]
    points = Oracle(snapshot, 1.0).points
    scores = {
        name: dict.fromkeys(("aesthetics", "detail", "overall"), points.get(name, 0.0))
        for candidates in held_out
        for name in candidates.candidate_ids
    }
    plain = build_report(held_out, scores, ["aesthetics", "detail"])
    assert plain["accuracy"] == small["accuracy"]
    assert plain["ceiling"] == small["ceiling"]


def test_a_component_of_a_questions_name_answers_it(snapshot):
    report = measure_scorer(Oracle(snapshot, 1.0, ["detail"]), snapshot)
    value = measure_scorer(Oracle(snapshot, 1.0), snapshot)["criteria"]
    opposite = 1 - value["detail"]["accuracy"]
    assert report["criteria"]["detail"]["accuracy"] == pytest.approx(opposite)
    assert report["criteria"]["aesthetics"] == value["aesthetics"]


def test_what_does_not_apply_is_left_out_and_a_failure_stops(snapshot):
    test = sorted(p.id for p in snapshot.prompts if p.split == Split.TEST)

    def skip(name, score):
        return Score(None) if name.startswith(test[0]) else score

    report = measure_scorer(Oracle(snapshot, 1.0, deed=skip), snapshot)
    assert report["num_prompts"] == len(test) - 1
    assert report["num_not_applicable"] == 1
    with pytest.raises(ValueError, match="applies to none"):
        measure_scorer(Oracle(snapshot, 1.0, deed=lambda name, score: Score(None)), snapshot)
    failing = Oracle(snapshot, 1.0, deed=lambda name, score: Score(None, error="no memory"))
    with pytest.raises(ScoringError, match=r"'oracle' failed on sample 'p\d\d-\d': no memory"):
        measure_scorer(failing, snapshot)


def test_one_command_measures_and_audits_scorers(snapshot_folder, tmp_path, capsys):
    folder = str(tiny_clip.save_clip(tmp_path / "clip"))
    head = tmp_path / "head.pth"
    tiny_clip.save_aesthetic_head(head)
    scorers = [
        {"type": "pickscore", "path": folder, "tokenizer": folder},
        {"type": "laion_aesthetic", "path": folder, "head": str(head)},
    ]
    config, out = tmp_path / "scorers.yaml", tmp_path / "reports.json"
    config.write_text(yaml.safe_dump({"scorers": scorers}))
    command = ["reward", "measure", str(config), str(snapshot_folder), "--audit=2"]
    assert cli.main([*command, f"--json={out}"]) == 0
    said = capsys.readouterr().out
    assert said.count("saturation +10 %") == 2
    first, second = json.loads(out.read_text())
    assert [r["scorer"]["name"] for r in (first, second)] == ["pickscore", "laion_aesthetic"]
    assert 0 < first["accuracy"] < 1  # of random weights
    assert (first["truncated"], second["truncated"]) == (1, 0)  # captions are longer than 24 bytes
    assert said.count("it read only the start of the prompt for 100% of images") == 1
    # The aesthetic predictor reads no prompt.
    assert second["audit"]["jpeg 95"]["overall"]["shift"] != 0
