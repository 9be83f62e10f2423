"""Latents decoded while the next ones are drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from align.mmdit.adapters import ModelAdapter, image_to_uint8

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Decoder"]

BATCH = 16
"""Images that go through the autoencoder at once."""


class Decoder:
    """Decodes in the order of `put`; on a GPU on a stream of its own, so that the autoencoder fills
    what sampling leaves idle. The images are those of decoding at the end."""

    def __init__(self, adapter: ModelAdapter, device: torch.device) -> None:
        """``adapter`` has the autoencoder, on ``device``."""
        self._adapter = adapter
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._pixels: list[Tensor] = []

    @torch.no_grad()
    def put(self, latents: Tensor) -> None:
        """Begin with ``latents (N, C, h, w)``; a GPU does not wait for the result."""
        if self._stream is None:
            self._pixels += [
                image_to_uint8(self._adapter.decode_latents(part)).cpu()
                for part in latents.split(BATCH)
            ]
            return
        self._stream.wait_stream(torch.cuda.current_stream(latents.device))
        with torch.cuda.stream(self._stream):
            for part in latents.split(BATCH):
                pixels = image_to_uint8(self._adapter.decode_latents(part))
                host = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True)
                host.copy_(pixels, non_blocking=True)
                self._pixels.append(host)
        # Else the allocator might give their memory to the next batch too early.
        latents.record_stream(self._stream)

    def take(self) -> list[Image]:
        """All that was put since the last time, in order."""
        from PIL import Image

        if self._stream is not None:
            self._stream.synchronize()
        pixels, self._pixels = self._pixels, []
        return [Image.fromarray(array) for part in pixels for array in part.numpy()]
