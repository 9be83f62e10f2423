"""Joint blocks against the stock ones: numbers, padding, memory, arithmetic, graphs."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen
from torch._dynamo.backends.debugging import aot_eager

from align.mmdit.activations import SAVED_OPS, check_saved_ops
from align.mmdit.attention import AttentionDevice
from align.mmdit.blocks import BlockSettings, has_joint_blocks, install_blocks
from align.mmdit.kernels.eager import rotate
from benchmarks.cpu import measure_optimizer, measure_pair, measure_recompute

SIGMA = torch.tensor([0.9, 0.5, 0.1])


@pytest.fixture
def joint(adapter):
    transformer = copy.deepcopy(adapter.transformer)
    said = install_blocks(transformer, BlockSettings("joint"))
    assert "attention native (flash for CPU: no CUDA device)" in said
    assert has_joint_blocks(transformer)
    return transformer


def test_the_real_rotation_is_the_complex_one(adapter):
    x = torch.randn(2, 16, 3, 64, generator=torch.Generator().manual_seed(0))
    table, _ = adapter.transformer.pos_embed([[(1, 4, 4)]], max_txt_seq_len=4, device=x.device)
    stock = apply_rotary_emb_qwen(x, table, use_real=False)
    torch.testing.assert_close(rotate(x, torch.view_as_real(table)), stock, atol=1e-6, rtol=0)
    half = rotate(x.bfloat16(), torch.view_as_real(table))
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, apply_rotary_emb_qwen(x.bfloat16(), table, use_real=False))


@torch.no_grad()
def test_prompts_of_different_lengths_draw_as_each_alone(adapter, joint, cond, noise):
    """No padding in linear layers or attention, where packing by count would err by 0.4."""
    together = adapter.velocity(joint, noise, SIGMA, cond)
    for i in range(3):
        row = cond.select([i]).trim()
        alone = adapter.velocity(joint, noise[i : i + 1], SIGMA[i : i + 1], row)
        assert (alone[0] - together[i]).abs().max() <= 1e-6 * alone.abs().max()
    stock = adapter.velocity(adapter.transformer, noise, SIGMA, cond)
    torch.testing.assert_close(together, stock, atol=1e-5, rtol=1e-5)


def test_gradients_are_the_stock_ones(adapter, joint, cond, noise):
    def gradients(transformer):
        loss = adapter.velocity(transformer, noise, SIGMA, cond).square().mean()
        named = [(n, p) for n, p in transformer.named_parameters() if not n.startswith(dead)]
        return dict(
            zip(
                [n for n, _ in named],
                torch.autograd.grad(loss, [p for _, p in named], allow_unused=True),
                strict=True,
            )
        )

    stock = copy.deepcopy(adapter.transformer).requires_grad_(True)
    dead = tuple(f"{name}." for name in adapter.dead_modules(stock))
    expected, found = gradients(stock), gradients(joint.requires_grad_(True))
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-6, rtol=1e-4, msg=name)


@torch.no_grad()
def test_a_mask_never_reaches_a_joint_block(adapter, joint, cond, noise):
    with pytest.raises(ValueError, match="take text without padding"):
        adapter.features(joint, noise, SIGMA, cond, num_blocks=1)


def test_selective_saving_keeps_two_fifths_and_computes_no_product_twice():
    raw = measure_recompute(heads=2)
    assert raw["stock_bytes"] / raw["selective_bytes"] >= 2.5
    assert raw["selective_flops"] == raw["stock_flops"]
    assert raw["full_flops"] / raw["stock_flops"] == pytest.approx(4 / 3, rel=0.02)
    assert raw["full_bytes"] < 0.1 * raw["selective_bytes"]


def test_a_pair_takes_six_forward_passes_and_its_share_of_the_reference():
    raw = measure_pair(layers=4)
    assert raw["live_flops"] / raw["forward_flops"] == pytest.approx(10, rel=0.05)
    assert raw["cached_flops"] / raw["forward_flops"] == pytest.approx(6, rel=0.05)


def test_the_optimizer_holds_four_bytes_a_parameter():
    raw = measure_optimizer()
    assert raw["bytes"] <= 4.1 * raw["parameters"]


def test_an_operator_that_would_run_twice_is_named():
    aten = torch.ops.aten
    linear, cudnn = aten.addmm.default, aten._scaled_dot_product_cudnn_attention.default
    check_saved_ops({linear, cudnn, aten.gelu.default})
    with pytest.raises(ValueError, match=r"aten\.bmm\.default twice.*_scaled_dot_product_cudnn"):
        check_saved_ops({linear, cudnn, aten.bmm.default})
    with pytest.raises(ValueError, match="compute attention that is no operator of torch twice"):
        check_saved_ops({linear, aten.gelu.default})  # as packages that call their own kernels


def test_every_attention_of_torch_is_kept():
    """Those that `scaled_dot_product_attention` may become on a CPU or a CUDA card."""
    names = [n for n in dir(torch.ops.aten) if n.startswith("_scaled_dot_product_")]
    assert "_scaled_dot_product_cudnn_attention" in names
    others = ("backward", "math", "overrideable", "quantized")
    forward = {n for n in names if not any(other in n for other in others)}
    assert {getattr(torch.ops.aten, n).default for n in forward} <= SAVED_OPS


def test_the_path_is_that_of_the_device_that_computes(joint, monkeypatch):
    """Weights may wait on the CPU for a sharded launch on Hopper cards."""
    found = AttentionDevice("cuda", (2, 10), (9, 0), 91900)
    monkeypatch.setattr(AttentionDevice, "here", lambda device: found)
    said = install_blocks(joint, BlockSettings("joint"), torch.device("cuda"))
    assert "attention _native_cudnn" in said
    assert joint.transformer_blocks[0].joint.backend.value == "_native_cudnn"


def test_sharding_does_not_round_the_angles(joint):
    """FSDP2 casts what floats a block is given to the dtype that computes."""
    rope = joint.pos_embed([[(1, 4, 4)]], max_txt_seq_len=8, device=torch.device("cpu"))
    assert not any(table.is_floating_point() for table in rope)
    image, _ = joint.pos_embed.stock([[(1, 4, 4)]], max_txt_seq_len=8, device=torch.device("cpu"))
    assert torch.equal(rope[0].view(torch.float32), torch.view_as_real(image))


def test_a_block_is_one_graph_of_real_numbers_with_the_checkpoint_inside(joint):
    """Through AOT autograd, for two prompts of different lengths: the eager numbers."""
    graphs = []

    def capture(graph, inputs):
        graphs.append(graph)
        assert not any(x.is_complex() for x in inputs if isinstance(x, torch.Tensor))
        return aot_eager(graph, inputs)

    install_blocks(joint, BlockSettings("joint", "selective"))
    block, width = joint.transformer_blocks[0].requires_grad_(True), joint.inner_dim
    generator = torch.Generator().manual_seed(0)
    image, text, temb = (
        torch.randn(*shape, width, generator=generator, requires_grad=True)
        for shape in ((2, 16), (1, 8), (2,))
    )
    rope = joint.pos_embed([[(1, 4, 4)]], max_txt_seq_len=8, device=image.device)
    arguments = (image, text, None, temb, rope, {"text_lengths": (5, 3)})

    def gradients(outputs):
        loss = sum(output.square().sum() for output in outputs)
        return torch.autograd.grad(loss, [image, text, temb, *block.parameters()])

    outputs = block(*arguments)
    expected = gradients(outputs)
    block.compile(backend=capture, fullgraph=True)
    compiled = block(*arguments)
    assert len(graphs) == 1
    assert "tag_activation_checkpoint" in graphs[0].code
    for found, plain in zip((*compiled, *gradients(compiled)), (*outputs, *expected), strict=True):
        torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-4)
    torch._dynamo.reset()


def test_settings_that_contradict_each_other_are_refused(joint):
    with pytest.raises(ValueError, match="blocks is 'fast'; choices: stock, joint, fused"):
        BlockSettings("fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="both need blocks 'joint'"):
        BlockSettings("stock", compile=True)
    with pytest.raises(ValueError, match="'sage' is wrong for unpadded training"):
        install_blocks(joint, BlockSettings("joint", attention="sage"))
    with pytest.raises(ValueError, match="'fused' compute on a GPU, got device cpu"):
        install_blocks(joint, BlockSettings("fused"))
