"""Models side by side: paired image by image, with intervals over prompts, and a page."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_data import CAPTIONS

from align import cli
from align.config import EvalConfig
from align.scoreboard import describe, evaluate_models
from annotate.records import Candidate, Outcome
from annotate.settings import parse_config
from annotate.store import PreferenceStore, Submission, User
from rewards.base import RewardItem, Score, ScorerSpec, ScoringError


class Brightness:
    """The mean of an image's pixels; of its red ones; it does not apply to large circles."""

    spec = ScorerSpec("brightness", "1", ("red",), frozenset({"image"}))

    def score(self, items: Sequence[RewardItem]) -> list[Score]:
        scores = []
        for item in items:
            if "large green circle" in item.prompt:
                scores.append(Score(None))
                continue
            pixels = np.asarray(item.image, dtype=float) / 255
            scores.append(Score(float(pixels.mean()), {"red": float(pixels[..., 0].mean())}))
        return scores


@pytest.fixture(scope="module")
def evaluated(untrained_folder, tiny_folder, tmp_path_factory) -> tuple[EvalConfig, dict[str, Any]]:
    out = tmp_path_factory.mktemp("eval")
    (out / "prompts.txt").write_text("\n".join([*CAPTIONS[5:10], "<b>& a prompt"]))
    config = parse_config(
        EvalConfig,
        {
            "prompts": out / "prompts.txt",
            "output_dir": out / "run",
            "models": [
                {"name": "untrained", "model": str(untrained_folder)},
                {"name": "twin", "model": str(untrained_folder)},
                {"name": "tiny", "model": str(tiny_folder)},
            ],
            "scorers": [{"type": "remote", "url": "http://127.0.0.1:9"}],
            "candidates": 2,
            "height": 32,
            "width": 32,
            "num_steps": 2,
            "progress": False,
        },
    )
    config = config.model_copy(update={"scorers": ()})  # those of this test are given in Python
    return config, evaluate_models(config, [Brightness()])


def images(config: EvalConfig, model: str) -> list[tuple[str, float]]:
    """(noise, brightness) of each image, read from the folder."""
    folder = config.output_dir / "models" / model
    found = []
    for line in (folder / "candidates.jsonl").read_text().splitlines():
        candidate = Candidate.model_validate_json(line)
        assert candidate.generation
        with Image.open(folder / "images" / f"{candidate.image_sha256}.png") as image:
            value = float(np.asarray(image, dtype=float).mean() / 255)
        found.append((candidate.generation.noise_key, value))
    return found


def test_models_are_compared_on_the_same_noise(evaluated):
    config, report = evaluated
    base, tiny = images(config, "untrained"), images(config, "tiny")
    assert [key for key, _ in base] == [key for key, _ in tiny]
    figures = report["figures"]["brightness"]
    # 6 prompts of 2 images, of which one is none of the scorer's business.
    left_out = CAPTIONS[5:10].index("a large green circle on a white background")
    kept = [i for i in range(12) if i // 2 != left_out]
    assert figures["tiny"]["images"] == len(kept) == 10
    difference = np.mean([tiny[i][1] - base[i][1] for i in kept])
    assert figures["tiny"]["difference"]["difference"] == pytest.approx(difference)
    wins = np.mean([tiny[i][1] > base[i][1] for i in kept])
    assert figures["tiny"]["wins"]["difference"] == pytest.approx(wins)
    bounds = figures["tiny"]["difference"]
    assert bounds["low"] <= bounds["difference"] <= bounds["high"]
    assert bounds["low"] < bounds["high"]


def test_a_model_and_its_twin_differ_by_nothing(evaluated):
    _, report = evaluated
    for line in ("brightness", "brightness/red"):
        twin = report["figures"][line]["twin"]
        assert set(twin["difference"].values()) == {0.0}
        assert twin["wins"]["difference"] == 0.5
    assert report["models"]["twin"]["model_sha256"] == report["models"]["untrained"]["model_sha256"]


def test_the_folder_holds_the_report_and_a_page_with_every_image(evaluated):
    config, report = evaluated
    assert json.loads((config.output_dir / "report.json").read_text()) == report
    page = (config.output_dir / "report.html").read_text()
    sources = re.findall(r'src="([^"]+)"', page)
    assert len(sources) == 3 * 6 * 2
    assert all((config.output_dir / source).is_file() for source in sources)
    assert "&lt;b&gt;&amp; a prompt" in page
    assert "<b>& a prompt" not in page
    assert "tiny" in describe(report)
    assert "wins 0.50 [0.17, 0.83]" in describe(report)  # Wilson's, of five prompts


def test_a_second_run_draws_nothing_and_says_the_same(evaluated):
    config, report = evaluated
    files = {p: p.stat().st_mtime_ns for p in config.output_dir.glob("models/*/images/*.png")}
    assert evaluate_models(config, [Brightness()]) == report
    assert files == {p: p.stat().st_mtime_ns for p in files}


def answer_all(store: PreferenceStore, user: User, wanted: set[bytes]) -> int:
    """Pick the image that is ``wanted``, until no task is left; how many were answered."""
    count = 0
    while (claim := store.claim(user.id)) is not None:
        shown = [store.media(user.id, token).read_bytes() for token in claim.media]
        win = next(i for i, png in enumerate(shown) if png in wanted)
        store.submit(
            user.id,
            Submission(
                idempotency_key=f"answer-{user.id}-{count}",
                assignment_id=claim.assignment_id,
                lease_token=claim.lease_token,
                outcome=Outcome.PICKED,
                win_position=win,
                lose_position=1 - win,
            ),
        )
        count += 1
    return count


def test_people_are_asked_blindly_and_their_win_rate_comes_back(evaluated, tmp_path, capsys):
    config, _ = evaluated
    folder, studio = config.output_dir, str(tmp_path / "studio")

    def command(*models: str) -> tuple[int, str]:
        status = cli.main(["compare", str(folder), *models, "--studio", studio, "--annotators=2"])
        said = capsys.readouterr()
        return status, said.out + said.err

    with PreferenceStore.open(studio) as store:
        users = [store.add_user(name, "a long password") for name in ("one", "two")]
    assert "no answers yet" in command("untrained", "tiny")[1]
    pngs = {
        name: {path.read_bytes() for path in folder.glob(f"models/{name}/images/*.png")}
        for name in ("untrained", "tiny")
    }
    with PreferenceStore.open(studio) as store:
        assert answer_all(store, users[0], pngs["tiny"]) == 12
        assert answer_all(store, users[1], pngs["untrained"]) == 12
    assert "tiny wins 50.0 % [18.8, 81.2] of 24 answers" in command("untrained", "tiny")[1]
    assert command("untrained", "tiny")[1].startswith("12 blind tasks of untrained and tiny\n")
    assert "12 pairs of one image are ties" in command("untrained", "twin")[1]
    assert command("untrained", "nobody") == (
        2,
        f"winsome: error: {folder} has no images of a model 'nobody'; models: tiny, twin, "
        "untrained\n",
    )
    assert command("tiny", "tiny")[0] == 2


def test_an_id_may_hold_what_other_readers_take_for_the_end_of_a_line(
    untrained_folder, tmp_path, capsys
):
    ids = ("line\u2028separator", "next\x85line", "vertical\x0btab")
    prompts = [{"id": name, "text": "a red circle", "lang": "en"} for name in ids]
    lines = [json.dumps(prompt, ensure_ascii=False) + "\n" for prompt in prompts]
    (tmp_path / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")
    config = parse_config(
        EvalConfig,
        {
            "prompts": tmp_path / "prompts.jsonl",
            "output_dir": tmp_path / "run",
            "models": [{"name": name, "model": str(untrained_folder)} for name in ("one", "two")],
            "scorers": [{"type": "remote", "url": "http://127.0.0.1:9"}],
            "candidates": 1,
            "height": 32,
            "width": 32,
            "num_steps": 1,
            "progress": False,
        },
    )
    report = evaluate_models(config.model_copy(update={"scorers": ()}), [Brightness()])
    assert report["prompts"] == report["figures"]["brightness"]["two"]["images"] == 3
    studio = str(tmp_path / "studio")
    PreferenceStore.open(studio).close()
    assert cli.main(["compare", str(tmp_path / "run"), "one", "two", "--studio", studio]) == 0
    assert "3 pairs of one image are ties" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": [{"name": "a"}, {"name": "a"}]}, "names of models must differ"),
        ({"scorers": []}, "give scorers or mix"),
        ({"models": [{"name": "../a"}]}, "should match pattern"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(changes, message, tmp_path):
    settings = {
        "prompts": tmp_path / "prompts.txt",
        "output_dir": tmp_path,
        "models": [{"name": "a"}],
        "scorers": [{"type": "text_rendering"}],
    }
    with pytest.raises(ValueError, match=message):
        parse_config(EvalConfig, settings | changes)


class Failing(Brightness):
    """Reads nothing."""

    def score(self, items: Sequence[RewardItem]) -> list[Score]:
        return [Score(None, error="unreadable") for _ in items]


def test_an_image_that_could_not_be_scored_stops_the_evaluation(evaluated):
    config, _ = evaluated
    with pytest.raises(ScoringError, match=r"'brightness' failed on sample '.+': unreadable"):
        evaluate_models(config, [Failing()])


def test_two_scorers_of_one_name_are_refused(evaluated):
    config, _ = evaluated
    with pytest.raises(ValueError, match="two scorers have one name"):
        evaluate_models(config, [Brightness(), Brightness()])
