"""The whole pretraining: autoencoder, curriculum, and the pipeline folder that ships."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImagePipeline

from align.checkpoint import atomic_write
from align.mmdit.adapters.qwen_image import QwenImageAdapter
from align.pretrain.autoencoder import train_autoencoder
from align.pretrain.config import PretrainConfig
from align.pretrain.curriculum import train_curriculum
from align.tiny_model import build_random_pipeline
from annotate.settings import changed_settings, dump_config, load_config
from rewards.lock import FolderLock

OPERATIONAL = frozenset({"output", "run", "save_every"})
"""Settings that may differ when a pretraining is continued."""


def pretrain(config: PretrainConfig) -> None:
    """Run what is missing of the pretraining and write the pipeline to ``config.output`` in bf16.

    Every part resumes from ``config.run``; a finished one is skipped.

    Raises:
        ValueError: ``config.run`` holds a pretraining of other settings, or a damaged checkpoint.
        FolderInUseError: another process pretrains there.
    """
    with FolderLock(config.run):
        _claim(config)
        _pretrain(config)


def _claim(config: PretrainConfig) -> None:
    path = config.run / "config.yaml"
    if path.is_file():
        different = changed_settings(load_config(PretrainConfig, path), config, OPERATIONAL)
        if different:
            listing = "\n  ".join(different)
            raise ValueError(
                f"{config.run} holds a pretraining of other settings; choose another run, or "
                f"remove the folder to begin anew:\n  {listing}"
            )
    atomic_write(path, dump_config(config))


def _pretrain(config: PretrainConfig) -> None:
    start = build_random_pipeline(config.run / "untrained", config.seed)
    adapter = QwenImageAdapter.from_pretrained(start)
    assert adapter.vae is not None
    fast = config.bf16 and torch.backends.mkldnn.is_available() and _has_bf16()
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=fast)
    adapter.vae.requires_grad_(True)
    train_autoencoder(
        adapter.vae, config.autoencoder, config.run, config.seed, config.save_every, autocast
    )
    adapter.vae.requires_grad_(False)
    train_curriculum(adapter, config, autocast)
    _export(adapter, start, config)


def _has_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported()


def _export(adapter: QwenImageAdapter, start, config: PretrainConfig) -> None:
    pipeline = QwenImagePipeline.from_pretrained(start)
    pipeline.register_modules(
        transformer=adapter.transformer, vae=adapter.vae, text_encoder=adapter.text_encoder
    )
    pipeline.to(torch.bfloat16)
    pipeline.save_pretrained(config.output)
    # Where the untrained modules lay is nobody's concern.
    for path in (config.output / "model_index.json", *config.output.glob("*/config.json")):
        _rewrite(path, lambda settings: settings.pop("_name_or_path", None))
    # transformers would load the text encoder as it was stored, diffusers everything else in
    # float32: the stock pipeline then stops at the first product of the two.
    path = config.output / "text_encoder" / "config.json"
    _rewrite(path, lambda settings: settings.update(dtype="float32"))


def _rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    settings = json.loads(path.read_text(encoding="utf-8"))
    change(settings)
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
