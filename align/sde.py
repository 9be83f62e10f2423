"""Flow-SDE: the stochastic sampler of Flow-GRPO (arXiv 2505.05470), without a model.

The Euler ODE becomes a Gaussian step with the same marginals, so that a trajectory has a
likelihood. With ``dt = sigma_next - sigma < 0`` and ``s = noise_level sqrt(sigma / (1 - sigma))``::

    mean = x (1 + s^2 / (2 sigma) dt) + v (1 + s^2 (1 - sigma) / (2 sigma)) dt
    std  = s sqrt(-dt)
    x'   = mean + std z,   z ~ N(0, I)

Log-probabilities and KL are in nats, **summed** over the latent: the true quantities, which other
trainers divide by the number of elements. Sums run in float64, or the difference of two of them
would be lost in rounding (a 1024 x 1024 image has 262,144 elements).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from align.mmdit.flow import per_sample


def sde_step(
    x_t: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor, noise_level: float
) -> tuple[Tensor, Tensor]:
    """``(mean, std)`` of the next latents.

    Args:
        x_t: ``(B, C, H, W)``.
        velocity: ``(B, C, H, W)``.
        sigma: ``(B,)``, current; at 1 the divisor ``1 - sigma`` is taken at ``sigma_next``.
        sigma_next: ``(B,)``, below ``sigma``.
        noise_level: ``a`` of the paper; 0 is the ODE (and has no log-probability).

    Returns:
        ``mean (B, C, H, W)`` and ``std (B,)``, float32.
    """
    sigma, sigma_next = sigma.to(x_t.device).float(), sigma_next.to(x_t.device).float()
    dt = sigma_next - sigma
    divisor = 1 - torch.where(sigma >= 1, sigma_next, sigma)
    s_squared = noise_level**2 * sigma / divisor
    x_factor = 1 + s_squared / (2 * sigma) * dt
    v_factor = (1 + s_squared * (1 - sigma) / (2 * sigma)) * dt
    x_t, velocity = x_t.float(), velocity.float()
    mean = per_sample(x_factor, x_t) * x_t + per_sample(v_factor, x_t) * velocity
    return mean, torch.sqrt(s_squared * -dt)


def gaussian_log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """``log N(x; mean, std^2 I)`` in nats, summed: ``(B,)`` float64; ``std (B,)``."""
    squares = (x.float() - mean).square().flatten(1).sum(1, dtype=torch.float64)
    std = std.double()
    log_normalizer = torch.log(std) + 0.5 * math.log(2 * math.pi)
    return -squares / (2 * std.square()) - x[0].numel() * log_normalizer


def gaussian_kl(mean: Tensor, other_mean: Tensor, std: Tensor) -> Tensor:
    """KL between Gaussians of one std, ``|mean - other_mean|^2 / (2 std^2)``: nats, ``(B,)``."""
    squares = (mean - other_mean).square().flatten(1).sum(1, dtype=torch.float64)
    return squares / (2 * std.double().square())
