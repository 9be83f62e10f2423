"""Ten steps of each objective on a small Qwen-Image: the batches, and the loops that take them.

test_golden.py takes them in one process by a plain loop, launched_runs.py in two by the engine.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from align.config import TrainConfig
from align.engine import BatchPlan, Engine, make_accelerator
from align.mmdit.adapters.base import Conditioning
from align.mmdit.adapters.qwen_image import QwenImageAdapter
from align.mmdit.flow import seeded_noise_batch
from align.objectives.diffusion_dpo import DiffusionDPO, PairBatch, pair_errors
from align.objectives.flow_grpo import FlowGRPO, TransitionBatch
from align.objectives.listwise import KTO, ListBatch, PlackettLuce, list_errors
from align.objectives.matching import AWM, DiffusionNFT, SampleBatch, sample_velocity
from align.objectives.sft import SFT, SFTBatch
from align.policy import Policy

GOLDEN = Path(__file__).parents[1] / "data" / "golden_trajectories.json"
SIZE, SHAPE, STEPS = 8, (4, 8, 8), 10
IDS = [f"s{i}" for i in range(SIZE)]
LR, WEIGHT_DECAY = 3e-4, 0.01

Make = Callable[[Policy, int], Any]


@cache
def pristine() -> QwenImageTransformer2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return QwenImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(4, 6, 6),
        )  # fmt: skip


def make_policy(checkpointing: bool = False) -> Policy:
    transformer = copy.deepcopy(pristine())
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


# Batches ------------------------------------------------------------------------------------------


def latents(name: str, draw: int = 0) -> torch.Tensor:
    return seeded_noise_batch(0, [f"{name}/{i}" for i in IDS], [draw] * SIZE, SHAPE)


def conditioning() -> Conditioning:
    embeds = seeded_noise_batch(0, [f"prompt/{i}" for i in IDS], [0] * SIZE, (5, 32))
    mask = torch.arange(5) < torch.tensor([5, 3, 4, 5, 2, 5, 4, 3])[:, None]
    return Conditioning(embeds * mask[..., None], mask)


def sigma(step: int) -> torch.Tensor:
    return (torch.arange(SIZE) + 0.5 + 0.04 * step) / SIZE


ADVANTAGES = torch.tensor([1.2, -0.4, 0.3, -1.1, 0.8, -0.9, 0.6, -0.5])
ODD = torch.arange(SIZE) % 2 == 1


def sft(policy: Policy, step: int) -> SFTBatch:
    return SFTBatch(latents("a"), conditioning(), latents("n", step), sigma(step))


def pairs(**changes: Any) -> Make:
    """Pairs, with the reference's errors stored as a run stores them."""

    def make(policy: Policy, step: int) -> PairBatch:
        weights = torch.tensor([1.0, 0.5, 1.0, 2.0, 1.0, 1.0, 0.5, 0.0])
        batch = PairBatch(
            latents("a"), latents("b"), conditioning(), latents("n", step), sigma(step),
            weights=weights, **changes,
        )  # fmt: skip
        with torch.no_grad(), policy.reference():
            return replace(batch, reference_errors=pair_errors(policy, batch))

    return make


def lists(policy: Policy, step: int) -> ListBatch:
    whole = torch.stack([latents("a"), latents("b"), latents("c")], 1)
    mask = torch.arange(3) < torch.tensor([3, 3, 2, 3, 2, 3, 3, 2])[:, None]
    equal = torch.arange(SIZE) == 2
    batch = ListBatch(
        whole[mask], mask, conditioning(), latents("n", step), sigma(step), ~ODD, equal, ~ODD
    )
    with torch.no_grad(), policy.reference():
        return replace(batch, reference_errors=list_errors(policy, batch))


def thumbs(policy: Policy, step: int) -> ListBatch:
    mask = torch.ones(SIZE, 1, dtype=torch.bool)
    no = torch.zeros(SIZE, dtype=torch.bool)
    batch = ListBatch(
        latents("a"), mask, conditioning(), latents("n", step), sigma(step), no, no, ODD
    )
    with torch.no_grad(), policy.reference():
        return replace(batch, reference_errors=list_errors(policy, batch))


def steps(sde: str = "flow") -> Make:
    """The very steps that the untrained policy drew, so that it drifts away from them."""
    drew = FlowGRPO(sde=sde)

    def make(policy: Policy, step: int) -> TransitionBatch:
        x_t = latents("x")
        levels = torch.where(ODD, 0.7, 0.9), torch.where(ODD, 0.5, 0.7)
        batch = TransitionBatch(
            x_t, x_t, *levels, conditioning(), torch.zeros(SIZE), ADVANTAGES, torch.zeros_like(x_t)
        )
        with torch.no_grad(), policy.reference():
            mean, std = drew.step(policy, batch)
            x_next = mean + std.view(-1, 1, 1, 1) * latents("z")
            batch = replace(batch, x_next=x_next, old_mean=mean)
            return replace(batch, old_log_prob=drew.log_prob(policy, batch))

    return make


def images(policy: Policy, step: int) -> SampleBatch:
    batch = SampleBatch(
        latents("a"), conditioning(), latents("n", step % 2), sigma(step % 2), ADVANTAGES,
        torch.arange(SIZE) != 3, latents("a"),
    )  # fmt: skip
    with torch.no_grad(), policy.reference():
        return replace(batch, old_velocity=sample_velocity(policy, batch))


REGION = (torch.arange(8) < 5).float().expand(SIZE, 1, 8, 8)
CASES: dict[str, tuple[Any, Make]] = {
    "sft": (SFT(), sft),
    "dpo": (DiffusionDPO(beta=100.0), pairs()),
    "dpo_anchored": (DiffusionDPO(beta=100.0, anchor_weight=1.0, label_smoothing=0.1), pairs()),
    "hinge": (DiffusionDPO(beta=20.0, loss_type="hinge", rejected_weight=0.8), pairs()),
    "ipo": (DiffusionDPO(beta=20.0, loss_type="ipo"), pairs()),
    "ties": (
        DiffusionDPO(beta=100.0, tie_threshold=0.3),
        pairs(ties=ODD, label_smoothing=torch.linspace(0, 0.3, SIZE)),
    ),
    "region": (DiffusionDPO(beta=100.0, sft_weight=0.1), pairs(region=REGION)),
    "prior_noise": (DiffusionDPO(beta=100.0), pairs(rejected_noise=latents("m"))),
    "plackett_luce": (PlackettLuce(50.0, anchor_weight=0.5), lists),
    "kto": (KTO(50.0, 0.1, 1.0, 1.5), thumbs),
    "flow_grpo": (FlowGRPO(clip_range=0.5, beta=0.1), steps()),
    "grpo_guard": (FlowGRPO(clip_range=2.0, variant="guard", sde="cps"), steps("cps")),
    "flow_dppo": (FlowGRPO(clip_range=1.0, variant="dppo", sde="dance"), steps("dance")),
    "nft": (DiffusionNFT(strength=0.5, beta=0.1), images),
    "awm": (AWM(clip_range=5.0, beta=0.1, weighting="sigma"), images),
}
"""Online DPO is ``dpo`` with a live reference."""
HAVE_STORED_ERRORS = (
    "dpo", "hinge", "ipo", "ties", "region", "prior_noise", "dpo_anchored", "plackett_luce", "kto",
)  # fmt: skip


def live(make: Make) -> Make:
    """The same batches with a reference that is computed when it is asked for."""
    return lambda policy, step: replace(make(policy, step), reference_errors=None)


def part_of(batch: Any, places: Sequence[int]) -> Any:
    """The samples ``places`` of a batch, as a micro-batch holds them."""
    part = replace(batch, **{f.name: _rows(getattr(batch, f.name), places) for f in fields(batch)})
    if isinstance(batch, ListBatch):
        of_list = batch.mask.nonzero()[:, 0]
        chosen = torch.isin(of_list, torch.tensor(list(places)))
        part = replace(part, latents=batch.latents[chosen])
    return part


def _rows(value: Any, places: Sequence[int]) -> Any:
    if isinstance(value, Conditioning):
        return value.select(list(places)).trim()
    if isinstance(value, torch.Tensor) and len(value) == SIZE:
        return value[list(places)]
    return value


def assert_follows(found: list[list[float]], expected: list[list[float]]) -> None:
    """Within 1e-5 of the first step's loss and gradient norm, and 1e-3 of the others'."""
    for step, (row, other) in enumerate(zip(found, expected, strict=True)):
        tolerance = 1e-5 if step == 0 else 1e-3
        assert row == pytest.approx(other, rel=tolerance, abs=1e-6), step


# Loops --------------------------------------------------------------------------------------------


def trajectory(policy: Policy, objective: Any, make: Make, micro: int = SIZE) -> list[list[float]]:
    """Loss and gradient norm of each of ten steps of torch's AdamW."""
    policy.transformer.train()
    parameters = policy.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=WEIGHT_DECAY)
    rows = []
    for step in range(STEPS):
        batch = make(policy, step)
        optimizer.zero_grad()
        total = 0.0
        for start in range(0, SIZE, micro):
            part = part_of(batch, range(start, start + micro))
            loss = objective.loss(policy, part).loss * micro / SIZE
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        optimizer.step()
        rows.append([total, norm.item()])
    return rows


def launched_trajectory(
    config: TrainConfig, objective: Any, make: Make, micro: int, checkpointing: bool
) -> list[list[float]]:
    """The same by the engine, on the processes of this launch."""
    engine = Engine(config, make_accelerator(config))
    policy = make_policy(checkpointing)
    plan = BatchPlan.make(SIZE, micro, engine.world, engine.rank)
    policy.transformer = engine.prepare(policy.transformer, plan.accumulation, plan.micro)
    rows = []
    for step in range(STEPS):
        batch = make(policy, step)
        parts = [part_of(batch, places) for places in plan.split(range(SIZE))]
        found = engine.train_step(step + 1, parts, lambda part: objective.loss(policy, part))
        rows.append([found["loss"], found["grad_norm"]])
    return rows
