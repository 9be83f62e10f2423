"""Editing on the poster world: the rows to learn from, and held-out edits read by the ruler.

An edit is a source poster, an instruction in English or Chinese, and the poster that it asks for.
Posters to learn from are of specifications of the split ``train``, held-out ones of ``test``.

    python -m benchmarks.edit                 writes the editing pipeline and the rows to runs/edit
    winsome sft configs/tiny/sft_edit.yaml    trains it; docs/editing.md has the second round
    python -m benchmarks.measure edit         lets it edit and reads what came out
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from annotate.records import Candidate
from rewards.posters.edit_ruler import outside_mask_psnr, read_edit
from rewards.posters.edits import EDITS, PosterEdit, draw_edit, instruction, random_edit

__all__ = ["FOLDER", "MODEL", "TEST_EDITS", "edits", "measure_edits", "write_edits"]

FOLDER = Path("runs/edit")
MODEL = FOLDER / "sft-2/final"
TRAIN_EDITS, TEST_EDITS = 8000, 200
NUM_STEPS = 12
SOURCE_AREA = 128 * 128


def edits(split: str, count: int, seed: int = 0) -> Iterator[tuple[PosterEdit, str]]:
    """``count`` edits and their instructions: the kinds in turn, languages within each in turn."""
    rng = random.Random(f"{seed}/edits/{split}")
    kinds = list(EDITS)
    for number in range(count):
        edit = random_edit(rng, kind=kinds[number % len(kinds)], split=split)
        yield edit, instruction(edit, ("en", "zh")[number // len(kinds) % 2])


def write_edits(folder: Path, split: str, count: int, seed: int = 0) -> Path:
    """Write the pictures and ``edits.jsonl``, rows of ``winsome sft``; each also has ``text`` and
    ``id``, as ``winsome generate`` asks."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    path = folder / "edits.jsonl"
    with path.open("w", encoding="utf-8") as rows:
        for number, (edit, words) in enumerate(edits(split, count, seed)):
            drawn, name = draw_edit(edit), f"images/{number:05d}"
            drawn.source.save(folder / f"{name}-source.png")
            drawn.target.save(folder / f"{name}.png")
            row = {"prompt": words, "image": f"{name}.png", "source_image": f"{name}-source.png"}
            rows.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def prepare(folder: Path) -> None:
    """The editing pipeline that has learnt nothing, and the rows it learns from."""
    from align import tiny_pipeline
    from align.tiny_edit import build_edit_pipeline

    build_edit_pipeline(tiny_pipeline(), folder / "pipeline")
    write_edits(folder / "train", "train", TRAIN_EDITS)


# Measuring ----------------------------------------------------------------------------------------


def measure_edits(model: Path, folder: Path, count: int = TEST_EDITS) -> dict[str, Any]:
    """Let ``model`` carry out the held-out edits; ``folder`` keeps what it drew.

    Returns:
        For each edit the ruler's reading of the model's picture, of an unchanged copy of the source
        and of the truth once through the autoencoder.
    """
    from align.mmdit.adapters import load_adapter

    write_edits(folder / "test", "test", count)
    pictures = _draw(model, folder)
    trips = _round_trips(load_adapter(model, parts=("vae",)), folder / "test", count)
    rows = [
        _read(edit, words, picture, trip)
        for (edit, words), picture, trip in zip(edits("test", count), pictures, trips, strict=True)
    ]
    run = json.loads((model.parent / "run.json").read_text(encoding="utf-8"))
    trained = {name: run[name] for name in ("steps", "code", "data", "started") if name in run}
    return {"trained": trained, "num_steps": NUM_STEPS, "edits": rows}


def _draw(model: Path, folder: Path) -> list[Image.Image]:
    from align.config import GenerateConfig
    from align.generate import generate

    test = folder / "test"
    rows = [json.loads(line) for line in (test / "edits.jsonl").read_text("utf-8").splitlines()]
    prompts = [
        {"id": f"{n:05d}", "text": row["prompt"], "source_image": row["source_image"]}
        for n, row in enumerate(rows)
    ]
    lines = [json.dumps(prompt, ensure_ascii=False) + "\n" for prompt in prompts]
    (test / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")
    out = folder / "drawn"
    generate(
        GenerateConfig(
            model=str(model),
            prompts=test / "prompts.jsonl",
            output_dir=out,
            candidates=1,
            source_area=SOURCE_AREA,
            num_steps=NUM_STEPS,
        )
    )
    drawn = [
        Candidate.model_validate_json(line)
        for line in (out / "candidates.jsonl").read_bytes().splitlines()
    ]
    return [Image.open(out / "images" / f"{c.image_sha256}.png") for c in drawn]


def _round_trips(adapter: Any, test: Path, count: int) -> Iterator[Image.Image]:
    """The truth of each edit, encoded and decoded."""
    import torch

    from align.config import ResolutionConfig
    from align.data.images import ImageFile
    from align.mmdit.adapters import image_to_uint8

    for number in range(count):
        image = ImageFile(test / "images" / f"{number:05d}.png").load(ResolutionConfig())
        with torch.no_grad():
            decoded = adapter.decode_latents(adapter.encode_images(image[None]))
        yield Image.fromarray(image_to_uint8(decoded)[0].numpy())


def _read(edit: PosterEdit, words: str, picture: Image.Image, trip: Image.Image) -> dict[str, Any]:
    drawn, reading = draw_edit(edit), read_edit(picture, edit)
    return {
        "kind": edit.kind,
        "part": edit.part,
        "words": words,
        "met": reading.met,
        "instruction": round(reading.instruction, 4),
        "edit": round(reading.measurements["edit"], 4),
        "region": round(reading.measurements["region"], 4),
        "outside_psnr": round(reading.outside_mask_psnr, 4),
        "copy_instruction": read_edit(drawn.source, edit).instruction,
        "trip_met": read_edit(trip, edit).met,
        "trip_outside_psnr": round(outside_mask_psnr(trip, drawn), 4),
    }


def by_kind(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Share of the edits of each kind that were met."""
    return {
        kind: sum(row["met"] for row in own) / len(own)
        for kind in EDITS
        if (own := [row for row in rows if row["kind"] == kind])
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the editing pipeline and its rows.")
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    prepare(parser.parse_args().folder)


if __name__ == "__main__":
    main()
