"""Stochastic samplers whose steps are Gaussian, so that a trajectory has a likelihood.

With ``dt = sigma_next - sigma < 0``, ``x_0 = x - sigma v`` and ``noise = x + (1 - sigma) v`` as the
velocity has them, a step draws ``x' = mean + std z``, ``z ~ N(0, I)``. Of an SDE with the flow's
marginals (Flow-GRPO, arXiv 2505.05470; DanceGRPO, arXiv 2505.07818)::

    mean = x (1 + s^2 / (2 sigma) dt) + v (1 + s^2 (1 - sigma) / (2 sigma)) dt
    std  = s sqrt(-dt)

    flow:   s = noise_level sqrt(sigma / (1 - sigma))
    dance:  s = noise_level

and of coefficient-preserving sampling (Flow-CPS, arXiv 2509.05952), which trades a part of the
noise for fresh noise and so leaves no more of it in the latents than ``sigma_next`` says::

    cps:    std  = sigma_next sin(noise_level pi / 2)
            mean = (1 - sigma_next) x_0 + sqrt(sigma_next^2 - std^2) noise

The first two keep the marginals as the steps become short; cps keeps them in steps of any length
where ``x_0`` and ``noise`` are exact. Its last step, to sigma 0, draws nothing and has no
likelihood.

Log-probabilities and KL are in nats, **summed** over the latent: the true quantities, which other
trainers divide by the number of elements (and for cps also multiply by ``2 std^2``). Sums run in
float64, or the difference of two of them would be lost in rounding (a 1024 x 1024 image has 262,144
elements).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from align.mmdit.flow import at_least_float32, per_sample, predict_noise, predict_x0

SDE_KINDS = ("flow", "cps", "dance")


def sde_step(
    x_t: Tensor,
    velocity: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    noise_level: float,
    kind: str = "flow",
) -> tuple[Tensor, Tensor]:
    """``(mean, std)`` of the next latents.

    Args:
        x_t: ``(B, C, H, W)``.
        velocity: ``(B, C, H, W)``.
        sigma: ``(B,)``, current; at 1 the divisor ``1 - sigma`` is taken at ``sigma_next``.
        sigma_next: ``(B,)``, below ``sigma``.
        noise_level: ``a`` of the paper; 0 is the ODE (and has no log-probability). For cps in
            [0, 1].
        kind: of `SDE_KINDS`.

    Returns:
        ``mean (B, C, H, W)`` and ``std (B,)``, in float32 or float64.
    """
    if kind not in SDE_KINDS:
        raise ValueError(f"kind is {kind!r}; choices: {', '.join(SDE_KINDS)}")
    sigma, sigma_next = (at_least_float32(s.to(x_t.device)) for s in (sigma, sigma_next))
    x_t, velocity = at_least_float32(x_t), at_least_float32(velocity)
    if kind == "cps":
        return _cps_step(x_t, velocity, sigma, sigma_next, noise_level)
    dt = sigma_next - sigma
    if kind == "flow":
        divisor = 1 - torch.where(sigma >= 1, sigma_next, sigma)
        s_squared = noise_level**2 * sigma / divisor
    else:
        s_squared = torch.full_like(sigma, noise_level**2)
    x_factor = 1 + s_squared / (2 * sigma) * dt
    v_factor = (1 + s_squared * (1 - sigma) / (2 * sigma)) * dt
    mean = per_sample(x_factor, x_t) * x_t + per_sample(v_factor, x_t) * velocity
    return mean, torch.sqrt(s_squared * -dt)


def _cps_step(
    x_t: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor, noise_level: float
) -> tuple[Tensor, Tensor]:
    if not 0 <= noise_level <= 1:
        raise ValueError(f"noise_level is {noise_level}; for cps it must lie in [0, 1]")
    std = sigma_next * math.sin(noise_level * math.pi / 2)
    kept = sigma_next * math.cos(noise_level * math.pi / 2)
    x_0, noise = predict_x0(x_t, velocity, sigma), predict_noise(x_t, velocity, sigma)
    return per_sample(1 - sigma_next, x_t) * x_0 + per_sample(kept, x_t) * noise, std


def gaussian_log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """``log N(x; mean, std^2 I)`` in nats, summed: ``(B,)`` float64; ``std (B,)``."""
    squares = (at_least_float32(x) - mean).square().flatten(1).sum(1, dtype=torch.float64)
    std = std.double()
    log_normalizer = torch.log(std) + 0.5 * math.log(2 * math.pi)
    return -squares / (2 * std.square()) - x[0].numel() * log_normalizer


def gaussian_kl(mean: Tensor, other_mean: Tensor, std: Tensor) -> Tensor:
    """KL between Gaussians of one std, ``|mean - other_mean|^2 / (2 std^2)``: nats, ``(B,)``."""
    squares = (mean - other_mean).square().flatten(1).sum(1, dtype=torch.float64)
    return squares / (2 * std.double().square())
