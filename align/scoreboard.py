"""Models side by side: the same prompts, the same noise, scorers that none of them learnt from.

The output folder::

    config.yaml         the resolved configuration
    models/NAME/        what `align.generate` writes of each model
    report.json         the figures
    report.html         the same, with a row of images for each prompt

Every model draws candidate i of a prompt from the same noise, so that models are compared image by
image. Prompts are the clusters of every interval: the images of one prompt hang together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from align.checkpoint import atomic_write
from align.config import DrawConfig, EvalConfig, GenerateConfig, dump_config
from align.data.rows import Request, iterate_prompts, iterate_requests
from align.generate import generate
from annotate.records import Candidate, Prompt, win_rate
from rewards.base import RewardItem, Score, Scorer, batch_places, complete_scores
from rewards.metrics import paired_difference

__all__ = ["describe", "evaluate_models"]

BATCH = 32
"""Images open at a time; all of a prompt where a scorer scores by group."""


@dataclass(frozen=True)
class _Judge:
    """A scorer, and whether models may have learnt from it."""

    scorer: Scorer
    is_reward: bool = False


def evaluate_models(config: EvalConfig, scorers: Sequence[Scorer] = ()) -> dict[str, Any]:
    """Draw, score and compare; returns the report, which also lies in the output folder.

    A folder of the same settings is continued: images that are there are not drawn again.

    Args:
        scorers: beside those of the configuration.

    Raises:
        FileNotFoundError, ValueError: prompts, a model or a scorer is missing or unfit; named.
        rewards.base.ScoringError: a scorer failed on an image.
    """
    judges = [*_judges(config), *map(_Judge, scorers)]
    names = [judge.scorer.spec.name for judge in judges]
    if len(set(names)) < len(names):
        raise ValueError(f"two scorers have one name, and one line in the report: {names}")
    drawn = {model.name: _draw(config, i) for i, model in enumerate(config.models)}
    asked = list(iterate_requests(config.prompts, config.splits))
    values: dict[str, dict[str, list[float | None]]] = {}
    truncated: dict[str, float] = {}
    for judge in judges:
        spec = judge.scorer.spec
        of_models = {
            name: _scores(config.output_dir / "models" / name, asked, rows, judge.scorer)
            for name, rows in drawn.items()
        }
        truncated[spec.name] = _share_truncated(of_models)
        for part in ("", *spec.components):
            line = f"{spec.name}/{part}" if part else spec.name
            values[line] = {
                name: [s.components.get(part) if part else s.value for s in scores]
                for name, scores in of_models.items()
            }
    clusters = [c.prompt_id for c in next(iter(drawn.values()))]
    baseline = config.models[0].name
    report = {
        "prompts": len(asked),
        "images_per_prompt": config.candidates,
        "seed": config.seed,
        "baseline": baseline,
        "models": _models(config, drawn),
        "scorers": {
            (spec := j.scorer.spec).name: {
                "version": spec.version,
                "is_reward": j.is_reward,
                "truncated": truncated[spec.name],
            }
            for j in judges
        },
        "figures": {
            line: {
                name: _figures(clusters, of_model, of_models[baseline], config.seed)
                for name, of_model in of_models.items()
            }
            for line, of_models in values.items()
        },
    }
    _write(config, report, [prompt for prompt, _ in asked], drawn)
    return report


def describe(report: dict[str, Any]) -> str:
    """The report as a small table."""
    lines = [
        f"{report['prompts']} prompts, {report['images_per_prompt']} images each; differences to "
        f"{report['baseline']}, 95 % intervals over prompts"
    ]
    for line, of_models in report["figures"].items():
        cut = report["scorers"].get(line, {}).get("truncated", 0.0)
        lines.append(
            line + f"   (the prompt was cut short for {cut:.0%} of the images)" * (cut > 0)
        )
        for name, found in of_models.items():
            text = f"  {name:16} {_mean(found)}"
            if name != report["baseline"]:
                text += f"   {_difference(found)}   wins {_wins(found)}"
            lines.append(text)
    return "\n".join(lines)


# Drawing and scoring ------------------------------------------------------------------------------


def _judges(config: EvalConfig) -> list[_Judge]:
    from rewards.scorers.build import build_scorer, open_mix

    judges = [_Judge(build_scorer(scorer)) for scorer in config.scorers]
    if config.mix is not None:
        source, evaluation = open_mix(config.mix)
        judges += [*map(_Judge, evaluation), _Judge(source.scorer, is_reward=True)]
    return judges


def _draw(config: EvalConfig, place: int) -> list[Candidate]:
    """Candidates of one model in the order of the prompts, then of the noise."""
    model = config.models[place]
    folder = config.output_dir / "models" / model.name
    settings = {name: getattr(config, name) for name in DrawConfig.model_fields}
    settings |= {"output_dir": folder, "model": model.model, "lora": model.lora}
    generate(GenerateConfig(**settings))
    lines = (folder / "candidates.jsonl").read_bytes().splitlines()
    count = config.candidates * sum(1 for _ in iterate_prompts(config.prompts, config.splits))
    return [Candidate.model_validate_json(line) for line in lines[:count]]


def _scores(
    folder: Path,
    asked: Sequence[tuple[Prompt, Request]],
    candidates: Sequence[Candidate],
    scorer: Scorer,
) -> list[Score]:
    of_prompt = {prompt.id: (prompt, request) for prompt, request in asked}
    items = []
    for candidate in candidates:
        prompt, _ = of_prompt[candidate.prompt_id]
        items.append(
            RewardItem(
                sample_id=candidate.id,
                group_id=prompt.id,
                prompt=prompt.text,
                metadata={"category": prompt.category, **prompt.metadata},
            )
        )
    found: dict[int, Score] = {}
    for places in batch_places(items, BATCH, scorer.spec.groupwise):
        names = {items[place].group_id for place in places}
        pictures = {name: of_prompt[name][1].pictures() for name in names}
        with ExitStack() as stack:
            shown = [
                replace(
                    items[place],
                    image=stack.enter_context(
                        Image.open(folder / "images" / f"{candidates[place].image_sha256}.png")
                    ),
                    source_images=pictures[items[place].group_id],
                )
                for place in places
            ]
            found |= dict(zip(places, complete_scores(scorer, shown), strict=True))
    return [found[place] for place in range(len(items))]


def _models(config: EvalConfig, drawn: Mapping[str, Sequence[Candidate]]) -> dict[str, Any]:
    """By name, the settings of each model and the hash of its weights."""
    return {
        model.name: {
            **model.model_dump(mode="json"),
            "model_sha256": _sha256(drawn[model.name][0]),
        }
        for model in config.models
    }


def _share_truncated(of_models: Mapping[str, Sequence[Score]]) -> float:
    """Of the images, those whose prompt the scorer could not read to its end."""
    every = [score for scores in of_models.values() for score in scores]
    return sum(score.truncated > 0 for score in every) / len(every)


def _figures(
    clusters: Sequence[str],
    own: Sequence[float | None],
    other: Sequence[float | None],
    seed: int,
) -> dict[str, Any]:
    """Of one model on one line: mean, difference to the baseline, and share of images that beat the
    baseline's from the same noise, a tie being half. Images without a value on either side are
    left out; None where none is left."""
    rows = [
        (cluster, a, b)
        for cluster, a, b in zip(clusters, own, other, strict=True)
        if a is not None and b is not None
    ]
    if not rows:
        return {"images": 0, "mean": None, "difference": None, "wins": None}
    names = [cluster for cluster, _, _ in rows]
    first, second = [a for _, a, _ in rows], [b for _, _, b in rows]
    zeros = [0.0] * len(rows)
    outcomes = (0.5 + 0.5 * np.sign(np.subtract(first, second))).tolist()
    wins = win_rate(zip(names, outcomes, strict=True))

    def compared(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
        return asdict(paired_difference(names, a, b, seed=seed))

    return {
        "images": len(rows),
        "mean": compared(first, zeros),
        "difference": compared(first, second),
        "wins": {"difference": wins.value, "low": wins.ci_low, "high": wins.ci_high},
    }


def _sha256(candidate: Candidate) -> str:
    assert candidate.generation is not None
    return candidate.generation.model_sha256


# The page -----------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark } body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem;
  margin: 2rem auto; padding: 0 1rem } table { border-collapse: collapse }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; border-bottom: 1px solid #8884;
  vertical-align: top } .grid img { width: 128px; margin: 0 2px 2px 0 } .grid td:first-child {
  width: 16rem; font-size: .9rem } .note { opacity: .7 }
"""


def _write(
    config: EvalConfig,
    report: dict[str, Any],
    prompts: Sequence[Prompt],
    drawn: dict[str, list[Candidate]],
) -> None:
    folder = config.output_dir
    atomic_write(folder / "config.yaml", dump_config(config))
    text = json.dumps(report, indent=2, ensure_ascii=False)
    atomic_write(folder / "report.json", text + "\n")
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Models side by side</title>",
        f"<style>{_STYLE}</style><h1>Models side by side</h1>",
        f"<p>{report['prompts']} prompts, {report['images_per_prompt']} images each, from the same "
        f"noise for every model. Differences are to <b>{escape(report['baseline'])}</b>; wins are "
        "the share of images that beat its image from the same noise, a tie being half. Intervals "
        "are 95 %, over prompts: bootstrapped, and Wilson's of wins.</p>",
        *(_table(report, name) for name in report["scorers"]),
        "<h2>Images</h2>",
        _grid(prompts[: config.shown], drawn),
    ]
    atomic_write(folder / "report.html", "\n".join(parts) + "</html>\n")


def _table(report: dict[str, Any], scorer: str) -> str:
    note = ""
    if report["scorers"][scorer]["is_reward"]:
        note = "<p class=note>A reward: models may have been trained on it.</p>"
    if cut := report["scorers"][scorer]["truncated"]:
        note += (
            f"<p class=note>It read only the start of the prompt for {cut:.0%} of the images.</p>"
        )
    rows = ["<tr><th>model</th><th>mean</th><th>difference</th><th>wins</th><th>images</th></tr>"]
    for line, of_models in report["figures"].items():
        if line != scorer and not line.startswith(f"{scorer}/"):
            continue
        part = line[len(scorer) + 1 :]
        for name, found in of_models.items():
            label = f"{name} · {part}" if part else name
            cells = [label, _mean(found), _difference(found), _wins(found), str(found["images"])]
            rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return f"<h2>{escape(scorer)}</h2>{note}<table>{''.join(rows)}</table>"


def _grid(prompts: Sequence[Prompt], drawn: dict[str, list[Candidate]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in drawn)
    rows = [f"<tr><th>prompt</th>{head}</tr>"]
    for prompt in prompts:
        cells = [f"<td>{escape(prompt.text)}</td>"]
        for name, candidates in drawn.items():
            images = "".join(
                f'<img src="models/{name}/images/{c.image_sha256}.png" alt="" loading=lazy>'
                for c in candidates
                if c.prompt_id == prompt.id
            )
            cells.append(f"<td>{images}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table class=grid>{''.join(rows)}</table>"


def _interval(found: dict[str, float] | None, form: str) -> str:
    if found is None:
        return "not applicable"
    value, low, high = (form.format(found[key]) for key in ("difference", "low", "high"))
    return f"{value} [{low}, {high}]"


def _mean(found: dict[str, Any]) -> str:
    return _interval(found["mean"], "{:.4g}")


def _difference(found: dict[str, Any]) -> str:
    return _interval(found["difference"], "{:+.4g}")


def _wins(found: dict[str, Any]) -> str:
    return _interval(found["wins"], "{:.2f}")
