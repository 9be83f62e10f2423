"""Losses of a preference margin, in float64 or float32, without a model.

The margin ``m = r_chosen - r_rejected`` is that of implicit rewards, in nats (`implicit_rewards`).
Every function takes and gives ``(B,)``.

==========  ===========================  =======================================================
loss_type   f(m)                         source
==========  ===========================  =======================================================
sigmoid     ``-log sigmoid(m)``          Diffusion-DPO, arXiv 2311.12908, eq. 14
hinge       ``max(0, 1 - m)``            SLiC-HF, arXiv 2305.10425
ipo         ``(m - 1/2)^2``              IPO, arXiv 2310.12036, eq. 17, times ``beta^2``
==========  ===========================  =======================================================

IPO is written there for the log-ratio ``h = m / beta``, as ``(h - 1 / (2 beta))^2``: the factor
``beta^2`` changes no minimum and puts the loss on the scale of the other two.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "MARGIN_LOSSES",
    "anchor",
    "implicit_rewards",
    "kto",
    "preference_losses",
    "tie_losses",
]

MARGIN_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda margin: -F.logsigmoid(margin),
    "hinge": lambda margin: F.relu(1 - margin),
    "ipo": lambda margin: (margin - 0.5).square(),
}


def implicit_rewards(errors: Tensor, reference_errors: Tensor, beta: float) -> Tensor:
    """``-(beta / 2) (e - e_ref)``, in nats; any shape.

    ``e`` are velocity errors averaged over the latent, so that one ``beta`` means the same at every
    resolution. On the sum scale ``beta_sum = beta / D``.
    """
    return -(beta / 2) * (errors - reference_errors)


def preference_losses(
    margin: Tensor,
    loss_type: str = "sigmoid",
    label_smoothing: Tensor | float = 0.0,
    tie_threshold: float = 0.0,
) -> Tensor:
    """``(1 - eps) f(m - alpha) + eps f(-m - alpha)``: cDPO, with Rao and Kupper's threshold.

    Args:
        label_smoothing: eps, the chance that the label is flipped, of all pairs or of each.
        tie_threshold: alpha in nats; 0 knows no ties. ``sigmoid(m - alpha)`` is the probability
            that the chosen wins where a tie is a third answer.
    """
    loss = MARGIN_LOSSES[loss_type]
    return (1 - label_smoothing) * loss(margin - tie_threshold) + label_smoothing * loss(
        -margin - tie_threshold
    )


def tie_losses(margin: Tensor, tie_threshold: float) -> Tensor:
    """``-log P(tie)`` of Rao and Kupper (1967), as in DPO-RK (arXiv 2409.17431).

    ``P(tie) = (e^(2 alpha) - 1) sigmoid(m - alpha) sigmoid(-m - alpha)``: what the two sigmoids of
    a win and a loss leave to 1; the loss is least at a margin of 0.
    """
    # log(e^(2 alpha) - 1), without overflow for a large alpha.
    constant = 2 * tie_threshold + math.log(-math.expm1(-2 * tie_threshold))
    return -F.logsigmoid(margin - tie_threshold) - F.logsigmoid(-margin - tie_threshold) - constant


def anchor(rewards: Tensor, tolerance: float = 0.0) -> Tensor:
    """``max(0, -r - tolerance)``: what a chosen image has lost of its implicit reward, in nats.

    At the corner, ``r = -tolerance``, the gradient is 0. A run starts at ``r = 0``, where with no
    tolerance the rounding of a stored reference error decides which side of the corner it is on.
    """
    return F.relu(-rewards - tolerance)


def kto(rewards: Tensor, desirable: Tensor, reference_point: float) -> Tensor:
    """``1 - sigmoid(r - z)`` of what is desirable, ``1 - sigmoid(z - r)`` of what is not.

    Kahneman-Tversky optimisation (arXiv 2402.01306, eq. 8; for diffusion arXiv 2404.04465), before
    the weights of the two kinds.

    Args:
        rewards: implicit rewards, in nats.
        desirable: bool.
        reference_point: z, the reward that counts as neither gain nor loss.
    """
    gain = rewards - reference_point
    return torch.sigmoid(torch.where(desirable, -gain, gain))
