"""Diffusers pipeline folders: their identity, and how one with new weights is written."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from align.mmdit.adapters.base import PARTS


def folder_sha256(folder: Path) -> str:
    """Digest over the weights and configs of the parts that hold weights."""
    digest = hashlib.sha256()
    for part in PARTS:
        files = sorted(
            path
            for path in (folder / part).iterdir()
            if path.suffix == ".safetensors" or path.name == "config.json"
        )
        for path in files:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{part}/{path.name}:{content}\n".encode())
    return digest.hexdigest()


def write_pipeline(
    source: Path, folder: Path, transformer: Any, state_dict: Mapping[str, Tensor]
) -> None:
    """Write to ``folder`` the pipeline at ``source`` with other weights in its transformer.

    Args:
        source: What is not the transformer is copied from here.
        folder: Made if need be; ``model_index.json`` comes last, so that a folder that has one
            is whole.
        transformer: Gives class and config; its own weights are not read.
        state_dict: All weights, named as in the bare transformer.
    """
    if folder.resolve() == source.resolve():
        raise ValueError(f"{folder} is the pipeline that was loaded; save to another folder")
    with torch.device("meta"):
        shell = type(transformer).from_config(transformer.config)
    shell.load_state_dict(dict(state_dict), strict=True, assign=True)
    index: Any = DiffusionPipeline.load_config(source)
    for name in index:
        if name != "transformer" and (source / name).is_dir():
            shutil.copytree(source / name, folder / name, dirs_exist_ok=True)
    shell.save_pretrained(folder / "transformer")
    shutil.copyfile(source / "model_index.json", folder / "model_index.json")


def load_structure(cls: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """The module that ``folder`` describes, its weights unset, in memory that nothing has touched
    and that therefore takes no room."""
    with init_empty_weights(include_buffers=False):
        module = cls.from_config(cls.load_config(folder)).to(dtype)
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(torch.empty_like(weight, device="cpu")))
    return module
