"""A LoRA's base in 8 or 4 bits: published levels, exact widening, no wide weight kept, a run."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig
from run_data import dpo_config, losses, write_data
from torch import nn

from align.ledger import ModelShape
from align.mmdit.blocks import BlockSettings
from align.mmdit.quantized import NF4, QuantizedLinear, dequantize, quantize, quantize_blocks
from align.offline import train_dpo
from align.plan import WIDENING
from align.policy import Policy
from annotate.settings import ConfigError
from benchmarks.cpu import LiveBytes, Traffic

SIGMA = torch.tensor([0.9, 0.5, 0.1])


def seeded(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_the_levels_are_the_quantiles_that_define_them():
    """arXiv 2305.14314, equation 4: asymmetric, so that zero is a level."""
    offset = (1 - 1 / 32 + 1 - 1 / 30) / 2

    def half(count: int) -> list[float]:
        edges = torch.linspace(offset, 0.5, count + 1, dtype=torch.float64)[:-1]
        return torch.special.ndtri(edges).tolist()

    levels = torch.tensor(sorted([*half(8), 0.0, *(-x for x in half(7))]))
    assert torch.tensor(NF4).tolist() == pytest.approx((levels / levels.max()).tolist(), abs=1e-6)


def test_four_bits_give_back_the_levels_and_take_the_nearest():
    levels = torch.tensor(NF4)
    exact = (levels.repeat(8, 4) * torch.arange(1.0, 9.0)[:, None]).contiguous()
    codes, scales = quantize(exact, "nf4")
    assert (codes.dtype, codes.numel(), scales.numel()) == (torch.uint8, 256, 8)
    assert torch.equal(dequantize(codes, scales, (8, 64), torch.float32), exact)
    assert codes[0] == 0x01
    weight = seeded(32, 128)
    found = dequantize(*quantize(weight, "nf4"), (32, 128), torch.float32)
    scale = weight.view(-1, 64).abs().amax(1, keepdim=True)
    normed = (weight.view(-1, 64) / scale).flatten()
    nearest = levels[(normed[:, None] - levels).abs().argmin(1)].view(-1, 64) * scale
    torch.testing.assert_close(found, nearest.view(32, 128), atol=1e-6, rtol=0)
    assert not dequantize(*quantize(torch.zeros(1, 64), "nf4"), (1, 64), torch.float32).any()
    with pytest.raises(ValueError, match=r"blocks of 64 weights, got \(3, 5\)"):
        quantize(torch.zeros(3, 5), "nf4")


def test_eight_bits_err_by_a_sixteenth_at_most():
    weight = seeded(32, 128) * torch.logspace(-3, 3, 32)[:, None]
    weight[0] = 0
    codes, scales = quantize(weight, "fp8")
    assert (codes.dtype, scales.shape) == (torch.uint8, (32, 1))
    found = dequantize(codes, scales, (32, 128), torch.float32)
    largest = weight.abs().amax(1, keepdim=True)
    assert ((found - weight).abs() <= weight.abs() / 16 + largest * 2**-18).all()
    again, _ = quantize(found, "fp8")
    assert torch.equal(again[1:], codes[1:])


@pytest.mark.parametrize("kind", ["fp8", "nf4"])
def test_a_layer_is_its_widened_twin_and_keeps_no_wide_weight(kind):
    linear = nn.Linear(256, 512).requires_grad_(False)
    layer = QuantizedLinear(linear, kind)
    twin = copy.deepcopy(linear)
    twin.weight.copy_(layer.weight)
    x = seeded(4, 256).requires_grad_()
    with LiveBytes([x, *layer.parameters(), *layer.buffers()]) as live:
        out = layer(x)
    assert live.count() == out.nbytes
    assert torch.equal(out, twin(x))
    weight = seeded(4, 512)
    (found,), (expected,) = (torch.autograd.grad((y * weight).sum(), [x]) for y in (out, twin(x)))
    assert torch.equal(found, expected)
    size = sum(b.nbytes for b in layer.buffers()) / linear.weight.numel()
    assert size == {"fp8": 1 + 4 / 256, "nf4": 0.5 + 4 / 64}[kind]


@pytest.mark.parametrize("kind", ["fp8", "nf4"])
def test_the_plan_knows_a_quantised_base(adapter, tiny_folder, kind):
    """Its bytes, and the traffic of widening it."""
    model = quantize_blocks(copy.deepcopy(adapter.transformer), kind, "cpu")
    held = [*model.parameters(), *model.buffers()]
    shape = ModelShape.of(str(tiny_folder))
    assert shape.frozen_bytes(4, kind) == sum(x.nbytes for x in held)
    layers = [m for m in model.transformer_blocks.modules() if isinstance(m, QuantizedLinear)]
    assert sum(m.in_features * m.out_features for m in layers) == shape.linear_weights
    wide = (512, 1024)
    codes, scales = quantize(seeded(*wide), kind)
    with Traffic() as traffic:
        dequantize(codes, scales, wide, torch.bfloat16)
    assert traffic.bytes / (512 * 1024) == pytest.approx(WIDENING[kind], rel=0.03)


@pytest.mark.parametrize("kind", ["fp8", "nf4"])
@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_a_policy_on_a_quantised_base_has_its_reference_and_gradients(
    adapter, cond, noise, nudge, kind, recompute
):
    model = quantize_blocks(copy.deepcopy(adapter.transformer), kind, "cpu")
    with torch.no_grad():
        wide, base = (adapter.velocity(m, noise, SIGMA, cond) for m in (adapter.transformer, model))
    assert 0 < (base - wide).norm() / wide.norm() < {"fp8": 0.06, "nf4": 0.25}[kind]
    settings = BlockSettings("joint", recompute)
    policy = Policy(adapter, model, lora=LoraConfig(r=4), blocks=settings)
    nudge(policy.trainable_parameters(), 0.02)
    with policy.reference():
        found = policy.velocity(noise, SIGMA, cond)
    torch.testing.assert_close(found, base, atol=1e-5, rtol=1e-4)
    policy.velocity(noise, SIGMA, cond).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in policy.trainable_parameters())


def test_a_run_on_four_bits_trains(untrained_folder, tmp_path):
    data = write_data(tmp_path / "data")
    settings = {
        "lora": {"rank": 4}, "quantize": "nf4", "dtype": "bfloat16", "mixed_precision": "bf16",
        "optimizer": {"lr": 1e-3}, "save_every": 4, "reference": {"draws": 1}, "max_steps": 8,
        "validation": {"every": 8, "draws": 2, "fraction": 0.2}, "micro_batch_size": 4,
        "objective": {"beta": 200},
    }  # fmt: skip
    train_dpo(dpo_config(data, untrained_folder, tmp_path / "run", **settings))
    rows = losses(tmp_path / "run")
    assert rows[8]["loss"] < rows[1]["loss"] == pytest.approx(0.6931, abs=0.02)
    with pytest.raises(ConfigError, match="for the frozen base of a LoRA, and lora is null"):
        dpo_config(data, untrained_folder, tmp_path, quantize="nf4")
