"""Stochastic steps against the papers' formulas, torch.distributions and the marginals they
keep."""

import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from align.mmdit.flow import seeded_noise
from align.sde import gaussian_kl, gaussian_log_prob, sde_step


def published_step(x, v, sigma, sigma_next, sigma_max, noise_level):
    """Flow-GRPO's own arrangement of the step, for one scalar sigma."""
    dt = sigma_next - sigma
    divisor = 1 - (sigma_max if sigma == 1 else sigma)
    std_dev_t = (sigma / divisor) ** 0.5 * noise_level
    mean = (
        x * (1 + std_dev_t**2 / (2 * sigma) * dt)
        + v * (1 + std_dev_t**2 * (1 - sigma) / (2 * sigma)) * dt
    )
    return mean, std_dev_t * (-dt) ** 0.5


@pytest.mark.parametrize("step", [0, 1, 3, 4])
def test_the_step_is_the_published_one(step):
    sigmas = [1.0, 0.9, 0.7, 0.4, 0.1, 0.0]
    x, v = seeded_noise(0, "x", step, (2, 4, 2, 2)), seeded_noise(0, "v", step, (2, 4, 2, 2))
    mean, std = sde_step(
        x, v, torch.full((2,), sigmas[step]), torch.full((2,), sigmas[step + 1]), 0.7
    )
    expected_mean, expected_std = published_step(
        x.double(), v.double(), sigmas[step], sigmas[step + 1], sigmas[1], 0.7
    )
    torch.testing.assert_close(mean.double(), expected_mean, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(std.double(), torch.full((2,), expected_std).double())


def test_log_prob_and_kl_are_those_of_torch_distributions():
    x, mean, other = (seeded_noise(0, name, 0, (3, 4, 8, 8)) for name in ("x", "mean", "other"))
    std = torch.tensor([0.05, 0.3, 2.0])

    def normal(center):
        return Independent(Normal(center.double(), std.double().view(-1, 1, 1, 1)), 3)

    log_prob = gaussian_log_prob(x, mean, std)
    kl = gaussian_kl(mean, other, std)
    assert log_prob.dtype == kl.dtype == torch.float64
    torch.testing.assert_close(log_prob, normal(mean).log_prob(x.double()), rtol=1e-6, atol=0)
    torch.testing.assert_close(kl, kl_divergence(normal(mean), normal(other)), rtol=1e-6, atol=0)
    assert gaussian_kl(mean, mean, std).tolist() == [0, 0, 0]


def test_large_latents_keep_their_log_ratio():
    """Two log-probabilities of about 1e5 nats differ by 1e-3: a float32 sum would lose it."""
    shape = (1, 16, 128, 128)
    mean, z = seeded_noise(0, "mean", 0, shape), seeded_noise(0, "z", 0, shape)
    std = torch.tensor([0.1])
    x = mean + 0.1 * z
    shift = 1e-9
    ratio = gaussian_log_prob(x, mean, std) - gaussian_log_prob(x, mean, std * (1 + shift))
    expected = x.numel() * shift - shift * (((x - mean) / 0.1).double().square().sum())
    assert ratio.item() == pytest.approx(expected.item(), abs=2e-5)


def test_dance_and_cps_are_the_published_steps():
    x, v = seeded_noise(0, "x", 0, (2, 4, 2, 2)), seeded_noise(0, "v", 0, (2, 4, 2, 2))
    sigma, sigma_next, level = 0.6, 0.5, 0.8
    levels = torch.full((2,), sigma), torch.full((2,), sigma_next)
    x_0, noise = x - sigma * v, x + (1 - sigma) * v

    mean, std = sde_step(x, v, *levels, level, "dance")
    score = -(x - (1 - sigma) * x_0) / sigma**2
    expected = x + (v - 0.5 * level**2 * score) * (sigma_next - sigma)
    torch.testing.assert_close(mean, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(std, torch.full((2,), level * 0.1**0.5))

    mean, std = sde_step(x, v, *levels, level, "cps")
    kept = (sigma_next**2 - std[0] ** 2) ** 0.5
    expected = (1 - sigma_next) * x_0 + kept * noise
    torch.testing.assert_close(mean, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(std, torch.full((2,), sigma_next * math.sin(level * math.pi / 2)))


def test_cps_keeps_the_marginal_of_a_known_image_in_one_long_step():
    """x_0 is known, so the velocity is exact: x' is N((1 - sigma') x_0, sigma'^2) at any length."""
    x_0, count = 1.5, 200_000
    x = 0.1 * x_0 + 0.9 * seeded_noise(0, "start", 0, (1, count))
    velocity = (x - x_0) / 0.9
    mean, std = sde_step(x, velocity, torch.tensor([0.9]), torch.tensor([0.4]), 0.6, "cps")
    x = mean + std * seeded_noise(0, "z", 0, (1, count))
    assert x.mean().item() == pytest.approx(0.6 * x_0, abs=0.005)
    assert x.var().item() == pytest.approx(0.4**2, rel=0.01)


def test_wrong_kinds_are_named():
    x, level = torch.zeros(1, 2), torch.tensor([0.5])
    with pytest.raises(ValueError, match="choices: flow, cps, dance"):
        sde_step(x, x, level, level / 2, 0.7, "ode")
    with pytest.raises(ValueError, match=r"noise_level is 1\.2; for cps"):
        sde_step(x, x, level, level / 2, 1.2, "cps")


@pytest.mark.parametrize(
    ("noise_level", "kind"), [(0.3, "flow"), (1.0, "flow"), (0.5, "dance"), (1.0, "dance")]
)
def test_the_marginals_are_those_of_the_flow(noise_level, kind):
    """For data N(0, c^2) the exact velocity is linear in x; every marginal's variance is known."""
    c, num_steps = 0.5, 2000
    sigmas = torch.linspace(0.999, 0.05, num_steps + 1)

    def variance(sigma):
        return (1 - sigma) ** 2 * c**2 + sigma**2

    x = seeded_noise(0, "start", 0, (1, 20000)) * variance(sigmas[0]).sqrt()
    generator = torch.Generator().manual_seed(0)
    for sigma, sigma_next in pairwise(sigmas):
        velocity = (sigma - (1 - sigma) * c**2) / variance(sigma) * x  # E[noise - x_0 | x_t]
        mean, std = sde_step(x, velocity, sigma[None], sigma_next[None], noise_level, kind)
        x = mean + std * torch.randn(x.shape, generator=generator)
    assert x.var().item() == pytest.approx(variance(sigmas[-1]).item(), rel=0.05)
