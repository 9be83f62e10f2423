"""The single-frame path gives the numbers and the gradients of the causal video autoencoder."""

import pytest
import torch
from diffusers import AutoencoderKLQwenImage

from align.mmdit.vae import decode_frame, encode_frame


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()


def assert_close(actual, expected, tolerance=4e-6):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def test_encode_and_decode_equal_the_video_model(vae):
    images = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        posterior = encode_frame(vae, images)
        stock = vae.encode(images[:, :, None]).latent_dist
        assert_close(posterior.mean, stock.mean[:, :, 0])
        assert_close(posterior.logvar, stock.logvar[:, :, 0])
        latents = 3 * stock.mode()
        stock_images = vae.decode(latents).sample[:, :, 0]
        assert_close(decode_frame(vae, latents[:, :, 0]), stock_images)

        vae.decoder.conv_out.weight *= 10
        unclamped = decode_frame(vae, latents[:, :, 0], clamp=False)
        assert unclamped.abs().max() > 1
        assert torch.equal(decode_frame(vae, latents[:, :, 0]), unclamped.clamp(-1, 1))


def test_the_gradients_equal_the_video_models(vae):
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def gradients(reconstruct):
        vae.zero_grad()
        (reconstruct() - images).square().mean().backward()
        return {n: p.grad.clone() for n, p in vae.named_parameters() if p.grad is not None}

    fast = gradients(lambda: decode_frame(vae, encode_frame(vae, images).mode()))
    stock = gradients(
        lambda: vae.decode(vae.encode(images[:, :, None]).latent_dist.mode()).sample[:, :, 0]
    )
    assert fast.keys() == stock.keys()
    assert not any("time_conv" in name for name in fast)
    for name, gradient in stock.items():
        assert_close(fast[name], gradient)
