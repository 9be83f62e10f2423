"""The fused kernels in Triton's interpreter, against their eager twins; see test_kernels.py.

A program of its own, started with TRITON_INTERPRET=1: Triton looks at it when it is imported, which
other tests do too.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from align.mmdit.blocks import BlockSettings, install_blocks
from align.mmdit.kernels import eager, fused
from benchmarks import hopper
from benchmarks.hopper_bench import TOY, Bench


def draw(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


def results(function, inputs, rest, upstream) -> list[torch.Tensor]:
    """Outputs and gradients of every input that is there."""
    inputs = [None if x is None else x.clone().requires_grad_() for x in inputs]
    outputs = function(*inputs, *rest)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    given = [x for x in inputs if x is not None]
    gradients = torch.autograd.grad(outputs, given, upstream[: len(outputs)])
    return [*(x.detach() for x in outputs), *gradients]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=5e-6, rtol=1e-5)


def check_the_norm_and_rotation_of_queries() -> None:
    batch, text, image, heads, width = 2, 3, 101, 3, 16  # several programs, the last not full
    inputs = draw((batch, text, heads, width), (batch, image, heads, width), (width,), (width,))
    angles = draw((text, width // 2), (image, width // 2))
    tables = [torch.stack([x.cos(), x.sin()], dim=-1) for x in angles]
    upstream = draw((batch, text + image, heads, width))
    arguments = (inputs, [*tables, 1e-6], upstream)
    assert_same(results(fused.qk_norm_rope, *arguments), results(eager.qk_norm_rope, *arguments))


def check_the_gated_residual_norm_and_modulation(has_update: bool) -> None:
    batch, tokens, width = 2, 19, 24
    x, update, gate, shift, scale, *upstream = draw(
        *[(batch, tokens, width)] * 2, *[(batch, width)] * 3, *[(batch, tokens, width)] * 2
    )
    inputs = [x, update, gate, shift, scale] if has_update else [x, None, None, shift, scale]
    arguments = (inputs, [1e-6], upstream)
    found = results(fused.add_norm_modulate, *arguments)
    assert_same(found, results(eager.add_norm_modulate, *arguments))


def check_that_a_fused_block_computes_what_a_joint_one_does() -> None:
    """With prompts of two lengths and selective saving, forward and backward."""
    bench = Bench(torch.device("cpu"), replace(TOY, layers=1, head_dim=32), compile=False)
    outputs = {}
    for blocks in ("joint", "fused"):
        model = bench.transformer(dtype=torch.float32).requires_grad_(True)
        install_blocks(model, BlockSettings(blocks, "selective"))
        image, text, temb = draw((2, 4, 64), (1, 3, 64), (2, 64))
        image.requires_grad_()
        rope = model.pos_embed([[(1, 2, 2)]], max_txt_seq_len=3, device=image.device)
        block = model.transformer_blocks[0]
        made = block(image, text, None, temb, rope, {"text_lengths": (1, 2)})
        loss = sum(x.square().sum() for x in made)
        outputs[blocks] = [*made, *torch.autograd.grad(loss, [image, *block.parameters()])]
    for found, expected in zip(outputs["fused"], outputs["joint"], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def check_the_benchmark_of_the_kernels() -> None:
    """At a toy's size, where its figures mean nothing."""
    with tempfile.TemporaryDirectory() as folder:
        small = ["--toy", "--layers", "1", "--repeats", "1", "--device", "cpu", "--no-compile"]
        hopper.main(["kernels", "--here", *small, "--out", folder])
        part = json.loads((Path(folder) / "kernels.json").read_text())
    assert set(part["bars"]) == {"hopper.kernel_bandwidth_share"}
    errors = part["facts"]["errors.fused"]
    assert errors["gradients"] <= 2 * errors["stock"]


if __name__ == "__main__":
    check_the_benchmark_of_the_kernels()
    check_the_norm_and_rotation_of_queries()
    check_the_gated_residual_norm_and_modulation(has_update=True)
    check_the_gated_residual_norm_and_modulation(has_update=False)
    check_that_a_fused_block_computes_what_a_joint_one_does()
