"""The likelihoods of preference data. Pure functions; every loss is per comparison, unreduced.

Shapes: ``B`` comparisons of up to ``K`` candidates; ``mask`` (B, K) is true where there is one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["all_equal", "best_then_worst", "bradley_terry", "centring"]

_EXCLUDED = float("-inf")


def bradley_terry(margin: Tensor, target: Tensor | float = 1.0) -> Tensor:
    """-y log s(d) - (1 - y) log s(-d), the Bradley-Terry likelihood of a comparison, in nats.

    Args:
        margin: d = r(chosen) - r(rejected), any shape.
        target: y, the share of votes for the chosen: 3 votes against 2 are 0.6, never 1.
    """
    return -target * F.logsigmoid(margin) - (1.0 - target) * F.logsigmoid(-margin)


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
