"""Golden trajectories: ten steps of each objective on a small Qwen-Image, its losses and gradients.

``WRITE_GOLDEN=1 pytest tests/align/test_golden.py`` writes ``tests/data/golden_trajectories.json``
anew, for a change that is meant to change the numbers.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from align.mmdit.adapters.base import Conditioning
from align.mmdit.adapters.qwen_image import QwenImageAdapter
from align.mmdit.flow import seeded_noise_batch
from align.objectives.diffusion_dpo import DiffusionDPO, PairBatch, pair_errors
from align.objectives.flow_grpo import FlowGRPO, TransitionBatch
from align.objectives.listwise import KTO, ListBatch, PlackettLuce
from align.objectives.matching import AWM, DiffusionNFT, SampleBatch, sample_velocity
from align.objectives.sft import SFT, SFTBatch
from align.policy import Policy

GOLDEN = Path(__file__).parents[1] / "data" / "golden_trajectories.json"
SIZE, SHAPE, STEPS = 4, (4, 8, 8), 10
IDS = [f"s{i}" for i in range(SIZE)]
LEVELS = (torch.tensor([0.9, 0.7, 0.9, 0.7]), torch.tensor([0.7, 0.5, 0.7, 0.5]))


@pytest.fixture(scope="module")
def pristine() -> QwenImageTransformer2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return QwenImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(4, 6, 6),
        )  # fmt: skip


def make_policy(pristine: QwenImageTransformer2DModel, checkpointing: bool = False) -> Policy:
    transformer = copy.deepcopy(pristine)
    adapter = QwenImageAdapter(
        scheduler_config={},
        transformer=transformer,
        vae_config={"z_dim": 4, "temperal_downsample": [False, True, True]},
    )
    policy = Policy(adapter, transformer, reference="copy")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            # Off the reference, where the anchor has its corner and ratios are 1 by definition.
            parameter += 0.003 * torch.randn(parameter.shape, generator=generator)
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    return policy


def latents(name: str, draw: int = 0) -> torch.Tensor:
    return seeded_noise_batch(0, [f"{name}/{i}" for i in IDS], [draw] * SIZE, SHAPE)


def conditioning() -> Conditioning:
    embeds = seeded_noise_batch(0, [f"prompt/{i}" for i in IDS], [0] * SIZE, (5, 32))
    mask = torch.arange(5) < torch.tensor([5, 3, 4, 5])[:, None]
    return Conditioning(embeds * mask[..., None], mask)


def sigma(step: int) -> torch.Tensor:
    return (torch.arange(SIZE) + 0.5 + 0.04 * step) / SIZE


ADVANTAGES = torch.tensor([1.2, -0.4, 0.3, -1.1])


def sft(policy: Policy, step: int) -> SFTBatch:
    return SFTBatch(latents("a"), conditioning(), latents("n", step), sigma(step))


def pairs(policy: Policy, step: int) -> PairBatch:
    weights = torch.tensor([1.0, 0.5, 1.0, 2.0])
    batch = PairBatch(
        latents("a"), latents("b"), conditioning(), latents("n", step), sigma(step),
        weights=weights,
    )  # fmt: skip
    with torch.no_grad(), policy.reference():
        return replace(batch, reference_errors=pair_errors(policy, batch))


def live_pairs(policy: Policy, step: int) -> PairBatch:
    return replace(pairs(policy, step), reference_errors=None)


def lists(policy: Policy, step: int) -> ListBatch:
    flags = torch.tensor([True, False, False, True])
    whole = torch.stack([latents("a"), latents("b"), latents("c")], 1)
    mask = torch.arange(3) < torch.tensor([3, 3, 2, 3])[:, None]
    return ListBatch(
        whole[mask], mask, conditioning(), latents("n", step), sigma(step), flags, ~mask[:, 2],
        flags,
    )  # fmt: skip


def thumbs(policy: Policy, step: int) -> ListBatch:
    mask = torch.ones(SIZE, 1, dtype=torch.bool)
    return replace(lists(policy, step), latents=latents("a"), mask=mask)


def steps(policy: Policy, step: int) -> TransitionBatch:
    """The very steps that the untrained policy drew, so that it drifts away from them."""
    x_t = latents("x")
    batch = TransitionBatch(
        x_t, x_t, *LEVELS, conditioning(), torch.zeros(SIZE), ADVANTAGES, torch.zeros_like(x_t)
    )
    with torch.no_grad(), policy.reference():
        mean, std = FlowGRPO().step(policy, batch)
        batch = replace(batch, x_next=mean + std.view(-1, 1, 1, 1) * latents("z"), old_mean=mean)
        return replace(batch, old_log_prob=FlowGRPO().log_prob(policy, batch))


def images(policy: Policy, step: int) -> SampleBatch:
    keep = torch.tensor([True, True, True, False])
    batch = SampleBatch(
        latents("a"), conditioning(), latents("n", step % 2), sigma(step % 2), ADVANTAGES, keep,
        latents("a"),
    )  # fmt: skip
    with torch.no_grad(), policy.reference():
        return replace(batch, old_velocity=sample_velocity(policy, batch))


CASES: dict[str, tuple[Any, Callable[[Policy, int], Any]]] = {
    "sft": (SFT(), sft),
    "dpo": (DiffusionDPO(beta=100.0), pairs),
    "dpo_anchored": (DiffusionDPO(beta=100.0, anchor_weight=1.0, label_smoothing=0.1), pairs),
    "plackett_luce": (PlackettLuce(50.0, anchor_weight=0.5), lists),
    "kto": (KTO(50.0, 0.1, 1.0, 1.5), thumbs),
    "flow_grpo": (FlowGRPO(clip_range=0.5, beta=0.1), steps),
    "grpo_guard": (FlowGRPO(clip_range=2.0, variant="guard"), steps),
    "flow_dppo": (FlowGRPO(clip_range=1.0, variant="dppo"), steps),
    "nft": (DiffusionNFT(strength=0.5, beta=0.1), images),
    "awm": (AWM(clip_range=5.0, beta=0.1), images),
}


def part_of(batch: Any, index: int) -> Any:
    """One sample of a batch, as a micro-batch of one holds it."""
    if isinstance(batch, ListBatch):
        rows = batch.mask.nonzero()[:, 0] == index
        small = part_of(_Rows(batch), index)
        return replace(batch, **small | {"latents": batch.latents[rows]})
    if isinstance(batch, _Rows):
        names = [f.name for f in fields(batch.batch) if f.name != "latents"]
        return {name: _row(getattr(batch.batch, name), index) for name in names}
    return replace(batch, **{f.name: _row(getattr(batch, f.name), index) for f in fields(batch)})


class _Rows:
    def __init__(self, batch: ListBatch) -> None:
        self.batch = batch


def _row(value: Any, index: int) -> Any:
    if isinstance(value, Conditioning):
        return value.select([index]).trim()
    return value[index : index + 1] if isinstance(value, torch.Tensor) else value


def trajectory(policy: Policy, objective: Any, make: Any, accumulate: bool) -> list[list[float]]:
    """Loss and gradient norm of each of ten steps."""
    parameters = policy.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=3e-4, weight_decay=0.01)
    rows = []
    for step in range(STEPS):
        batch = make(policy, step)
        parts = [part_of(batch, i) for i in range(SIZE)] if accumulate else [batch]
        optimizer.zero_grad()
        total = 0.0
        for part in parts:
            loss = objective.loss(policy, part).loss / len(parts)
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        optimizer.step()
        rows.append([total, norm.item()])
    return rows


def assert_follows(found: list[list[float]], expected: list[list[float]], first: float) -> None:
    """Within ``first`` of the first step's numbers and 1e-3 of the others'."""
    for step, (row, other) in enumerate(zip(found, expected, strict=True)):
        tolerance = first if step == 0 else 1e-3
        assert row == pytest.approx(other, rel=tolerance, abs=1e-6), step


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_are_those_that_were_recorded(pristine, name):
    found = trajectory(make_policy(pristine), *CASES[name], accumulate=False)
    if os.environ.get("WRITE_GOLDEN"):
        known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        known[name] = [[float(f"{value:.9g}") for value in row] for row in found]
        GOLDEN.write_text(json.dumps(known, indent=1) + "\n")
    assert_follows(found, json.loads(GOLDEN.read_text())[name], first=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_one_at_a_time_is_all_at_once(pristine, name):
    found = trajectory(make_policy(pristine), *CASES[name], accumulate=True)
    assert_follows(found, json.loads(GOLDEN.read_text())[name], first=1e-4)


def test_a_live_reference_and_recomputed_activations_change_nothing(pristine):
    objective = CASES["dpo_anchored"][0]
    expected = json.loads(GOLDEN.read_text())["dpo_anchored"]
    live = trajectory(make_policy(pristine), objective, live_pairs, accumulate=False)
    assert_follows(live, expected, first=1e-5)
    recomputed = make_policy(pristine, checkpointing=True)
    recomputed.transformer.train()
    assert_follows(trajectory(recomputed, objective, pairs, False), expected, first=1e-5)
