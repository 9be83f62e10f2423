"""What `benchmarks.hopper` measures: Qwen-Image's size, or a toy's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Of the model and of the work; the defaults are Qwen-Image's."""

    layers: int = 60
    heads: int = 24
    head_dim: int = 128
    joint_dim: int = 3584
    large: int = 1024
    """Side in pixels of a DPO pair."""
    small: int = 512
    """Side in pixels of a rollout."""
    text: int = 512
    mixed: tuple[int, ...] = (64, 256, 512, 1024)
    group: int = 16
    steps: int = 10
    matmul: int = 8192
    copy_bytes: int = 2**31


TOY = Sizes(
    layers=2, heads=2, head_dim=64, joint_dim=64, large=64, small=32, text=12, mixed=(3, 5, 8, 12),
    group=2, steps=3, matmul=256, copy_bytes=2**20,
)  # fmt: skip
"""Runs every line on a CPU in seconds; its figures mean nothing."""
