"""Preference models over interchangeable encoders.

A new encoder is one module beside `diffusion` with a `features.CandidateEncoder`, its settings in
`rewards.config`, and a line in `build_encoder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.mmdit.adapters.base import ModelAdapter
    from rewards.models.diffusion import DiffusionEncoder

__all__ = ["ENCODERS", "build_encoder", "load_encoder"]

ENCODERS = ("diffusion",)


def build_encoder(settings: Mapping[str, Any], adapter: ModelAdapter) -> DiffusionEncoder:
    """The encoder that ``settings``, an encoder's config or identity, describe.

    Raises:
        ValueError: an unknown ``type``, or, when the settings name ``base_sha256``, a base model of
            another hash: its features would mean something else.
    """
    kind = settings.get("type")
    if kind not in ENCODERS:
        raise ValueError(f"encoder type is {kind!r}, expected one of {list(ENCODERS)}")
    from rewards.config import DiffusionEncoderConfig
    from rewards.models.diffusion import DiffusionEncoder

    options = dict(settings)
    expected = options.pop("base_sha256", None)
    encoder = DiffusionEncoder(adapter, DiffusionEncoderConfig.model_validate(options))
    got = encoder.identity["base_sha256"]
    if expected is not None and got != expected:
        raise ValueError(
            f"the reward model reads features of base model {expected}, but the base given is {got}"
        )
    return encoder


def load_encoder(settings: Mapping[str, Any], base: str, device: str = "cpu") -> DiffusionEncoder:
    """`build_encoder` on a base that is loaded for it alone: the blocks it needs not are freed.

    Args:
        base: a diffusers pipeline folder, a hub id, or ``tiny``, the pipeline that ships.
    """
    import torch

    from align.mmdit.adapters import load_adapter

    folder = str(files("align") / "tiny") if base == "tiny" else base
    dtype = getattr(torch, settings.get("dtype", "float32"))
    adapter = load_adapter(folder, device=device, dtype=dtype)
    encoder = build_encoder(settings, adapter)
    adapter.transformer = None
    return encoder
