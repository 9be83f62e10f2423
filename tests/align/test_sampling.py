"""What we draw is what the stock pipeline draws from the same noise."""

import copy

import numpy as np
import pytest
import torch
from diffusers import QwenImagePipeline

from align.mmdit.adapters import image_to_uint8, load_adapter
from align.mmdit.blocks import BlockSettings
from align.mmdit.modulation import modulation_tables
from align.mmdit.tokens import pack
from align.sampling import sample, sample_sde
from align.sde import gaussian_log_prob, sde_step


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@torch.no_grad()
def test_samples_equal_the_stock_pipelines(tiny_folder, prompts, noise, dtype, guidance_scale):
    adapter = load_adapter(tiny_folder, dtype=dtype)
    pipeline = QwenImagePipeline.from_pretrained(tiny_folder, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    guided = guidance_scale > 1

    def draw(output_type):
        return pipeline(
            prompt=prompts,
            negative_prompt=[" "] * 3 if guided else None,
            true_cfg_scale=guidance_scale,
            height=64,
            width=64,
            num_inference_steps=4,
            latents=pack(noise),
            output_type=output_type,
        ).images

    cond = adapter.encode_prompts(prompts)
    negative = adapter.encode_prompts([" "] * 3) if guided else None
    latents = sample(adapter, adapter.transformer, cond, noise, 4, guidance_scale, negative)
    assert torch.equal(pack(latents), draw("latent"))

    images = image_to_uint8(adapter.decode_latents(latents)).numpy().astype(int)
    stock = np.stack([np.asarray(image) for image in draw("pil")]).astype(int)
    assert np.abs(images - stock).max() <= 1


def test_guidance_without_a_negative_prompt_is_an_error(adapter, cond, noise):
    with pytest.raises(ValueError, match="needs a negative conditioning"):
        sample(adapter, adapter.transformer, cond, noise, 2, guidance_scale=4.0)


def test_latents_that_are_not_finite_are_an_error(adapter, cond, noise):
    """Decoded they would be black images like any others."""
    negative = adapter.encode_prompts([" "] * 3)
    with pytest.raises(ValueError, match="3 of 3 drawn latents are not finite"):
        sample(adapter, adapter.transformer, cond, noise, 2, 1e300, negative)
    settings = {"noise_level": 1e30, "sde_steps": [0], "step_noise": noise[None]}
    with pytest.raises(ValueError, match="3 of 3 drawn latents are not finite"):
        sample_sde(adapter, adapter.transformer, cond, noise, 2, **settings)


@torch.no_grad()
@pytest.mark.parametrize("blocks", ["stock", "joint"])
def test_guidance_in_one_pass_is_that_of_two(adapter, transformer, cond, noise, blocks):
    """Half the forward passes, the same numbers: the empty prompt is padded to the longest."""
    adapter.install_blocks(transformer, BlockSettings(blocks))
    sizes = []
    transformer.register_forward_hook(lambda module, args, out: sizes.append(len(out[0])))
    negative = adapter.encode_prompts([" "]).select([0] * 3)
    two = sample(adapter, transformer, cond, noise, 3, 4.0, negative)
    assert sizes == [3] * 6
    sizes.clear()
    one = sample(adapter, transformer, cond, noise, 3, 4.0, negative, one_pass=True)
    assert sizes == [6] * 3
    assert float((one - two).norm() / two.norm()) < 1e-5
    step_noise = torch.randn(1, *noise.shape, generator=torch.Generator().manual_seed(0))
    settings = {"noise_level": 0.7, "sde_steps": [1], "step_noise": step_noise}
    settings |= {"guidance_scale": 4.0, "negative": negative}
    two = sample_sde(adapter, transformer, cond, noise, 3, **settings)
    one = sample_sde(adapter, transformer, cond, noise, 3, **settings, one_pass=True)
    torch.testing.assert_close(one.latents, two.latents, rtol=0, atol=1e-4)


@torch.no_grad()
def test_stochastic_steps_are_recorded_and_replay_exactly(adapter, cond, noise):
    step_noise = torch.randn(2, *noise.shape, generator=torch.Generator().manual_seed(0))
    drawn = sample_sde(
        adapter,
        adapter.transformer,
        cond,
        noise,
        5,
        noise_level=0.7,
        sde_steps=[0, 2],
        step_noise=step_noise,
    )
    sigmas = adapter.sigmas(5, 64, 64)
    assert drawn.sigma.tolist() == sigmas[[0, 2]].tolist()
    assert drawn.sigma_next.tolist() == sigmas[[1, 3]].tolist()
    assert torch.equal(drawn.x_t[0], noise)
    for s in range(2):
        sigma, sigma_next = drawn.sigma[s].expand(3), drawn.sigma_next[s].expand(3)
        velocity = adapter.velocity(adapter.transformer, drawn.x_t[s], sigma, cond)
        mean, std = sde_step(drawn.x_t[s], velocity, sigma, sigma_next, 0.7)
        assert torch.equal(gaussian_log_prob(drawn.x_next[s], mean, std), drawn.log_prob[s])
        torch.testing.assert_close(
            drawn.x_next[s], mean + std.view(-1, 1, 1, 1) * step_noise[s], rtol=0, atol=1e-6
        )


@torch.no_grad()
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_steps_before_the_window_are_computed_once_for_a_group(
    adapter, transformer, cond, noise, guidance_scale
):
    """Fewer rows, and to the bit the states of a sample that is drawn alone."""
    rows, count = [], 4
    transformer.register_forward_hook(lambda module, args, out: rows.append(len(out[0])))
    cond = cond.select([0] * count + [1] * count)
    noise = noise[[0] * count + [1] * count]
    negative = adapter.encode_prompts([" "]).select([0] * 2 * count)
    generator = torch.Generator().manual_seed(0)
    step_noise = torch.randn(2, *noise.shape, generator=generator)

    def draw(which, shared):
        rows.clear()
        index = torch.tensor(which)
        return sample_sde(
            adapter,
            transformer,
            cond.select(index),
            noise[index],
            5,
            noise_level=0.7,
            sde_steps=[2, 3],
            step_noise=step_noise[:, index],
            guidance_scale=guidance_scale,
            negative=negative.select(index),
            shared=shared,
        )

    everyone = [*range(2 * count)]
    drawn = draw(everyone, count)
    passes = 2 if guidance_scale > 1 else 1
    assert rows == [2] * 2 * passes + [2 * count] * 3 * passes
    unshared = draw(everyone, 1)
    assert rows == [2 * count] * 5 * passes
    # One sample of each group: the batch that the shared steps are.
    alone = draw([0, count], 1)
    assert torch.equal(drawn.x_t[0], alone.x_t[0].repeat_interleave(count, dim=0))
    torch.testing.assert_close(drawn.latents, unshared.latents, rtol=0, atol=1e-4)
    assert not torch.equal(drawn.latents[0], drawn.latents[1])
    with pytest.raises(ValueError, match="begin from other noise or another prompt"):
        draw([0, count], 2)
    with pytest.raises(ValueError, match="3 samples are no groups of 2"):
        draw([0, 1, 2], 2)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("blocks", ["stock", "joint"])
def test_modulation_is_read_from_tables_to_the_bit(
    adapter, transformer, cond, noise, blocks, dtype
):
    """Two batches of the same steps: the second computes no modulation layer."""
    transformer.to(dtype)
    adapter.install_blocks(transformer, BlockSettings(blocks))
    calls = []
    for block in transformer.transformer_blocks:
        for layer in (block.img_mod, block.txt_mod):
            layer[1].register_forward_hook(lambda *_: calls.append(1))
    step_noise = torch.randn(1, *noise.shape, generator=torch.Generator().manual_seed(0))
    settings = {"noise_level": 0.7, "sde_steps": [1], "step_noise": step_noise}

    def draw(start, tables=None):
        return sample_sde(adapter, transformer, cond, start, 3, **settings, tables=tables)

    expected = [draw(noise), draw(-noise)]
    each = len(calls) // 2
    assert each == 3 * 2 * len(transformer.transformer_blocks)
    calls.clear()
    with modulation_tables(transformer) as tables:
        found = [draw(noise, tables), draw(-noise, tables)]
    assert len(calls) == each
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.latents, b.latents)
        assert torch.equal(a.log_prob, b.log_prob)
    calls.clear()
    draw(noise)
    assert len(calls) == each


def test_trained_steps_are_drawn_by_the_pass_that_trains(adapter, cond, noise):
    """With a gradient on the stochastic steps alone, of which nothing is kept."""
    transformer = copy.deepcopy(adapter.transformer).requires_grad_(True)
    adapter.install_blocks(transformer, BlockSettings("joint", "full"))
    modes = []
    transformer.register_forward_hook(lambda *_: modes.append(torch.is_grad_enabled()))
    generator = torch.Generator().manual_seed(0)
    step_noise = torch.randn(2, *noise.shape, generator=generator)
    settings = {"noise_level": 0.7, "sde_steps": [1, 2], "step_noise": step_noise}
    plain = sample_sde(adapter, transformer, cond, noise, 4, **settings)
    assert modes == [False] * 4
    modes.clear()
    drawn = sample_sde(adapter, transformer, cond, noise, 4, **settings, as_trained=True)
    assert modes == [False, True, True, False]
    assert not any(value.requires_grad for value in vars(drawn).values())
    assert torch.equal(drawn.latents, plain.latents)
    assert torch.equal(drawn.log_prob, plain.log_prob)


def test_without_noise_the_sde_is_the_ode(adapter, cond, noise):
    ode = sample(adapter, adapter.transformer, cond, noise, 5)
    sde = sample_sde(
        adapter,
        adapter.transformer,
        cond,
        noise,
        5,
        noise_level=1e-4,
        sde_steps=[1],
        step_noise=torch.randn(1, *noise.shape),
    )
    torch.testing.assert_close(sde.latents, ode, atol=5e-3, rtol=0)


@pytest.mark.parametrize("sde_steps", [[], [2, 1], [1, 1], [-1], [5]])
def test_wrong_stochastic_steps_are_named(adapter, cond, noise, sde_steps):
    with pytest.raises(ValueError, match="ascending step numbers of 0 to 4"):
        sample_sde(
            adapter,
            adapter.transformer,
            cond,
            noise,
            5,
            noise_level=0.7,
            sde_steps=sde_steps,
            step_noise=torch.zeros(len(sde_steps), *noise.shape),
        )
