"""Candidates: the stock pipeline's images, drawn once each, whoever draws and whatever kills."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from run_data import CAPTIONS

from align.config import GenerateConfig
from align.generate import generate
from align.mmdit.flow import seeded_noise
from align.mmdit.tokens import pack
from annotate.records import Candidate
from annotate.settings import dump_config, parse_config

KILLED = """
import os, signal, sys
import align.generate
from align.config import GenerateConfig
write, count = align.generate._write_image, 0
def write_image(path, png):
    global count
    count += 1
    write(path, png)
    if count == 11:
        os.kill(os.getpid(), signal.SIGKILL)
align.generate._write_image = write_image
align.generate.generate(GenerateConfig.model_validate_json(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join([*CAPTIONS[:6], "红色背景"]), encoding="utf-8")
    return path


def config_for(model: Path, prompts: Path, output: Path, /, **changes: Any) -> GenerateConfig:
    settings = {
        "model": str(model),
        "prompts": prompts,
        "output_dir": output,
        "candidates": 3,
        "height": 32,
        "width": 32,
        "num_steps": 3,
        "batch_size": 7,
        "seed": 5,
    }
    return parse_config(GenerateConfig, settings | changes)


def candidates(folder: Path) -> list[Candidate]:
    lines = (folder / "candidates.jsonl").read_text().splitlines()
    return [Candidate.model_validate_json(line) for line in lines]


def pixels(folder: Path, candidate: Candidate) -> np.ndarray:
    return np.asarray(Image.open(folder / "images" / f"{candidate.image_sha256}.png")).astype(int)


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder drawn without interruption, on one thread as its later rivals."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole") / "out"
    generate(config_for(tiny_folder, prompts, folder))
    torch.set_num_threads(threads)
    return folder


def test_each_prompt_has_its_candidates_and_files_are_named_by_content(whole, prompts):
    found = candidates(whole)
    texts = [
        json.loads(line)["text"] for line in (whole / "prompts.jsonl").read_text().splitlines()
    ]
    ids = [json.loads(line)["id"] for line in (whole / "prompts.jsonl").read_text().splitlines()]
    assert texts == prompts.read_text(encoding="utf-8").splitlines()
    assert [c.prompt_id for c in found] == [i for i in ids for _ in range(3)]
    assert len({c.id for c in found}) == 21
    for candidate in found:
        content = (whole / "images" / f"{candidate.image_sha256}.png").read_bytes()
        assert hashlib.sha256(content).hexdigest() == candidate.image_sha256
    assert sorted(p.name for p in whole.iterdir()) == [
        ".lock", "candidates.jsonl", "config.yaml", "images", "prompts.jsonl",
    ]  # fmt: skip


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_images_are_those_of_the_stock_pipeline(tiny_folder, prompts, tmp_path, scale):
    config = config_for(tiny_folder, prompts, tmp_path / "out", guidance_scale=scale, candidates=1)
    generate(config)
    pipeline: Any = DiffusionPipeline.from_pretrained(tiny_folder)
    pipeline.set_progress_bar_config(disable=True)
    texts = prompts.read_text(encoding="utf-8").splitlines()
    for text, candidate in zip(texts, candidates(tmp_path / "out"), strict=True):
        noise = seeded_noise(5, candidate.prompt_id, 0, (16, 4, 4))
        stock = pipeline(
            text,
            negative_prompt=" ",
            true_cfg_scale=scale,
            num_inference_steps=3,
            height=32,
            width=32,
            latents=pack(noise[None]),
        ).images[0]
        assert abs(pixels(tmp_path / "out", candidate) - np.asarray(stock).astype(int)).max() <= 1


def test_a_killed_run_loses_and_doubles_nothing(tiny_folder, prompts, whole, tmp_path):
    config = config_for(tiny_folder, prompts, tmp_path / "out")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KILLED, config.model_dump_json()], env=environment)
    assert done.returncode == -signal.SIGKILL
    part = tmp_path / "out" / "parts" / "0000-of-0001.jsonl"
    with part.open("ab") as lines:
        lines.write(b'{"id": "torn')
    before = part.read_bytes().count(b"\n")
    assert 0 < before < 21
    # Another number of processes may take over.
    generate(config.model_copy(update={"processes": 2}))
    assert (tmp_path / "out" / "candidates.jsonl").read_bytes() == (
        whole / "candidates.jsonl"
    ).read_bytes()
    images = sorted(p.name for p in (tmp_path / "out" / "images").iterdir())
    assert images == sorted(p.name for p in (whole / "images").iterdir())


def test_what_a_power_cut_took_is_drawn_again(tiny_folder, prompts, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    missing, empty, *_ = (out / "images" / f"{c.image_sha256}.png" for c in candidates(out)[5:])
    missing.unlink()
    empty.write_bytes(b"")
    config = config_for(tiny_folder, prompts, out)
    command = "import sys; from align import cli; sys.exit(cli.main(sys.argv[1:]))"
    (tmp_path / "generate.yaml").write_text(dump_config(config))
    subprocess.run(
        [sys.executable, "-c", command, "generate", str(tmp_path / "generate.yaml")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}, check=True,
    )  # fmt: skip
    for image in (missing, empty):
        assert hashlib.sha256(image.read_bytes()).hexdigest() == image.stem
    assert (out / "candidates.jsonl").read_bytes() == (whole / "candidates.jsonl").read_bytes()


def test_another_batch_size_changes_at_most_the_last_bit(tiny_folder, prompts, whole, tmp_path):
    generate(config_for(tiny_folder, prompts, tmp_path / "out", batch_size=1))
    for one, other in zip(candidates(tmp_path / "out"), candidates(whole), strict=True):
        assert one.generation.noise_key == other.generation.noise_key
        assert abs(pixels(tmp_path / "out", one) - pixels(whole, other)).max() <= 1


def test_more_candidates_are_added_to_those_that_are_there(tiny_folder, prompts, tmp_path):
    own = tmp_path / "prompts.txt"
    own.write_bytes(prompts.read_bytes())
    first = config_for(tiny_folder, own, tmp_path / "out", candidates=1)
    generate(first)
    before = {c.id: c for c in candidates(tmp_path / "out")}
    generate(first.model_copy(update={"candidates": 2}))
    after = {c.id: c for c in candidates(tmp_path / "out")}
    assert len(after) == 14
    assert before.items() <= after.items()

    own.write_text(CAPTIONS[0], encoding="utf-8")
    generate(first)  # asks for one of the fourteen
    assert {c.id: c for c in candidates(tmp_path / "out")} == after
    kept = (tmp_path / "out" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(kept) == 7


def test_other_settings_and_other_weights_are_refused(tiny_folder, prompts, tmp_path):
    out = tmp_path / "out"
    generate(config_for(tiny_folder, prompts, out, candidates=1))
    with pytest.raises(ValueError, match="num_steps: 3 there, 4 asked"):
        generate(config_for(tiny_folder, prompts, out, num_steps=4))
    other = tmp_path / "prompts.jsonl"
    known = json.loads((out / "prompts.jsonl").read_text().splitlines()[0])
    other.write_text(json.dumps(known | {"text": "something else"}) + "\n")
    (out / "config.yaml").unlink()
    with pytest.raises(ValueError, match=f"prompt '{known['id']}' is 'something else'"):
        generate(config_for(tiny_folder, other, out))


def test_a_folder_without_an_image_takes_other_settings(tiny_folder, prompts, tmp_path):
    out, other = tmp_path / "out", tmp_path / "prompts.jsonl"
    with pytest.raises(FileNotFoundError, match="no diffusers pipeline"):
        generate(config_for(tmp_path / "none", prompts, out))
    known = json.loads((out / "prompts.jsonl").read_text().splitlines()[0])
    other.write_text(json.dumps(known | {"text": "something else"}) + "\n")
    assert generate(config_for(tiny_folder, other, out, candidates=1)).candidates == 1


def test_what_is_missing_is_named(tiny_folder, prompts, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no prompts file at .*none\.txt"):
        generate(config_for(tiny_folder, tmp_path / "none.txt", tmp_path / "a"))
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.txt has no prompts"):
        generate(config_for(tiny_folder, empty, tmp_path / "b"))
    with pytest.raises(FileNotFoundError, match="no diffusers pipeline at"):
        generate(config_for(tmp_path / "no-model", prompts, tmp_path / "c"))
    with pytest.raises(FileNotFoundError, match=r"at 'tinny': expected 'tiny', a folder .* has$"):
        generate(config_for("tinny", prompts, tmp_path / "c"))
    with pytest.raises(FileNotFoundError, match="no LoRA at"):
        generate(config_for(tiny_folder, prompts, tmp_path / "d", lora=tmp_path / "no-lora"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file"):
        generate(config_for(tiny_folder, prompts, tmp_path / "file"))
