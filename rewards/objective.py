"""What a batch of judgements costs under each loss: machinery around `rewards.losses`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rewards.config import Loss
from rewards.losses import (
    all_bad,
    all_equal,
    best_then_worst,
    bradley_terry,
    centring,
    gaussian_bradley_terry,
    implied_pairs,
    mean_over_pairs,
    plackett_luce,
    rao_kupper,
)
from rewards.models.preference import PreferenceOutput

__all__ = ["ALL_BAD", "NONE", "SetLoss", "preference_loss"]

NONE = -1
"""As a position of best or worst: not named. Both are, for "all equal"."""
ALL_BAD = -2
"""As the positions of best and worst."""


@dataclass(frozen=True, slots=True)
class SetLoss:
    nll: Tensor
    """(M, P) per member and judgement, in nats."""
    centring: Tensor
    """(M, P) squared mean scores of the candidates."""
    correct: Tensor
    """(P,) whether the members' mean score ranks best over worst; NaN where one is not named."""


@dataclass(frozen=True, slots=True)
class _Judged:
    """Judgements of one kind by every member: M P' rows of up to K candidates."""

    scores: Tensor
    """(B, K)"""
    mask: Tensor
    """(B, K)"""
    best: Tensor
    """(B,)"""
    worst: Tensor
    """(B,)"""
    variance: Tensor | None
    """(B, K) of each score, under ``gaussian``."""
    tie_log_odds: Tensor | None
    """(B,) of each judgement's question, under ``rao_kupper``."""


def preference_loss(
    outputs: PreferenceOutput, batch: Mapping[str, Tensor], loss: Loss = "plackett_luce"
) -> SetLoss:
    """Each judgement's likelihood, in the column of the question that it answers.

    Args:
        outputs: of `PreferenceModel`: logits (N, M, C), and what the loss needs besides.
        batch: of `trainer.SetCollator`.
        loss: as `rewards.config.RewardTrainConfig.loss`.
    """
    assert outputs.logits is not None
    logits = outputs.logits
    scores = _of_question(logits, batch)
    variance = outputs.variance if loss == "gaussian" else None
    spread = None if variance is None else _of_question(variance, batch)
    ties = outputs.tie_log_odds
    log_odds = ties[batch["question"]] if loss == "rao_kupper" and ties is not None else None
    num_members, mask = len(scores), batch["mask"]

    def of_members(values: Tensor) -> Tensor:
        return values.repeat(num_members, *[1] * (values.ndim - 1))

    def per_member(losses: Tensor) -> Tensor:
        return losses.unflatten(0, (num_members, -1))

    def select(rows: Tensor) -> _Judged:
        return _Judged(
            scores=scores[:, rows].flatten(0, 1),
            mask=of_members(mask[rows]),
            best=of_members(batch["best"][rows]),
            worst=of_members(batch["worst"][rows]),
            variance=None if spread is None else spread[:, rows].flatten(0, 1),
            tie_log_odds=None if log_odds is None else of_members(log_odds[rows]),
        )

    # Kinds are computed apart: a masked-out branch would still send NaN backwards.
    best, worst = batch["best"], batch["worst"]
    nll = scores.new_zeros(num_members, len(best))
    both = (best >= 0) & (worst >= 0)
    for rows, likelihood in (
        (both, _best_and_worst),
        ((best >= 0) & (worst == NONE), _best_alone),
        ((best == NONE) & (worst >= 0), _worst_alone),
        ((best == NONE) & (worst == NONE), _equal),
    ):
        if rows.any():
            nll[:, rows] = per_member(likelihood(select(rows), loss))
    if (bad := best == ALL_BAD).any():
        winners = _of_question(logits, batch, "anchors")[:, bad].flatten(0, 1)
        anchor = _mean_or_zero(winners, of_members(batch["anchor_mask"][bad]))
        judged = select(bad)
        nll[:, bad] = per_member(all_bad(judged.scores, judged.mask, anchor))
    correct = torch.full_like(nll[0], float("nan"))
    mean = scores.detach().mean(dim=0)[both]
    margin = mean.gather(1, best[both][:, None]) - mean.gather(1, worst[both][:, None])
    correct[both] = 0.5 + 0.5 * margin.squeeze(1).sign()
    return SetLoss(
        nll=nll,
        centring=per_member(centring(scores.flatten(0, 1), of_members(mask))),
        correct=correct,
    )


def _of_question(values: Tensor, batch: Mapping[str, Tensor], members: str = "members") -> Tensor:
    """(N, M, C) to (M, P, K): of each judgement's candidates, the column of its question."""
    column = batch["question"][:, None, None, None]
    gathered = values[batch[members]]  # (P, K, M, C)
    return gathered.gather(3, column.expand(*gathered.shape[:3], 1)).squeeze(3).permute(2, 0, 1)


def _best_and_worst(judged: _Judged, loss: Loss) -> Tensor:
    if loss == "plackett_luce":
        return best_then_worst(judged.scores, judged.mask, judged.best, judged.worst)
    return _pairwise(judged, loss)


def _best_alone(judged: _Judged, loss: Loss) -> Tensor:
    if loss == "plackett_luce":
        return plackett_luce(judged.scores, judged.mask, judged.best[:, None])
    return _pairwise(judged, loss)


def _worst_alone(judged: _Judged, loss: Loss) -> Tensor:
    if loss == "plackett_luce":
        return plackett_luce(-judged.scores, judged.mask, judged.worst[:, None])
    return _pairwise(judged, loss)


def _pairwise(judged: _Judged, loss: Loss) -> Tensor:
    """Mean over the implied pairs: a pick counts once, however many candidates it chose among."""
    pairs = implied_pairs(judged.mask, judged.best, judged.worst)
    margins = _margins(judged)
    if loss == "gaussian":
        losses = gaussian_bradley_terry(margins, _variances(judged))
    elif loss == "rao_kupper":
        assert judged.tie_log_odds is not None
        shares = margins.new_tensor([1.0, 0.0, 0.0]).expand(*margins.shape, 3)
        losses = rao_kupper(margins, judged.tie_log_odds[:, None, None], shares)
    else:
        losses = bradley_terry(margins)
    return mean_over_pairs(losses, pairs)


def _equal(judged: _Judged, loss: Loss) -> Tensor:
    if loss == "plackett_luce":
        return all_equal(judged.scores, judged.mask)
    mask, margins = judged.mask, _margins(judged)
    pairs = (mask[:, :, None] & mask[:, None, :]).triu(diagonal=1)
    if loss == "gaussian":
        losses = gaussian_bradley_terry(margins, _variances(judged), 0.5)
    elif loss == "rao_kupper":
        assert judged.tie_log_odds is not None
        shares = margins.new_tensor([0.0, 0.0, 1.0]).expand(*margins.shape, 3)
        losses = rao_kupper(margins, judged.tie_log_odds[:, None, None], shares)
    else:
        losses = bradley_terry(margins, 0.5)
    return mean_over_pairs(losses, pairs)


def _margins(judged: _Judged) -> Tensor:
    """(B, K, K): row's score less column's."""
    return judged.scores[:, :, None] - judged.scores[:, None, :]


def _variances(judged: _Judged) -> Tensor:
    """(B, K, K): of the margins."""
    assert judged.variance is not None
    return judged.variance[:, :, None] + judged.variance[:, None, :]


def _mean_or_zero(values: Tensor, mask: Tensor) -> Tensor:
    """(B, A) to (B,): the mean of what there is, or 0, the zero that centring pins."""
    return values.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1).clamp_min(1)
