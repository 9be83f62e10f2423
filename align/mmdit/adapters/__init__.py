"""The model families that can be trained, one module each."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from align.mmdit.adapters.base import Conditioning, ModelAdapter, image_to_uint8

__all__ = ["ADAPTERS", "Conditioning", "ModelAdapter", "image_to_uint8", "load_adapter"]

ADAPTERS = {
    "QwenImagePipeline": "align.mmdit.adapters.qwen_image:QwenImageAdapter",
    "QwenImageEditPipeline": "align.mmdit.adapters.qwen_image_edit:QwenImageEditAdapter",
    "QwenImageEditPlusPipeline": "align.mmdit.adapters.qwen_image_edit:QwenImageEditPlusAdapter",
}
"""Pipeline class, as ``model_index.json`` names it, to the adapter that serves it."""


def load_adapter(path_or_id: str | Path, **options: Any) -> ModelAdapter:
    """Load the adapter that serves the pipeline at ``path_or_id``, a folder or a hub id.

    ``options`` go to the adapter's ``from_pretrained``: ``dtype``, ``device``, ``parts``.
    """
    from diffusers import DiffusionPipeline

    config: Any
    fault = (
        f"no diffusers pipeline at {str(path_or_id)!r}: expected 'tiny', a folder that holds "
        "model_index.json, or a model id, OWNER/NAME, that the hub or its local cache has"
    )
    # Of one word there is no pipeline on the hub, which would be asked six times within 25 seconds.
    if "/" not in str(path_or_id) and not Path(path_or_id).exists():
        raise FileNotFoundError(fault)
    try:
        config = DiffusionPipeline.load_config(str(path_or_id))
    except OSError as error:
        raise FileNotFoundError(f"{fault} ({error})") from error
    family = config["_class_name"]
    if family not in ADAPTERS:
        raise ValueError(
            f"{str(path_or_id)!r} is a {family}, which no adapter serves; "
            f"choices: {', '.join(sorted(ADAPTERS))}"
        )
    module, _, name = ADAPTERS[family].partition(":")
    return getattr(import_module(module), name).from_pretrained(path_or_id, **options)
