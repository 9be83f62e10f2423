"""The likelihoods of preference data. Pure functions; every loss is per comparison, unreduced.

Shapes: ``B`` comparisons of up to ``K`` candidates; ``mask`` (B, K) is true where there is one.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "all_bad",
    "all_equal",
    "best_then_worst",
    "bradley_terry",
    "centring",
    "gaussian_bradley_terry",
    "implied_pairs",
    "mean_over_pairs",
    "plackett_luce",
    "rao_kupper",
    "weighted_mean",
]

_EXCLUDED = float("-inf")


def bradley_terry(margin: Tensor, target: Tensor | float = 1.0) -> Tensor:
    """-y log s(d) - (1 - y) log s(-d), the Bradley-Terry likelihood of a comparison, in nats.

    Args:
        margin: d = r(chosen) - r(rejected), any shape.
        target: y, the share of votes for the chosen: 3 votes against 2 are 0.6, never 1.
    """
    return -target * F.logsigmoid(margin) - (1.0 - target) * F.logsigmoid(-margin)


def rao_kupper(margin: Tensor, log_odds: Tensor | float, shares: Tensor) -> Tensor:
    """The likelihood of win, loss and tie (Rao & Kupper 1967), in nats, margin's shape.

    P(win) = s(d - k), P(loss) = s(-d - k), P(tie) = (e^2k - 1) s(d - k) s(-d - k), which sum to 1.
    Without ties seen, k falls to 0 and this is Bradley-Terry's.

    Args:
        margin: d, any shape.
        log_odds: k > 0, how far apart two must be before one wins against the other at even odds;
            learned, one for each criterion, e.g. as the softplus of a parameter.
        shares: margin's shape + (3,), the votes' shares of win, loss and tie.
    """
    k = torch.as_tensor(log_odds, dtype=margin.dtype, device=margin.device)
    win, loss = F.logsigmoid(margin - k), F.logsigmoid(-margin - k)
    # log(e^2k - 1), without overflow for a large k nor cancellation for a small one.
    tie = win + loss + 2 * k + torch.log(-torch.expm1(-2 * k))
    return -(shares * torch.stack([win, loss, tie], dim=-1)).sum(dim=-1)


def gaussian_bradley_terry(
    margin: Tensor, variance: Tensor, target: Tensor | float = 1.0, num_nodes: int = 20
) -> Tensor:
    """Bradley-Terry where both scores are normal: -log E s(z), z ~ N(d, v), in nats.

    By Gauss-Hermite quadrature with ``num_nodes`` points: deterministic, and near enough to exact
    for v up to about 9. The expectation stands inside the logarithm, as the probability of what was
    seen. Outside it (as in HPSv3, arXiv 2508.03789) any variance would only ever cost, since log s
    is concave, and a model could never gain by doubting a comparison that it has wrong.

    Args:
        margin: d, mean score of the chosen minus that of the rejected, any shape.
        variance: v >= 0, the sum of both scores' variances, same shape.
        target: share of votes for the chosen.
    """
    # Nodes and weights for the weight exp(-x^2 / 2), normalised to those of N(0, 1).
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    x = torch.as_tensor(nodes, dtype=margin.dtype, device=margin.device)
    w = torch.as_tensor(weights, dtype=margin.dtype, device=margin.device)
    log_w = torch.log(w) - 0.5 * math.log(2 * math.pi)
    # Where v is 0 the root has no gradient: there nothing is spread, and nothing is to be learned.
    spread = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()[..., None] * x
    win = torch.logsumexp(log_w + F.logsigmoid(margin[..., None] + spread), dim=-1)
    loss = torch.logsumexp(log_w + F.logsigmoid(-margin[..., None] - spread), dim=-1)
    return -target * win - (1.0 - target) * loss


def plackett_luce(scores: Tensor, mask: Tensor, ranking: Tensor) -> Tensor:
    """Plackett-Luce likelihood of a ranking, best first, in nats (Luce 1959, Plackett 1975).

    The best is chosen among all by softmax(r), the next among the rest, and so on. A ranking of the
    first few says nothing about the order of the others.

    Args:
        scores: r, (B, K).
        mask: (B, K), true where there is a candidate.
        ranking: (B, R) positions, R <= K; -1 where a ranking is shorter.
    Returns:
        (B,)
    """
    left = mask
    total = scores.new_zeros(len(scores))
    for place in range(ranking.shape[1]):
        position = ranking[:, place]
        ranked = position >= 0
        index = position.clamp_min(0)
        # Rows that have ended take part with every candidate, so that nothing is infinite.
        among = torch.where(ranked[:, None], left, mask)
        total = total - torch.where(ranked, _pick(scores.masked_fill(~among, _EXCLUDED), index), 0)
        left = left & ~(F.one_hot(index, scores.shape[1]).bool() & ranked[:, None])
    return total


def best_then_worst(scores: Tensor, mask: Tensor, best: Tensor, worst: Tensor) -> Tensor:
    """Plackett-Luce likelihood of a best and a worst among 2 to 9 candidates, in nats.

    The best is chosen among all by softmax(r), then the worst among the others by softmax(-r)
    (Marley & Louviere 2005, sequential best-worst choice). With two candidates the second factor
    is 1 and the loss is Bradley-Terry's.

    Args:
        scores: r, (B, K).
        mask: (B, K), true where there is a candidate.
        best, worst: (B,) positions, different and both unmasked.
    Returns:
        (B,)
    """
    first = scores.masked_fill(~mask, _EXCLUDED)
    log_best = _pick(first, best)
    others = mask & ~F.one_hot(best, scores.shape[1]).bool()
    log_worst = _pick((-scores).masked_fill(~others, _EXCLUDED), worst)
    return -(log_best + log_worst)


def all_equal(scores: Tensor, mask: Tensor) -> Tensor:
    """KL(uniform || softmax(r)) over the candidates: 0 exactly when all scores are equal, in nats.

    Shapes as in `best_then_worst`. This is the soft label of "no winner" (each candidate equally
    likely to be the best), with its entropy taken off so that a perfect tie costs nothing.
    """
    log_p = scores.masked_fill(~mask, _EXCLUDED).log_softmax(dim=1)
    count = mask.sum(dim=1)
    mean_log_p = log_p.masked_fill(~mask, 0.0).sum(dim=1) / count
    return -mean_log_p - count.to(scores.dtype).log()


def all_bad(scores: Tensor, mask: Tensor, anchor: Tensor) -> Tensor:
    """Every candidate of an "all bad" stands below an anchor: mean of -log s(a - r), in nats; (B,).

    Such a pick orders nothing within its task. It says something across the tasks of its prompt:
    what was picked elsewhere is better than all of these.

    Args:
        anchor: a, (B,): the mean score of what was picked in the prompt's other tasks, or 0, the
            zero that `centring` pins, where there is none.
    """
    each = -F.logsigmoid(anchor[:, None] - scores)
    return each.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1)


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Mean by weight, e.g. the reliability of whoever judged; scalar.

    Raises:
        ValueError: a weight is negative, or none is positive.
    """
    if not bool((weights >= 0).all()) or not bool((weights > 0).any()):
        raise ValueError(f"weights must be at least 0 and one above it, got {weights.tolist()}")
    return (losses * weights).sum() / weights.sum()


def implied_pairs(mask: Tensor, best: Tensor, worst: Tensor) -> Tensor:
    """(B, K, K), true where the row's candidate beats the column's: best all, all the worst.

    Args:
        mask: (B, K), true where there is a candidate.
        best, worst: (B,) positions; -1 where one is not named.
    """
    place = torch.arange(mask.shape[1], device=mask.device)
    is_best, is_worst = place == best[:, None], place == worst[:, None]
    beats = is_best[:, :, None] | is_worst[:, None, :]
    apart = ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    return beats & mask[:, :, None] & mask[:, None, :] & apart


def mean_over_pairs(losses: Tensor, pairs: Tensor) -> Tensor:
    """(B, K, K) losses and which of them count, to the mean of each comparison, (B,).

    A pick of one among many implies pairs that are not independent; their mean counts it once.
    Averaged over annotators, this is the likelihood of the share of votes: `bradley_terry` is
    linear in its target.
    """
    return losses.masked_fill(~pairs, 0.0).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2))


def centring(scores: Tensor, mask: Tensor) -> Tensor:
    """Squared mean score of a comparison, which pins the zero that preferences leave free; (B,).

    For two candidates it is a quarter of TRL's ``center_rewards_coefficient`` term (Eisenstein et
    al. 2023, arXiv 2312.09244).
    """
    count = mask.sum(dim=1)
    return (scores.masked_fill(~mask, 0.0).sum(dim=1) / count).square()


def _pick(logits: Tensor, index: Tensor) -> Tensor:
    """log softmax(logits)[index], row by row."""
    chosen = logits.gather(1, index[:, None]).squeeze(1)
    return chosen - torch.logsumexp(logits, dim=1)
