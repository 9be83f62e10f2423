"""Trains the policy. Importing this package imports no torch."""

from __future__ import annotations

from pathlib import Path


def tiny_pipeline() -> Path:
    """Folder of the tiny Qwen-Image that ships with the package: a stock diffusers pipeline."""
    return Path(__file__).parent / "tiny"
