"""The Qwen-Image-Edit adapters against the stock pipelines, on random ones of their classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as edit_module
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus_module
from PIL import Image
from transformers import Qwen2VLProcessor

from align.mmdit.adapters import Conditioning, load_adapter
from align.mmdit.adapters.qwen_image_edit import (
    CONDITION_AREA,
    EDIT_TEMPLATE,
    NUM_EDIT_TEMPLATE_TOKENS,
    PICTURE,
)
from align.mmdit.blocks import BlockSettings
from align.mmdit.sources import source_pixels
from align.mmdit.tokens import pack
from align.sampling import sample
from align.tiny_edit import build_edit_pipeline

AREA = 64 * 64
PROMPTS = ["make the star blue", "remove the headline, and add a green button"]
SIGMA = torch.tensor([0.9, 0.4])
FAMILIES = {
    "QwenImageEditPipeline": (QwenImageEditPipeline, edit_module),
    "QwenImageEditPlusPipeline": (QwenImageEditPlusPipeline, plus_module),
}


class _WordsAndPictures(Qwen2VLProcessor):
    """Without the video processor, which needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        super().__init__(image_processor, tokenizer, None, chat_template)

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument is None:
            return type(None)
        return super().check_argument_for_proper_class(argument_name, argument)


def picture(seed: int, size: tuple[int, int] = (80, 48)) -> Image.Image:
    """Noise with some shape in it, ``size`` being (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    pixels[8:24, 8:24] = 20 * seed
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def edit_folders(untrained_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("edit")
    return {name: build_edit_pipeline(untrained_folder, root / name, name) for name in FAMILIES}


@pytest.fixture(scope="module")
def adapters(edit_folders):
    return {name: load_adapter(folder) for name, folder in edit_folders.items()}


def stock(name: str, adapter: Any) -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(adapter.scheduler_config))
    processor = _WordsAndPictures(adapter.image_processor, adapter.tokenizer)
    pipeline = FAMILIES[name][0](
        scheduler=scheduler,
        vae=adapter.vae,
        text_encoder=adapter.text_encoder,
        tokenizer=adapter.tokenizer,
        processor=processor,
        transformer=adapter.transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def conditioning(adapter: Any, prompts: list[str], sources: list[list[Image.Image]]) -> Any:
    with torch.no_grad():
        cond = adapter.encode_prompts(prompts, sources, AREA)
        latents = tuple(
            torch.stack([adapter.encode_source(image, AREA) for image in column])
            for column in zip(*sources, strict=True)
        )
    return Conditioning(cond.prompt_embeds, cond.mask, latents)


def small_areas(monkeypatch, module: Any) -> None:
    """The stock pipelines bring a source to 1024 x 1024; here to `AREA`."""
    real = module.calculate_dimensions
    areas = {1024 * 1024: AREA}
    monkeypatch.setattr(
        module, "calculate_dimensions", lambda area, ratio: real(areas.get(area, area), ratio)
    )


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_drawing_equals_the_stock_pipeline(adapters, monkeypatch, name):
    module = FAMILIES[name][1]
    small_areas(monkeypatch, module)
    adapter, several = adapters[name], name == "QwenImageEditPlusPipeline"
    pipeline = stock(name, adapter)
    sources = [picture(1), picture(2, (48, 80))] if several else [picture(1)]
    cond = conditioning(adapter, PROMPTS[:1], [sources])
    negative = conditioning(adapter, [" "], [sources])
    noise = torch.randn(1, *adapter.latent_shape(64, 96), generator=torch.manual_seed(0))
    latents = sample(adapter, adapter.transformer, cond, noise, 3, 4.0, negative)
    expected = pipeline(
        image=sources if several else sources[0],
        prompt=PROMPTS[0],
        negative_prompt=" ",
        true_cfg_scale=4.0,
        height=64,
        width=96,
        num_inference_steps=3,
        latents=pack(noise),
        output_type="latent",
    ).images
    # The sources' latents differ in their last bits: one frame is encoded in two dimensions.
    torch.testing.assert_close(pack(latents), expected, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_prompts_are_encoded_as_the_pipeline_does(adapters, monkeypatch, name):
    small_areas(monkeypatch, FAMILIES[name][1])
    adapter, pipeline = adapters[name], stock(name, adapters[name])
    assert pipeline.prompt_template_encode_start_idx == NUM_EDIT_TEMPLATE_TOKENS
    template = EDIT_TEMPLATE
    if name == "QwenImageEditPipeline":
        template = template.replace("{}", PICTURE + "{}")
    assert template == pipeline.prompt_template_encode
    area = AREA if name == "QwenImageEditPipeline" else CONDITION_AREA
    for prompt, source in zip(PROMPTS, (picture(1), picture(2, (48, 80))), strict=True):
        sides = FAMILIES[name][1].calculate_dimensions(area, source.width / source.height)
        seen = pipeline.image_processor.resize(source, sides[1], sides[0])
        embeds, _ = pipeline.encode_prompt(prompt, image=[seen])
        found = adapter.encode_prompts([prompt], [[source]], AREA)
        assert torch.equal(found.prompt_embeds, embeds)
    assert adapter.tokenizer(EDIT_TEMPLATE.partition("{}")[0], return_length=True).length == [64]


@torch.no_grad()
def test_a_batch_equals_its_rows_with_and_without_sources(adapters):
    adapter = adapters["QwenImageEditPlusPipeline"]
    prompts, sources = [*PROMPTS, "a red circle"], [[picture(1)], [picture(2), picture(3)], []]
    together = adapter.encode_prompts(prompts, sources, AREA)
    for i, (prompt, own) in enumerate(zip(prompts, sources, strict=True)):
        alone = adapter.encode_prompts([prompt], [own], AREA).prompt_embeds
        row = together.select([i]).trim().prompt_embeds
        torch.testing.assert_close(row, alone, atol=1e-5, rtol=1e-5)
    plain = super(type(adapter).__mro__[1], adapter).encode_prompts(prompts[2:])
    assert torch.equal(adapter.encode_prompts(prompts[2:]).prompt_embeds, plain.prompt_embeds)


@torch.no_grad()
def test_an_instruction_is_read_with_its_picture(adapters):
    adapter = adapters["QwenImageEditPipeline"]
    first, second = (
        adapter.encode_prompts(PROMPTS[:1], [[picture(seed)]], AREA).prompt_embeds
        for seed in (1, 2)
    )
    assert not torch.equal(first[:, -3:], second[:, -3:])


@pytest.fixture(scope="module")
def edited(adapters):
    """Two edits of 64 x 64 pixels: noise, and a conditioning with padded words."""
    adapter = adapters["QwenImageEditPipeline"]
    noise = torch.randn(2, *adapter.latent_shape(64, 64), generator=torch.manual_seed(1))
    return noise, conditioning(adapter, PROMPTS, [[picture(1)], [picture(2)]])


@torch.no_grad()
def test_the_velocity_depends_on_the_source_and_has_the_drawn_images_shape(adapters, edited):
    adapter, (noise, cond) = adapters["QwenImageEditPipeline"], edited
    velocity = adapter.velocity(adapter.transformer, noise, SIGMA, cond)
    assert velocity.shape == noise.shape
    swapped = Conditioning(cond.prompt_embeds, cond.mask, tuple(s.flip(0) for s in cond.sources))
    other = adapter.velocity(adapter.transformer, noise, SIGMA, swapped)
    assert not torch.allclose(velocity, other, atol=1e-4)
    image, text, _ = adapter.features(adapter.transformer, noise, SIGMA, cond, num_blocks=1)
    assert (image.shape[1], text.shape[1]) == (16, cond.prompt_embeds.shape[1])


@torch.no_grad()
def test_joint_blocks_compute_the_same(adapters, edited, edit_folders):
    adapter, (noise, cond) = adapters["QwenImageEditPipeline"], edited
    joint = load_adapter(edit_folders["QwenImageEditPipeline"], parts=("transformer",)).transformer
    adapter.install_blocks(joint, BlockSettings(blocks="joint"))
    torch.testing.assert_close(
        adapter.velocity(joint, noise, SIGMA, cond),
        adapter.velocity(adapter.transformer, noise, SIGMA, cond),
        atol=1e-5,
        rtol=1e-4,
    )


@torch.no_grad()
def test_zero_cond_t_is_computed_by_stock_blocks_and_refused_elsewhere(adapters, edited):
    adapter, (noise, cond) = adapters["QwenImageEditPlusPipeline"], edited
    config = {**adapter.transformer.config, "zero_cond_t": True}
    edit_2511 = type(adapter.transformer).from_config(config)
    edit_2511.load_state_dict(adapter.transformer.state_dict())
    velocity = adapter.velocity(edit_2511, noise, SIGMA, cond)
    expected = edit_2511(
        hidden_states=torch.cat([pack(noise), pack(cond.sources[0])], 1),
        timestep=SIGMA,
        encoder_hidden_states=cond.prompt_embeds,
        encoder_hidden_states_mask=cond.mask,
        img_shapes=[[(1, 4, 4), (1, 4, 6)]] * 2,
    ).sample[:, :16]
    torch.testing.assert_close(pack(velocity), expected)
    with pytest.raises(ValueError, match="zero_cond_t, which joint blocks do not compute"):
        adapter.install_blocks(edit_2511, BlockSettings(blocks="joint"))
    with pytest.raises(ValueError, match="zero_cond_t, whose features"):
        adapter.features(edit_2511, noise, SIGMA, cond, num_blocks=1)


def test_conditioning_carries_its_sources(edited):
    _, cond = edited
    row = cond.select([1]).trim()
    assert torch.equal(row.sources[0], cond.sources[0][1:])
    joined = Conditioning.cat([cond.select([0]).trim(), row])
    assert torch.equal(joined.sources[0], cond.sources[0])
    assert joined.to(dtype=torch.bfloat16).sources[0].dtype == torch.float32
    smaller = Conditioning(row.prompt_embeds, row.mask, (row.sources[0][..., :2],))
    with pytest.raises(ValueError, match="one number and size"):
        Conditioning.cat([cond, smaller])


def test_sources_have_the_pipelines_sizes():
    for size in ((80, 48), (1000, 300), (64, 64)):
        image = picture(1, size)
        for area in (AREA, 384 * 384):
            width, height, _ = edit_module.calculate_dimensions(area, size[0] / size[1])
            assert source_pixels(image, area).shape == (1, 3, height, width)


def test_too_many_sources_are_refused_with_the_choices(adapters, adapter, edited):
    noise, cond = edited
    choices = r"QwenImageEditPipeline \(1\), QwenImageEditPlusPipeline \(any number\)"
    with pytest.raises(ValueError, match=rf"got 1 source image, this model takes none.*{choices}"):
        adapter.encode_prompts(PROMPTS[:1], [[picture(1)]])
    with pytest.raises(ValueError, match="takes none"):
        adapter.velocity(adapter.transformer, noise, SIGMA, cond)
    with pytest.raises(ValueError, match=r"got 2 source images, this model takes at most 1"):
        adapters["QwenImageEditPipeline"].encode_prompts(PROMPTS[:1], [[picture(1), picture(2)]])
    with pytest.raises(ValueError, match="got 2 prompts and the sources of 1"):
        adapters["QwenImageEditPipeline"].encode_prompts(PROMPTS, [[picture(1)]])
