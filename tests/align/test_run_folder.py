"""A run folder: one writer, damaged checkpoints, and what a rerun with other inputs is told."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from run_data import (
    FirstChannel,
    dpo_config,
    grpo_config,
    losses,
    sft_config,
    write_data,
)

from align.checkpoint import read_json
from align.config import GenerateConfig
from align.generate import generate
from align.offline import train_dpo, train_sft
from align.online import train_grpo
from align.trainer import Trainer
from annotate.settings import parse_config
from rewards.lock import FolderInUseError, FolderLock


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data")


def test_a_second_process_leaves_a_busy_run_alone(data, untrained_folder, tmp_path):
    out = tmp_path / "run"
    script = Path(__file__).with_name("busy_run.py")
    busy = subprocess.Popen(
        [sys.executable, script, data, untrained_folder, out], stdout=subprocess.PIPE
    )
    try:
        assert busy.stdout is not None
        assert busy.stdout.readline() == b"busy\n"
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        with pytest.raises(FolderInUseError, match=f"{out} is in use by process {busy.pid} on "):
            train_sft(sft_config(data, untrained_folder, out))
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    finally:
        busy.send_signal(signal.SIGKILL)
        busy.wait()
    result = train_sft(sft_config(data, untrained_folder, out))
    assert result.steps == 10
    assert read_json(out / "run.json")["attempts"] == 2
    assert sorted(losses(out)) == [0, *range(1, 11)]


def test_generate_leaves_a_busy_folder_alone(data, untrained_folder, tmp_path):
    settings = {"model": str(untrained_folder), "prompts": data / "prompts.txt", "candidates": 1,
                "output_dir": tmp_path, "height": 32, "width": 32, "num_steps": 2}  # fmt: skip
    with FolderLock(tmp_path), pytest.raises(FolderInUseError, match="in use by process"):
        generate(parse_config(GenerateConfig, settings))
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


# Damaged checkpoints ------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def interrupted(data, untrained_folder, tmp_path_factory):
    """A run with three checkpoints that ended before its export."""
    config = sft_config(
        data, untrained_folder, tmp_path_factory.mktemp("runs") / "run",
        save_every=2, keep_checkpoints=3, validation={"every": 0},
    )  # fmt: skip

    def stop(*_):
        raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_export", stop)
        with pytest.raises(Interrupted):
            train_sft(config)
    return config


def copy_of(config, folder: Path):
    shutil.copytree(config.output_dir, folder)
    return config.model_copy(update={"output_dir": folder})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damages", "resumed_from"),
    [
        ({10: ("trainable.safetensors", truncate)}, 8),
        ({10: ("optimizer.bin", flip_a_bit), 8: ("state.json", Path.unlink)}, 6),
        ({10: ("ema.safetensors", flip_a_bit)}, 8),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_gives_the_same_numbers(
    interrupted, tmp_path, caplog, damages, resumed_from
):
    config = copy_of(interrupted, tmp_path / "run")
    before = losses(config.output_dir)
    checkpoints = config.output_dir / "checkpoints"
    for step, (name, spoil) in damages.items():
        spoil(checkpoints / f"step-{step:08d}" / name)
    with caplog.at_level(logging.ERROR):
        train_sft(config)
    for step, (name, _) in damages.items():
        assert f"step-{step:08d}/{name}" in caplog.text
        assert (checkpoints / f"damaged-step-{step:08d}").is_dir()
    assert f"continuing from the newest whole checkpoint, of step {resumed_from}" in caplog.text
    assert losses(config.output_dir) == before


def test_with_no_whole_checkpoint_the_run_is_refused_and_nothing_is_moved(interrupted, tmp_path):
    config = copy_of(interrupted, tmp_path / "run")
    checkpoints = config.output_dir / "checkpoints"
    for folder in checkpoints.iterdir():
        truncate(folder / "optimizer.bin")
    before = sorted(config.output_dir.rglob("*"))
    with pytest.raises(ValueError, match=r"step-00000010/optimizer\.bin has \d+ bytes, \d+ were"):
        train_sft(config)
    assert sorted(config.output_dir.rglob("*")) == before
    shutil.rmtree(checkpoints)
    assert train_sft(config).steps == 10


# Other inputs -------------------------------------------------------------------------------------


def test_a_finished_run_is_not_taken_for_one_on_other_data(untrained_folder, tmp_path):
    data = write_data(tmp_path / "data")
    model = tmp_path / "model"
    shutil.copytree(untrained_folder, model)
    config = sft_config(data, model, tmp_path / "run", max_steps=1, validation={"every": 0})
    first = train_sft(config)
    assert train_sft(config) == first

    image, rows = data / "images" / "0.png", (data / "sft.jsonl").read_text()
    pixels = image.read_bytes()
    Image.new("RGB", (32, 32), "red").save(image)
    refused = r"a finished run on other data; choose another output_dir(.|\n)*data\.content: "
    with pytest.raises(ValueError, match=refused):
        train_sft(config)
    image.write_bytes(pixels)
    (data / "sft.jsonl").write_text(rows.replace("red", "pink"))
    with pytest.raises(ValueError, match=r"data\.sha256: '\w+' there, '\w+' now"):
        train_sft(config)
    (data / "sft.jsonl").write_text(rows)
    flip_a_bit(next((model / "transformer").glob("*.safetensors")))
    with pytest.raises(ValueError, match=r"base\.sha256: '\w+' there, '\w+' now"):
        train_sft(config)
    with pytest.raises(ValueError, match=r"a finished run of another(.|\n)*max_steps: 1 there, 2"):
        train_sft(config.model_copy(update={"max_steps": 2}))


def test_a_run_of_another_command_is_named(untrained_folder, tmp_path):
    data = write_data(tmp_path / "data")
    train_sft(
        sft_config(data, untrained_folder, tmp_path / "run", max_steps=1, validation={"every": 0})
    )
    refused = r"run holds a run of another command, .*choose another output_dir(.|\n)*config\.yaml"
    with pytest.raises(ValueError, match=refused):
        train_dpo(dpo_config(data, untrained_folder, tmp_path / "run"))


def test_so_it_is_with_pairs_prompts_and_rewards(untrained_folder, tmp_path):
    data = write_data(tmp_path / "data")
    dpo = dpo_config(data, untrained_folder, tmp_path / "dpo", max_steps=1)
    assert train_dpo(dpo) == train_dpo(dpo)
    rows = [json.loads(line) for line in (data / "pairs.jsonl").read_text().splitlines()]
    rows[0]["weight"] = 2.0
    (data / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"data\.sha256: "):
        train_dpo(dpo)

    grpo = grpo_config(data, untrained_folder, tmp_path / "grpo", max_steps=1)
    assert train_grpo(grpo, FirstChannel()) == train_grpo(grpo, FirstChannel())
    other = FirstChannel()
    other.spec = type(other.spec)("first-channel", "2", ("mean",), frozenset({"latents"}))
    with pytest.raises(ValueError, match=r"reward\.version: '1' there, '2' now"):
        train_grpo(grpo, other)
    prompts = (data / "prompts.txt").read_text()
    (data / "prompts.txt").write_text(prompts.replace("red", "pink"))
    with pytest.raises(ValueError, match=r"data\.content: "):
        train_grpo(grpo, FirstChannel())
