"""Flow-matching mathematics against closed forms and against diffusers' scheduler."""

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift, retrieve_timesteps

from align.mmdit import flow

QWEN_IMAGE = {
    "use_dynamic_shifting": True,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "shift_terminal": 0.02,
}
LIGHTNING = {**QWEN_IMAGE, "base_shift": math.log(3), "max_shift": math.log(3)}
LIGHTNING["shift_terminal"] = None


def test_velocity_points_from_image_to_noise():
    x_0, noise = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    sigma = torch.tensor([0.0, 0.3, 1.0])
    x_t = flow.interpolate(x_0, noise, sigma)
    target = flow.velocity_target(x_0, noise)

    torch.testing.assert_close(x_t[0], x_0[0])
    torch.testing.assert_close(x_t[2], noise[2])
    torch.testing.assert_close(flow.predict_x0(x_t, target, sigma), x_0)
    torch.testing.assert_close(flow.predict_noise(x_t, target, sigma), noise)
    step = flow.interpolate(x_0, noise, sigma + 0.1)
    torch.testing.assert_close(step, x_t + 0.1 * target)


def test_velocity_error_is_a_float32_mean_for_each_sample():
    x_0, noise = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    velocity = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2).bfloat16()
    error = flow.velocity_error(velocity, x_0, noise)
    assert error.dtype == torch.float32
    assert error.tolist() == [0.0, 4.0]


@pytest.mark.parametrize("config", [QWEN_IMAGE, LIGHTNING], ids=["qwen-image", "lightning"])
@pytest.mark.parametrize("num_steps", [2, 8, 50])
@pytest.mark.parametrize("image_seq_len", [64, 4096])
def test_sampling_sigmas_are_the_pipelines(config, num_steps, image_seq_len):
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    keys = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    expected_mu = calculate_shift(image_seq_len, *(config[key] for key in keys))
    steps = np.linspace(1.0, 1 / num_steps, num_steps)
    retrieve_timesteps(scheduler, num_steps, "cpu", sigmas=steps, mu=expected_mu)

    mu = flow.shift_mu(image_seq_len, config)
    sigmas = flow.sampling_sigmas(num_steps, mu, config["shift_terminal"])
    assert mu == expected_mu
    assert torch.equal(sigmas, scheduler.sigmas)
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    if config["shift_terminal"]:
        assert sigmas[-2].item() == pytest.approx(0.02, abs=1e-6)


def test_a_constant_shift_is_a_mu_too():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.25, 4))
    sigmas = flow.sampling_sigmas(4, flow.shift_mu(999, scheduler.config))
    torch.testing.assert_close(sigmas, scheduler.sigmas, atol=1e-6, rtol=0)


def test_one_step_goes_all_the_way_and_none_is_an_error():
    assert flow.sampling_sigmas(1, 0.5, shift_terminal=0.02).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="num_steps is 0"):
        flow.sampling_sigmas(0, 0.5)


def test_shift_moves_towards_noise_and_keeps_the_ends():
    sigma = torch.linspace(0, 1, 11)
    assert torch.equal(flow.shift(sigma, 0.0), sigma)
    shifted = flow.shift(sigma, 0.9)
    assert shifted[0] == 0
    assert shifted[-1] == pytest.approx(1)
    assert (shifted[1:-1] > sigma[1:-1]).all()
    middle = math.exp(0.9) / (math.exp(0.9) + 1 / 0.5 - 1)
    assert shifted[5].item() == pytest.approx(middle)


def test_noise_is_a_function_of_its_key_alone():
    shape = (4, 6, 6)
    batch = flow.seeded_noise_batch(7, ["a", "b", "a"], [0, 0, 1], shape)
    torch.randn(100)  # the global generator plays no part
    for row, (sample_id, draw) in enumerate([("a", 0), ("b", 0), ("a", 1)]):
        assert torch.equal(batch[row], flow.seeded_noise(7, sample_id, draw, shape))
    keys = [(7, "a", 0), (7, "b", 0), (7, "a", 1), (8, "a", 0), (7, "a/0", 0)]
    firsts = {flow.seeded_noise(*key, (1,)).item() for key in keys}
    assert len(firsts) == len(keys)
    assert flow.seeded_uniform(7, "a", 0).item() not in firsts


def test_noise_stays_what_earlier_versions_drew():
    """Caches of reference errors and stored noise keys name noise by its key."""
    noise = flow.seeded_noise(0, "prompt-1", 0, (16,))
    expected = torch.tensor([2.348332, 0.543102, 0.987693])
    torch.testing.assert_close(noise[:3], expected, atol=1e-5, rtol=0)


def test_sigmas_are_logit_normal_then_shifted():
    ids = [str(i) for i in range(4000)]
    sigma = flow.seeded_sigma(0, ids, [0] * len(ids), mean=0.5, std=0.8)
    logits = torch.logit(sigma)
    assert logits.mean().item() == pytest.approx(0.5, abs=0.05)
    assert logits.std().item() == pytest.approx(0.8, abs=0.05)
    shifted = flow.seeded_sigma(0, ids[:5], [0] * 5, mu=0.9, mean=0.5, std=0.8)
    torch.testing.assert_close(shifted, flow.shift(sigma[:5], 0.9))
