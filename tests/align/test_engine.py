"""One optimizer step, its batches, its average, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from run_data import dpo_config, losses, sft_config, write_data

from align.cli import main
from align.config import EMAConfig, OptimizerConfig
from align.ema import ShardedEMA
from align.engine import BatchPlan, learning_rate
from align.offline import train_dpo, train_sft
from align.replay import load_batches, replay
from align.stopping import Divergence
from align.watch_config import DivergenceConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data")


def test_the_learning_rate_warms_up_and_falls():
    config = OptimizerConfig(lr=1.0, warmup_steps=4, schedule="linear")
    rates = [learning_rate(config, step, 8) for step in range(1, 9)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.8, 0.6, 0.4, 0.2])
    cosine = config.model_copy(update={"schedule": "cosine"})
    assert learning_rate(cosine, 6, 7) == pytest.approx(0.5)
    constant = OptimizerConfig(lr=1.0)
    assert learning_rate(constant, 1, 8) == learning_rate(constant, 8, 8) == 1.0


def test_a_batch_is_shared_out_without_rest():
    plans = [BatchPlan.make(12, 3, processes=2, rank=rank) for rank in (0, 1)]
    assert [plan.accumulation for plan in plans] == [2, 2]
    parts = [part for plan in plans for part in plan.split(range(12))]
    assert [list(part) for part in parts] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    with pytest.raises(ValueError, match="batch_size 12 cannot be shared by 5"):
        BatchPlan.make(12, None, processes=5, rank=0)
    with pytest.raises(ValueError, match="micro_batch_size 4 does not divide the 6"):
        BatchPlan.make(12, 4, processes=2, rank=0)


def test_eight_by_one_is_one_by_eight(data, untrained_folder, tmp_path):
    """The average, the clipping and the caption dropout included."""
    shared = {"batch_size": 8, "max_steps": 4, "save_every": 0, "validation": {"every": 0}}
    train_sft(sft_config(data, untrained_folder, tmp_path / "one", **shared))
    train_sft(sft_config(data, untrained_folder, tmp_path / "eight", micro_batch_size=1, **shared))
    one, eight = losses(tmp_path / "one"), losses(tmp_path / "eight")
    for step in range(1, 5):
        assert eight[step] == pytest.approx(one[step], abs=1e-5)


def test_the_average_is_that_of_the_formula_and_is_put_off_again():
    weight = torch.nn.Parameter(torch.zeros(2))
    ema = ShardedEMA({"weight": weight}, EMAConfig(decay=0.9, warmup=False))
    for value in (1.0, 2.0):
        weight.data.fill_(value)
        ema.update()
    with ema.applied():
        assert weight.tolist() == pytest.approx([0.29, 0.29])
    assert weight.tolist() == [2.0, 2.0]
    other = ShardedEMA({"weight": weight}, EMAConfig(decay=0.9, warmup=False))
    other.load_state_dict(ema.state_dict())
    with other.applied():
        assert weight.tolist() == pytest.approx([0.29, 0.29])


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    data, untrained_folder, tmp_path
):
    config = sft_config(
        data,
        untrained_folder,
        tmp_path / "run",
        optimizer={"lr": 1e30, "max_grad_norm": 0},
        save_every=1,
        ema=None,
        validation={"every": 0},
    )
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step 2 \(lr 1e\+30\)"):
        train_sft(config)
    kept = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert kept == ["step-00000001"]
    step, (batch,) = load_batches(tmp_path / "run" / "diverged-step-00000002-0.pt")
    assert (step, len(batch.latents), len(batch.sigma), len(batch.cond)) == (2, 4, 4, 4)


def test_a_spike_is_let_pass_and_gradients_that_stay_large_are_told():
    config = DivergenceConfig(factor=10, steps=2, window=4)
    watch = Divergence(config)
    norms = [100.0, 1.0, 0.0, 2.0, 50.0, 1.0, 40.0, 1.0]
    assert [watch.observe(norm) for norm in norms] == [None] * 8
    taken_up = Divergence(config)
    taken_up.load_state_dict(watch.state_dict())
    for each in (watch, taken_up):
        assert [each.observe(norm) for norm in (300.0, 700.0)] == [None, 205.0]
    assert Divergence(DivergenceConfig(factor=0)).observe(1e30) is None


def test_gradients_that_stay_large_stop_the_run_and_the_step_is_replayed(
    data, untrained_folder, tmp_path, capsys
):
    """The step of the newest checkpoint is spoilt, so that its weights are those of the replay."""
    config = dpo_config(
        data, untrained_folder, tmp_path / "run", max_steps=6, save_every=1, micro_batch_size=2,
        lora={"rank": 4}, divergence={"factor": 1e-3, "steps": 2, "window": 4},
        objective={"beta": 50, "auto_beta": {}},
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"norm is [\d.]+, above [\d.e-]+ once more at step 4"):
        train_dpo(config)
    assert max(losses(config.output_dir)) == 3
    path = tmp_path / "run" / "diverged-step-00000004-0.pt"
    step, checkpoint, rows = replay(path)
    assert (step, checkpoint, len(rows)) == (4, 3, 2)
    assert main(["replay", str(path)]) == 0
    assert "step 4, 2 micro-batches, weights of checkpoint 3" in capsys.readouterr().out
    whole = path.read_bytes()
    for part in (b"", b"no batch at all", whole[: len(whole) // 2]):
        path.write_bytes(part)
        assert main(["replay", str(path)]) == 2
        assert f"{path} is damaged, or holds no kept batch: " in capsys.readouterr().err
    again = config.model_copy(update={"divergence": DivergenceConfig(factor=0)})
    again = again.model_copy(update={"output_dir": tmp_path / "again"})
    train_dpo(again)
    expected = losses(again.output_dir)[4]
    for name in ("loss", "rewards/margins", "error/chosen"):
        found = sum(row[name] for row in rows) / 2
        assert found == pytest.approx(expected[name], rel=1e-6), name


def test_bf16_training_follows_float32(data, untrained_folder, tmp_path):
    shared = {"max_steps": 3, "save_every": 0, "validation": {"every": 0}}
    train_sft(sft_config(data, untrained_folder, tmp_path / "fp32", **shared))
    config = sft_config(
        data, untrained_folder, tmp_path / "bf16", mixed_precision="bf16",
        gradient_checkpointing=True, **shared,
    )  # fmt: skip
    train_sft(config)
    full, half = losses(tmp_path / "fp32"), losses(tmp_path / "bf16")
    for step in full:
        assert half[step]["loss"] == pytest.approx(full[step]["loss"], rel=0.02)
        assert half[step]["loss"] != full[step]["loss"]
