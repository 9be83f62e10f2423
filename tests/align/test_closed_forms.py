"""Each whole loss, from latents to scalar, against its formula written anew in numpy: float64,
1e-10, gradients by finite differences. The policy is linear, and float64 too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from align.mmdit.adapters.base import Conditioning
from align.objectives.diffusion_dpo import DiffusionDPO, PairBatch
from align.objectives.flow_grpo import FlowGRPO, TransitionBatch
from align.objectives.listwise import KTO, ListBatch, PlackettLuce
from align.objectives.matching import AWM, DiffusionNFT, SampleBatch
from align.objectives.sft import SFT, SFTBatch
from align.sde import SDE_KINDS, gaussian_log_prob, sde_step

SHAPE, D = (2, 3, 3), 18
WEIGHTS, REFERENCE = (0.8, -0.3, 0.1), (0.7, -0.2, 0.05)
BETA = 6.0


class Linear:
    """``v = a x_t + b sigma + c``, and the same with other numbers as its reference."""

    def __init__(self, weights: torch.Tensor) -> None:
        self.weights = weights
        self._current = weights

    def velocity(self, x_t: torch.Tensor, sigma: torch.Tensor, cond: Any) -> torch.Tensor:
        a, b, c = self._current
        return a * x_t + b * sigma.view(-1, 1, 1, 1) + c

    @contextmanager
    def reference(self) -> Iterator[None]:
        self._current = torch.tensor(REFERENCE, dtype=torch.float64)
        with torch.no_grad():
            yield
        self._current = self.weights


def draw(seed: int, count: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *SHAPE, generator=generator, dtype=torch.float64)


COND = Conditioning(torch.zeros(4, 1, 1))
SIGMA = torch.tensor([0.2, 0.45, 0.7, 0.9], dtype=torch.float64)
SAMPLE_WEIGHTS = torch.tensor([1.0, 0.5, 2.0, 0.0], dtype=torch.float64)
ODD = torch.arange(4) % 2 == 1
REGION = (draw(9)[:, :1] > 0).double()


# The formulas -------------------------------------------------------------------------------------


def v(x: Any, sigma: float, weights: tuple[float, ...]) -> Any:
    return weights[0] * x + weights[1] * sigma + weights[2]


def error(x_0: Any, noise: Any, sigma: float, weights: Any, region: Any = 1.0) -> float:
    x_t = (1 - sigma) * x_0 + sigma * noise
    squares = (v(x_t, sigma, weights) - (noise - x_0)) ** 2 * region
    return float(squares.sum() / (np.ones_like(x_0) * region).sum())


def reward(x_0: Any, noise: Any, sigma: float, region: Any = 1.0) -> float:
    here, there = (error(x_0, noise, sigma, w, region) for w in (WEIGHTS, REFERENCE))
    return -BETA / 2 * (here - there)


def nll(x: float) -> float:
    """``-log sigmoid(x)``."""
    return math.log(1 + math.exp(-x))


Pair = tuple[float, float, float, int]
"""r(chosen), r(rejected), e(chosen), its place."""


def pairs_by(batch: PairBatch, loss: Callable[[Pair], float]) -> float:
    total = 0.0
    for i, sigma in enumerate(batch.sigma.tolist()):
        chosen, rejected, noise = (
            t[i].numpy() for t in (batch.chosen, batch.rejected, batch.noise)
        )
        other = noise if batch.rejected_noise is None else batch.rejected_noise[i].numpy()
        region = 1.0 if batch.region is None else batch.region[i].numpy()
        first = reward(chosen, noise, sigma, region)
        second = reward(rejected, other, sigma, region)
        pair = (first, second, error(chosen, noise, sigma, WEIGHTS, region), i)
        total += float(SAMPLE_WEIGHTS[i]) * loss(pair) / 4
    return total


def lists_by(batch: ListBatch, loss: Callable[[list[float], int], float]) -> float:
    total, start = 0.0, 0
    for i, size in enumerate(batch.mask.sum(1).tolist()):
        images = batch.latents[start : start + size].numpy()
        rewards = [reward(x, batch.noise[i].numpy(), float(batch.sigma[i])) for x in images]
        total += loss(rewards, i) / 4
        start += size
    return total


def plackett_luce(rewards: list[float], i: int) -> float:
    e = [math.exp(r) for r in rewards]
    if bool(LISTS.equal[i]):
        return -sum(math.log(x / sum(e)) for x in e) / len(e) - math.log(len(e))
    if bool(LISTS.complete[i]):
        loss = -sum(math.log(e[k] / sum(e[k:])) for k in range(len(e)))
    else:
        worst = [1 / x for x in e[1:]]
        loss = -math.log(e[0] / sum(e)) - math.log(worst[-1] / sum(worst))
    return loss + 0.7 * max(0.0, -rewards[0] - 0.01)


def gaussian_step(x: Any, sigma: float, after: float, weights: Any, kind: str) -> tuple[Any, float]:
    """From the SDE itself: ``dx = (v - s^2 / 2 score) dt + s dw``, with the score of
    ``N((1 - sigma) x_0, sigma^2)`` at the ``x_0`` that the velocity points at."""
    a, velocity = 0.7, v(x, sigma, weights)
    x_0, noise = x - sigma * velocity, x + (1 - sigma) * velocity
    if kind == "cps":
        std = after * math.sin(a * math.pi / 2)
        return (1 - after) * x_0 + math.sqrt(after**2 - std**2) * noise, std
    s = a if kind == "dance" else a * math.sqrt(sigma / (1 - sigma))
    score = -(x - (1 - sigma) * x_0) / sigma**2
    return x + (velocity - s**2 / 2 * score) * (after - sigma), s * math.sqrt(sigma - after)


OLD = (0.5, 0.1, -0.2)


def steps_by(batch: TransitionBatch, kind: str, variant: str, clip: float, beta: float) -> float:
    """As published, with log-probabilities averaged over D, times ``sqrt(D)``."""
    total = 0.0
    for i, sigma in enumerate(batch.sigma.tolist()):
        after = float(batch.sigma_next[i])
        x, x_next, A = batch.x_t[i].numpy(), batch.x_next[i].numpy(), float(batch.advantages[i])
        mean, k = gaussian_step(x, sigma, after, WEIGHTS, kind)
        old_mean, _ = gaussian_step(x, sigma, after, OLD, kind)
        reference, _ = gaussian_step(x, sigma, after, REFERENCE, kind)
        log_ratio = (((x_next - old_mean) ** 2 - (x_next - mean) ** 2) / (2 * k**2)).mean()
        moved = ((mean - old_mean) ** 2).mean() / (2 * k**2)
        if variant == "guard":
            log_ratio = (log_ratio + moved) * k
        ratio = math.exp(log_ratio)
        clipped = min(max(ratio, math.exp(-clip / D)), math.exp(clip / D))
        # Minus the constant that makes the loss 0 at ratio 1; it has no gradient.
        loss = max(-A * (ratio - 1), -A * (clipped - 1))
        if variant == "dppo":
            masked = moved >= clip / D and A * (ratio - 1) > 0
            loss = 0.0 if masked else -A * (ratio - 1)
        if variant == "guard":
            loss /= sigma - after
        kl = ((mean - reference) ** 2).sum() / (2 * k**2)
        total += (math.sqrt(D) * loss + beta * kl / math.sqrt(D)) / 4
    return total


def nft(batch: SampleBatch, b: float, limit: float, beta: float) -> float:
    total = 0.0
    for i, sigma in enumerate(batch.sigma.tolist()):
        x_0, noise, old = (t[i].numpy() for t in (batch.latents, batch.noise, batch.old_velocity))
        x_t = (1 - sigma) * x_0 + sigma * noise
        here, reference = v(x_t, sigma, WEIGHTS), v(x_t, sigma, REFERENCE)
        r = min(1.0, max(0.0, float(batch.advantages[i]) / (2 * limit) + 0.5))
        loss = beta * ((here - reference) ** 2).mean()
        for share, towards in ((r, b * here + (1 - b) * old), (1 - r, (1 + b) * old - b * here)):
            gap = x_t - sigma * towards - x_0
            loss += limit * share / b * (gap**2).mean() / abs(gap).mean()
        total += float(batch.keep[i]) * loss / 4
    return total


def awm(batch: SampleBatch, clip: float, beta: float) -> float:
    total = 0.0
    for i, sigma in enumerate(batch.sigma.tolist()):
        x_0, noise, old = (t[i].numpy() for t in (batch.latents, batch.noise, batch.old_velocity))
        A = float(batch.advantages[i])
        old_error = ((old - (noise - x_0)) ** 2).mean()
        ratio = math.exp(-sigma * (error(x_0, noise, sigma, WEIGHTS) - old_error))
        clipped = min(max(ratio, math.exp(-clip / D)), math.exp(clip / D))
        x_t = (1 - sigma) * x_0 + sigma * noise
        gap = v(x_t, sigma, WEIGHTS) - v(x_t, sigma, REFERENCE)
        loss = math.sqrt(D) * max(-A * (ratio - 1), -A * (clipped - 1)) + beta * (gap**2).mean()
        total += float(batch.keep[i]) * loss / 4
    return total


# Batches ------------------------------------------------------------------------------------------

PAIRS = PairBatch(draw(0), draw(1), COND, draw(2), SIGMA, weights=SAMPLE_WEIGHTS)
MASK = torch.arange(3) < torch.tensor([3, 3, 2, 3])[:, None]
LISTS = ListBatch(
    torch.stack([draw(0), draw(1), draw(3)], 1)[MASK], MASK, COND, draw(2), SIGMA,
    complete=~ODD, equal=torch.arange(4) == 3, desirable=ODD,
)  # fmt: skip
THUMBS = replace(LISTS, latents=draw(0), mask=torch.ones(4, 1, dtype=torch.bool))
IMAGES = SampleBatch(
    draw(0), COND, draw(2), SIGMA, torch.tensor([1.2, -0.7, 6.0, 1.0], dtype=torch.float64),
    torch.arange(4) != 3, draw(4),
)  # fmt: skip


def transitions(kind: str) -> TransitionBatch:
    x, sigma, after = draw(5), SIGMA, SIGMA - 0.15
    policy = Linear(torch.tensor(OLD, dtype=torch.float64))
    mean, std = sde_step(x, policy.velocity(x, sigma, None), sigma, after, 0.7, kind)
    x_next = mean + std.view(-1, 1, 1, 1) * draw(6)
    return TransitionBatch(
        x, x_next, sigma, after, COND, gaussian_log_prob(x_next, mean, std),
        torch.tensor([1.0, -0.5, 0.8, -1.1], dtype=torch.float64), mean,
    )  # fmt: skip


SMOOTHING = torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=torch.float64)


def tied(pair: Pair) -> float:
    m, alpha, eps = pair[0] - pair[1], 0.3, float(SMOOTHING[pair[3]])
    if bool(ODD[pair[3]]):
        return -math.log((math.exp(2 * alpha) - 1) * math.exp(-nll(m - alpha) - nll(-m - alpha)))
    return (1 - eps) * nll(m - alpha) + eps * nll(-m - alpha)


def thumb(rewards: list[float], i: int) -> float:
    gain = rewards[0] - 0.2
    return 1.5 * (1 - 1 / (1 + math.exp(gain))) if not ODD[i] else 1 - 1 / (1 + math.exp(-gain))


CASES: dict[str, tuple[Any, Any, float]] = {
    "sft": (
        SFT(),
        SFTBatch(draw(0), COND, draw(2), SIGMA, SAMPLE_WEIGHTS),
        sum(
            float(SAMPLE_WEIGHTS[i])
            / 4
            * error(draw(0)[i].numpy(), draw(2)[i].numpy(), float(SIGMA[i]), WEIGHTS)
            for i in range(4)
        ),
    ),
    "sigmoid": (DiffusionDPO(BETA), PAIRS, pairs_by(PAIRS, lambda p: nll(p[0] - p[1]))),
    "sum scale": (DiffusionDPO(None, BETA / D), PAIRS, pairs_by(PAIRS, lambda p: nll(p[0] - p[1]))),
    "cDPO": (
        DiffusionDPO(BETA, label_smoothing=0.2),
        PAIRS,
        pairs_by(PAIRS, lambda p: 0.8 * nll(p[0] - p[1]) + 0.2 * nll(p[1] - p[0])),
    ),
    "hinge": (
        DiffusionDPO(BETA, loss_type="hinge"),
        PAIRS,
        pairs_by(PAIRS, lambda p: max(0.0, 1 - p[0] + p[1])),
    ),
    "ipo": (
        DiffusionDPO(BETA, loss_type="ipo"),
        PAIRS,
        # Of h = m / beta, as the paper has it.
        pairs_by(PAIRS, lambda p: BETA**2 * ((p[0] - p[1]) / BETA - 1 / (2 * BETA)) ** 2),
    ),
    "anchored": (
        DiffusionDPO(BETA, rejected_weight=0.6, anchor_weight=1.3, sft_weight=0.4),
        PAIRS,
        pairs_by(PAIRS, lambda p: nll(p[0] - 0.6 * p[1]) + 1.3 * max(0.0, -p[0]) + 0.4 * p[2]),
    ),
    "ties": (
        DiffusionDPO(BETA, tie_threshold=0.3),
        replace(PAIRS, ties=ODD, label_smoothing=SMOOTHING),
        pairs_by(PAIRS, tied),
    ),
    "region": (
        DiffusionDPO(BETA),
        replace(PAIRS, region=REGION),
        pairs_by(replace(PAIRS, region=REGION), lambda p: nll(p[0] - p[1])),
    ),
    "prior noise": (
        DiffusionDPO(BETA),
        replace(PAIRS, rejected_noise=draw(7)),
        pairs_by(replace(PAIRS, rejected_noise=draw(7)), lambda p: nll(p[0] - p[1])),
    ),
    "plackett_luce": (
        PlackettLuce(BETA, anchor_weight=0.7, anchor_tolerance=0.01),
        LISTS,
        lists_by(LISTS, plackett_luce),
    ),
    "kto": (KTO(BETA, 0.2, undesirable_weight=1.5), THUMBS, lists_by(THUMBS, thumb)),
    "nft": (DiffusionNFT(0.5, 5.0, 0.3), IMAGES, nft(IMAGES, 0.5, 5.0, 0.3)),
    "awm": (AWM(0.4, 0.3, "sigma"), IMAGES, awm(IMAGES, 0.4, 0.3)),
}
for kind in SDE_KINDS:
    for variant, clip in (("grpo", 0.05), ("guard", 0.05), ("dppo", 0.02)):
        objective = FlowGRPO(clip_range=clip, beta=0.2, sde=kind, variant=variant)
        expected = steps_by(transitions(kind), kind, variant, clip, 0.2)
        CASES[f"{variant} {kind}"] = (objective, transitions(kind), expected)


@pytest.mark.parametrize("name", CASES)
def test_a_loss_is_its_formula_and_its_gradient_that_of_differences(name):
    objective, batch, expected = CASES[name]
    weights = torch.tensor(WEIGHTS, dtype=torch.float64, requires_grad=True)
    output = objective.loss(Linear(weights), batch)
    assert 0 < output.metrics.get("clip_ratio", 0.5) < 1  # both branches of a clip are met
    loss = output.loss
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-10)
    if name == "nft":  # its weights are held fixed in the gradient: see test_objectives_matching
        return
    assert torch.autograd.gradcheck(lambda w: objective.loss(Linear(w), batch).loss, weights)


@pytest.mark.parametrize("kind", SDE_KINDS)
def test_drawn_steps_have_the_mean_deviation_and_log_probability_that_are_told(kind):
    """Monte Carlo: 20,000 draws of one step, whose mean log-probability is minus its entropy."""
    count = 20_000
    batch = transitions(kind)
    policy = Linear(torch.tensor(OLD, dtype=torch.float64))
    x, sigma, after = (t[2:3] for t in (batch.x_t, batch.sigma, batch.sigma_next))
    mean, std = sde_step(x, policy.velocity(x, sigma, None), sigma, after, 0.7, kind)
    expected, deviation = gaussian_step(x[0].numpy(), 0.7, 0.55, OLD, kind)
    np.testing.assert_allclose(mean[0].numpy(), expected, rtol=0, atol=1e-10)
    assert std.item() == pytest.approx(deviation, rel=1e-10)
    drawn = mean + std.view(-1, 1, 1, 1) * draw(8, count)
    error_of_mean = 4 * deviation / math.sqrt(count)
    assert np.abs(drawn.mean(0).numpy() - expected).max() < error_of_mean
    assert drawn.std(0).mean().item() == pytest.approx(deviation, rel=0.01)
    log_prob = gaussian_log_prob(drawn, mean.expand_as(drawn), std.expand(count))
    entropy = D * (0.5 + 0.5 * math.log(2 * math.pi) + math.log(deviation))
    assert log_prob.mean().item() == pytest.approx(-entropy, abs=4 * math.sqrt(D / 2 / count))
