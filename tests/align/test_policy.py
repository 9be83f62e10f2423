"""The policy, its read-only reference, and exports that stock diffusers loads."""

import copy

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig

from align.mmdit.blocks import BlockSettings
from align.mmdit.tokens import pack
from align.policy import Policy, unwrap
from align.sampling import sample

SIGMA = torch.tensor([0.9, 0.5, 0.1])
LORA = LoraConfig(r=4, lora_alpha=8)


def make_policy(adapter, transformer, kind):
    lora = LORA if kind == "lora" else None
    return Policy(adapter, transformer, lora=lora, reference="copy")


@pytest.fixture(params=["lora", "full"])
def policy(request, adapter, transformer):
    return make_policy(adapter, transformer, request.param)


@pytest.fixture
def trained(policy, nudge):
    nudge(policy.trainable_parameters(), 0.02)
    return policy


def test_the_reference_is_the_transformer_as_it_came(adapter, trained, cond, noise):
    with torch.no_grad():
        base = adapter.velocity(adapter.transformer, noise, SIGMA, cond)
        before = trained.velocity(noise, SIGMA, cond)
        with trained.reference():
            assert torch.equal(trained.velocity(noise, SIGMA, cond), base)
        after = trained.velocity(noise, SIGMA, cond)
    assert not torch.equal(before, base)
    assert torch.equal(before, after)


def test_the_reference_is_reentrant_and_read_only(trained, cond, noise):
    state = {n: p.clone() for n, p in trained.transformer.named_parameters()}
    flags = {n: p.requires_grad for n, p in trained.transformer.named_parameters()}
    expected = trained.velocity(noise, SIGMA, cond)
    with pytest.raises(ValueError, match="batch sizes differ"), trained.reference():
        trained.velocity(noise, SIGMA[:1], cond)
    with trained.reference():
        outer = trained.velocity(noise, SIGMA, cond)
        with trained.reference():
            inner = trained.velocity(noise, SIGMA, cond)
        assert torch.equal(trained.velocity(noise, SIGMA, cond), outer)
        assert torch.equal(inner, outer)
        assert not outer.requires_grad
    velocity = trained.velocity(noise, SIGMA, cond)
    assert velocity.requires_grad
    assert torch.equal(velocity, expected)
    for name, parameter in trained.transformer.named_parameters():
        assert parameter.requires_grad == flags[name], name
        assert torch.equal(parameter, state[name]), name


def test_a_reference_between_forward_and_backward_leaves_the_gradient(trained, cond, noise):
    def gradients(visit_reference):
        loss = trained.velocity(noise, SIGMA, cond).square().mean()
        if visit_reference:
            with trained.reference():
                trained.velocity(noise, SIGMA, cond)
        return torch.autograd.grad(loss, trained.trainable_parameters())

    for plain, visited in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(plain, visited)


def test_full_parameters_without_a_reference_say_so(adapter, transformer):
    policy = Policy(adapter, transformer)
    assert not policy.has_reference
    with pytest.raises(ValueError, match="keeps no reference"), policy.reference():
        pass
    with pytest.raises(ValueError, match="choices: 'copy', 'streamed', 'none'"):
        Policy(adapter, transformer, reference="ema")  # type: ignore[arg-type]


def test_what_cannot_learn_is_frozen_and_the_rest_has_gradients(policy, cond, noise, nudge):
    nudge(policy.trainable_parameters(), 0.02)  # a LoRA's A has no gradient while B is 0
    policy.velocity(noise, SIGMA, cond).square().mean().backward()
    dead = tuple(f"{name}." for name in policy.adapter.dead_modules(policy.transformer))
    for name, parameter in policy.transformer.named_parameters():
        if name.startswith(dead):
            assert not parameter.requires_grad, name
        elif parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
    assert any(p.grad is not None for p in policy.trainable_parameters())


def test_a_lora_starts_as_the_base_and_alike_everywhere(adapter, transformer, cond, noise):
    policy = make_policy(adapter, transformer, "lora")
    with torch.no_grad():
        base = adapter.velocity(adapter.transformer, noise, SIGMA, cond)
        assert torch.equal(policy.velocity(noise, SIGMA, cond), base)
    first = policy.trainable_parameters()[0].clone()
    torch.manual_seed(123)
    again = make_policy(adapter, copy.deepcopy(adapter.transformer), "lora")
    assert torch.equal(again.trainable_parameters()[0], first)
    assert LORA.target_modules is None


def test_a_lora_on_a_bfloat16_base_trains_in_float32(adapter, transformer, cond, noise):
    policy = make_policy(adapter, transformer.bfloat16(), "lora")
    assert {p.dtype for p in policy.trainable_parameters()} == {torch.float32}
    assert policy.velocity(noise, SIGMA, cond).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("blocks", ["stock", "joint"])
def test_what_is_computed_again_changes_no_gradient(adapter, cond, noise, blocks, dtype):
    def gradients(recompute):
        settings = BlockSettings(blocks, recompute)
        policy = Policy(adapter, copy.deepcopy(adapter.transformer).to(dtype), blocks=settings)
        loss = policy.velocity(noise, SIGMA, cond).square().mean()
        return torch.autograd.grad(loss, policy.trainable_parameters())

    plain = gradients("none")
    for mode in ("selective", "full"):
        for kept, recomputed in zip(plain, gradients(mode), strict=True):
            assert torch.equal(kept, recomputed)


@pytest.mark.parametrize("gathered", [False, True])
@torch.no_grad()
def test_an_export_draws_the_same_in_stock_diffusers(
    trained, tiny_folder, cond, noise, tmp_path, gathered
):
    latents = sample(trained.adapter, trained.transformer, cond, noise, 2)
    state_dict = None
    if gathered:  # as collected from shards, while the module itself holds something else
        state_dict = {k: v.clone() for k, v in trained.transformer.state_dict().items()}
        for parameter in trained.trainable_parameters():
            parameter.zero_()
    trained.save_pretrained(tmp_path, state_dict)

    pipeline = DiffusionPipeline.from_pretrained(
        tiny_folder if trained.has_lora else tmp_path, dtype=torch.float32
    )
    if trained.has_lora:
        pipeline.load_lora_weights(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        prompt_embeds=cond.prompt_embeds,
        prompt_embeds_mask=cond.mask,
        height=64,
        width=64,
        num_inference_steps=2,
        latents=pack(noise),
        output_type="latent",
    ).images
    torch.testing.assert_close(pack(latents), drawn, atol=1e-6, rtol=0)
    base = sample(trained.adapter, trained.adapter.transformer, cond, noise, 2)
    assert (latents - base).abs().max() > 1e-3


def test_unwrap_finds_the_bare_module(adapter, transformer):
    wrapped = torch.nn.Module()
    wrapped.module = torch.compile(transformer)
    assert unwrap(wrapped) is transformer
    assert unwrap(transformer) is transformer


def test_the_loaded_pipeline_is_not_overwritten(adapter, transformer, tiny_folder):
    with pytest.raises(ValueError, match="save to another folder"):
        Policy(adapter, transformer).save_pretrained(tiny_folder)
