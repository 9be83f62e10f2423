"""A whole run with small optimizer states, released gradients and joint blocks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from run_data import losses, sft_config, write_data

from align.checkpoint import read_json
from align.offline import train_sft

SETTINGS = {
    "optimizer": {
        "type": "adam8bit",
        "weights": "split",
        "lr": 1e-3,
        "gradient_release": True,
        "max_grad_norm": 0,
    },
    "blocks": "joint",
    "gradient_checkpointing": "selective",
    "max_steps": 6,
    "save_every": 3,
    "validation": {"every": 0},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data")


def test_it_learns_and_continues_to_the_bit(data, untrained_folder, tmp_path):
    config = sft_config(data, untrained_folder, tmp_path / "run", **SETTINGS)
    train_sft(config)
    rows = losses(tmp_path / "run")
    assert all(row["grad_norm"] > 0 for row in rows.values())
    assert "attention native" in read_json(tmp_path / "run" / "run.json")["blocks"]
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "final")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-00000006")
    train_sft(config.model_copy(update={"output_dir": tmp_path / "again"}))
    assert losses(tmp_path / "again") == rows
    plain = {k: v for k, v in SETTINGS.items() if k not in ("blocks", "gradient_checkpointing")}
    plain |= {"optimizer": {"lr": 1e-3, "max_grad_norm": 0}, "max_steps": 3}
    train_sft(sft_config(data, untrained_folder, tmp_path / "plain", **plain))
    for step, row in losses(tmp_path / "plain").items():
        assert rows[step]["loss"] == pytest.approx(row["loss"], rel=0.03), step


def test_release_and_accumulation_exclude_each_other(data, untrained_folder, tmp_path):
    config = sft_config(data, untrained_folder, tmp_path / "run", micro_batch_size=1, **SETTINGS)
    with pytest.raises(ValueError, match="one micro-batch a step, got 1 and 4"):
        train_sft(config)
