"""Preference models over interchangeable encoders.

A new encoder is one module beside `diffusion` with a `features.CandidateEncoder`, its settings in
`rewards.encoder_config`, and a line in `ENCODERS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.mmdit.adapters.base import ModelAdapter
    from rewards.models.features import CandidateEncoder

__all__ = ["ENCODERS", "open_encoder"]

ENCODERS = {
    "diffusion": "rewards.models.diffusion:DiffusionEncoder",
    "qwen_vl": "rewards.models.qwen_vl:QwenVLEncoder",
    "clip": "rewards.models.clip:ClipEncoder",
    "pixels": "rewards.models.pixels:PixelsEncoder",
}
"""``encoder.type`` to the class whose ``open`` makes the encoder."""


def open_encoder(
    settings: Mapping[str, Any],
    base: str | None = None,
    device: str = "cpu",
    *,
    criteria: Sequence[str] = (),
    adapter: ModelAdapter | None = None,
) -> CandidateEncoder:
    """The encoder that ``settings``, an encoder's config or identity, describe.

    Args:
        base: what it is made of, a folder or a hub id; ``tiny`` is the pipeline that ships.
        criteria: the heads' names; an encoder may have a token for each.
        adapter: a diffusion base that is loaded already, for an encoder that reads one; others load
            their own.

    Raises:
        ValueError: an unknown ``type``, or, when the settings name ``base_sha256``, a base model of
            another hash: its features would mean something else.
        FileNotFoundError: there is no such base.
    """
    from pydantic import TypeAdapter

    from rewards.encoder_config import EncoderConfig

    options = dict(settings)
    expected = options.pop("base_sha256", None)
    if (kind := options.get("type")) not in ENCODERS:
        raise ValueError(f"encoder type is {kind!r}, expected one of {list(ENCODERS)}")
    config = TypeAdapter(EncoderConfig).validate_python(options)
    folder = str(files("align") / "tiny") if base == "tiny" else base
    module, _, name = ENCODERS[config.type].partition(":")
    encoder: CandidateEncoder = getattr(import_module(module), name).open(
        config, folder, device, criteria=criteria, adapter=adapter
    )
    got = encoder.identity["base_sha256"]
    if expected is not None and got != expected:
        raise ValueError(
            f"the reward model reads features of base model {expected}, but the base given is {got}"
        )
    return encoder
