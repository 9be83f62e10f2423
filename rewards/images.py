"""Pictures of a snapshot, as they were when it was labelled and as people see them."""

from __future__ import annotations

import hashlib
import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageOps

from annotate.records import Candidate, Prompt, Snapshot

__all__ = ["SourcePictures", "as_rgb", "open_candidate", "picture_sha256"]

_NUM_OPEN = 16
"""Source pictures that stay decoded: sets of candidates come prompt by prompt."""


def open_candidate(snapshot: Snapshot, candidate: Candidate) -> Image.Image:
    """The image in RGB, decoded.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is not what was labelled, or no whole image; names it.
    """
    return _open(snapshot, candidate)


class SourcePictures:
    """What the prompts of a snapshot ask to edit; a picture is decoded once for all candidates."""

    def __init__(self, snapshot: Snapshot):
        self._read = lru_cache(_NUM_OPEN)(lambda sha256: _open(snapshot, sha256))

    def of(self, prompt: Prompt) -> tuple[Image.Image, ...]:
        """Upright, in RGB, at its own size; empty for a prompt that draws. Raises as
        `open_candidate`."""
        return () if prompt.source_image is None else (self._read(prompt.source_image),)


def _open(snapshot: Snapshot, name: Candidate | str) -> Image.Image:
    data = snapshot.read_image(name)
    try:
        with Image.open(io.BytesIO(data)) as image:
            # Trainers read a source image as its file says that it is turned.
            return as_rgb(ImageOps.exif_transpose(image) if isinstance(name, str) else image)
    except (OSError, SyntaxError, ValueError) as error:
        # Pillow reports a damaged PNG chunk as SyntaxError.
        path = snapshot.image_path(name)
        raise ValueError(f"the image {path} cannot be read: {error}") from error


def picture_sha256(image: Image.Image) -> str:
    """Names a picture by its pixels, from whatever file or message it came."""
    head = f"{image.mode}/{image.width}x{image.height}/".encode()
    return hashlib.sha256(head + image.tobytes()).hexdigest()


def as_rgb(image: Image.Image) -> Image.Image:
    """RGB of 8 bits: 16-bit grey is scaled, and what is see-through stands on white, as on the page
    where people judge.

    Raises:
        ValueError: the mode has no white (32-bit integers and floats).
    """
    if image.mode.startswith("I;16"):
        # 65535 / 255 = 257; a plain conversion would cut at 255.
        image = Image.fromarray(((np.asarray(image, np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode!r} says not which number is white; save 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    shown = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
