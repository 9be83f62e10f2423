"""A candidate's picture, as it was when it was labelled and as people see it."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from annotate.records import Candidate, Snapshot

__all__ = ["as_rgb", "open_candidate"]


def open_candidate(snapshot: Snapshot, candidate: Candidate) -> Image.Image:
    """The image in RGB, decoded.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is not what was labelled, or no whole image; names it.
    """
    data = snapshot.read_image(candidate)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return as_rgb(image)
    except (OSError, SyntaxError, ValueError) as error:
        # Pillow reports a damaged PNG chunk as SyntaxError.
        path = snapshot.image_path(candidate)
        raise ValueError(f"the image {path} cannot be read: {error}") from error


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
