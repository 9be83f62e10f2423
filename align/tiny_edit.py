"""The tiny Qwen-Image-Edit: an editing pipeline of the real classes around the tiny Qwen-Image.

Nothing in it has learnt to edit: it is where ``winsome sft`` on edits begins. The transformer, the
autoencoder and the words that the text encoder knows are those of the pipeline it is made from.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
)

from align.mmdit.adapters.qwen_image_edit import EDIT_TEMPLATE, NUM_EDIT_TEMPLATE_TOKENS

__all__ = ["build_edit_pipeline"]

WORDS = ("make", "move", "add", "remove", "extend", "把", "改成", "移到", "扩展到", "去掉", "加上")
"""Of instructions; the captions that the tokenizer was made for have none of them."""
PICTURE_PIXELS = 56 * 56
"""The text encoder sees a source image in four tokens."""
PREFIX = EDIT_TEMPLATE.partition("{}")[0]


def build_edit_pipeline(
    source: Path, folder: Path, family: str = "QwenImageEditPipeline", seed: int = 0
) -> Path:
    """Write to ``folder`` an editing pipeline made of the Qwen-Image pipeline at ``source``.

    Args:
        family: ``QwenImageEditPipeline`` or ``QwenImageEditPlusPipeline``.
        seed: of the embeddings of words that the tokenizer did not know.
    """
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("text_encoder", "tokenizer"))
    tokenizer = Qwen2Tokenizer.from_pretrained(source / "tokenizer")
    tokenizer.add_tokens([AddedToken(word, single_word=word.isascii()) for word in WORDS])
    tokenizer.add_tokens([AddedToken(_surplus(tokenizer), normalized=False)])
    encoder: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(source / "text_encoder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder.resize_token_embeddings(len(tokenizer))
    encoder.save_pretrained(folder / "text_encoder")
    size = {"shortest_edge": PICTURE_PIXELS, "longest_edge": PICTURE_PIXELS}
    Qwen2VLImageProcessorPil(size=size).save_pretrained(folder / "processor")
    for name in ("tokenizer", "processor"):
        tokenizer.save_pretrained(folder / name)
    index = json.loads((source / "model_index.json").read_text(encoding="utf-8"))
    index |= {"_class_name": family, "processor": ["transformers", "Qwen2VLProcessor"]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return folder


def _surplus(tokenizer: Qwen2Tokenizer) -> str:
    """A part of the template that, as one token, leaves the number that the pipeline drops."""
    ids = tokenizer(PREFIX).input_ids
    for end in range(len(ids) - NUM_EDIT_TEMPLATE_TOKENS, len(ids)):
        phrase = str(tokenizer.decode(ids[3:end]))
        before, _, after = PREFIX.partition(phrase)
        parts = (len(tokenizer(part).input_ids) for part in (before, after))
        if sum(parts) + 1 == NUM_EDIT_TEMPLATE_TOKENS:
            return phrase
    raise RuntimeError(f"no part of the template leaves {NUM_EDIT_TEMPLATE_TOKENS} tokens")
