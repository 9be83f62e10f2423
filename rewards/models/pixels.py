"""A small encoder of its own: convolutions over the pixels, hashed words, trained from nothing.

It needs no base and no network: a reward model can be learned wherever there are picks. What it
knows it has from them alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL.Image import Image as PILImage
from PIL.Image import Resampling
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from rewards.encoder_config import PixelsEncoderConfig
from rewards.models.network import NetworkEncoder, pool_grid
from rewards.splits import normalise_prompt

__all__ = ["PixelsEncoder", "PixelsNetwork", "split_words"]

_WORD = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]|[^\s\u3400-\u4dbf\u4e00-\u9fff]+")


class PixelsEncoder(NetworkEncoder):
    """Reads the image at ``side`` pixels, statistics of it at its own size, and words; no source
    image."""

    def __init__(self, config: PixelsEncoderConfig):
        blank = Tokenizer(WordLevel({"<pad>": 0}, unk_token="<pad>"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=blank, pad_token="<pad>")
        super().__init__(config, PixelsNetwork(config), tokenizer, "", is_frozen=False)
        self._config = config

    @classmethod
    def open(
        cls, config: PixelsEncoderConfig, base: str | None, device: str, **_: Any
    ) -> PixelsEncoder:
        encoder = cls(config)
        encoder._reader.to(device)
        return encoder

    def read(
        self, image: PILImage, prompt: str, sources: Sequence[PILImage] = ()
    ) -> dict[str, Tensor]:
        side = self._config.side
        small = image.resize((side, side), Resampling.BILINEAR, reducing_gap=3.0)
        words = split_words(prompt)[: self._config.max_words]
        ids = [_bucket(word, self._config.num_buckets) for word in words] or [0]
        return {
            "pixels": _to_tensor(small),
            "words": torch.tensor(ids),
            "stats": _statistics(_to_tensor(image), image.width / image.height),
        }

    def stack(self, inputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        words = [of["words"] for of in inputs]
        return {
            "pixels": torch.stack([of["pixels"] for of in inputs]),
            "words": nn.utils.rnn.pad_sequence(words, batch_first=True, padding_value=-1),
            "stats": torch.stack([of["stats"] for of in inputs]),
        }

    def left_out(self, prompts: Sequence[str]) -> list[int]:
        return [max(0, len(split_words(prompt)) - self._config.max_words) for prompt in prompts]

    def fingerprint(self) -> list[float]:
        """Empty: it is made of nothing that could be another."""
        return []


class PixelsNetwork(nn.Module):
    """Three convolutions of stride 2 to a grid an eighth of the side, averaged to 8 x 8."""

    def __init__(self, config: PixelsEncoderConfig):
        super().__init__()
        width = config.width
        channels = (3, max(8, width // 4), max(8, width // 2), width)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(thin, wide, kernel_size=4, stride=2, padding=1)
            for thin, wide in pairwise(channels)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(4, wide) for wide in channels[1:])
        self.words = nn.Embedding(config.num_buckets, width)
        self.places = nn.Parameter(0.1 * torch.randn(config.max_words, width))

    def forward(self, pixels: Tensor, words: Tensor, stats: Tensor) -> dict[str, Tensor]:
        """pixels (N, 3, S, S) in [-1, 1], words (N, L) with -1 where padded, stats (N, 13)."""
        plane = pixels
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            plane = nn.functional.gelu(norm(convolution(plane)))
        text_mask = words >= 0
        text = self.words(words.clamp_min(0)) + self.places[: words.shape[1]]
        return {
            "image": pool_grid(plane, 8),
            "text": text * text_mask[..., None],
            "text_mask": text_mask,
            "stats": stats,
        }


def split_words(prompt: str) -> list[str]:
    """Words without case, width and punctuation; each Chinese character is one."""
    return _WORD.findall(normalise_prompt(prompt))


def _bucket(word: str, count: int) -> int:
    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % count


def _to_tensor(image: PILImage) -> Tensor:
    """(3, H, W) float32 in [-1, 1]."""
    array = np.asarray(image, dtype=np.float32) / 127.5 - 1.0
    return torch.from_numpy(array).permute(2, 0, 1)


def _statistics(pixels: Tensor, aspect: float) -> Tensor:
    """(13,): per channel mean, deviation, mean absolute slope down and across; log aspect."""
    down = (pixels[:, 1:] - pixels[:, :-1]).abs().mean(dim=(1, 2))
    across = (pixels[:, :, 1:] - pixels[:, :, :-1]).abs().mean(dim=(1, 2))
    means, deviations = pixels.mean(dim=(1, 2)), pixels.std(dim=(1, 2))
    shape = torch.tensor([aspect]).log()
    return torch.cat([means, deviations, down, across, shape])
