"""Pretraining in miniature: both parts learn, and a stopped run goes on exactly."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from align.pretrain.config import PretrainConfig
from align.pretrain.run import pretrain
from annotate.settings import load_config
from rewards.lock import FolderInUseError, FolderLock

SMALL = [
    "bf16=false",
    "save_every=2",
    "autoencoder={steps: 4, decoder_steps: 2, batch_size: 2, crop: 64, lr: 0.002, "
    "decoder_lr: 0.001, edge_weight: 1, kl_weight: 0.0005, min_quality: 4}",
    "stages=[{name: one, size: 64, text: marks, min_quality: 4, perfect_share: 0.5, pool: 8, "
    "steps: 4, batch_size: 4, lr: 0.002}]",
]


def config(folder: Path) -> PretrainConfig:
    overrides = [*SMALL, f"output={folder / 'pipeline'}", f"run={folder / 'run'}"]
    return load_config(PretrainConfig, "configs/tiny/pretrain.yaml", overrides)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    pipeline = DiffusionPipeline.from_pretrained(folder / "pipeline")
    parts = (pipeline.transformer, pipeline.vae, pipeline.text_encoder)
    return {f"{i}.{k}": v for i, part in enumerate(parts) for k, v in part.state_dict().items()}


def test_a_run_resumes_to_the_same_pipeline(tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pretrain(config(whole))
    from align.pretrain import curriculum

    step = curriculum._StageTrainer.step

    def dies_at_three(self, index):
        if index == 3:
            raise KeyboardInterrupt
        return step(self, index)

    monkeypatch.setattr(curriculum._StageTrainer, "step", dies_at_three)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config(cut))
    monkeypatch.undo()
    refuse_what_cannot_go_on(cut)
    pretrain(config(cut))
    expected, found = weights(whole), weights(cut)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert (cut / "run" / "previews" / "000004.png").is_file()


def refuse_what_cannot_go_on(cut: Path) -> None:
    with FolderLock(cut / "run"), pytest.raises(FolderInUseError, match="in use by process"):
        pretrain(config(cut))
    other = config(cut).model_copy(update={"ema_decay": 0.5})
    with pytest.raises(ValueError, match=r"ema_decay: 0\.\d+ there, 0\.5 asked"):
        pretrain(other)
    state = cut / "run" / "curriculum.pt"
    whole = state.read_bytes()
    for damaged in (whole[:-100], b""):
        state.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"curriculum\.pt is damaged"):
            pretrain(config(cut))
    state.write_bytes(whole)


def test_the_curriculum_grows_and_purifies():
    stages = load_config(PretrainConfig, "configs/tiny/pretrain.yaml").stages
    assert len(stages) == 4
    assert [s.size for s in stages] == sorted(s.size for s in stages)
    assert [s.min_quality for s in stages] == sorted(s.min_quality for s in stages)
    assert [s.text for s in stages] == ["none", "marks", "glyphs", "layouts"]
