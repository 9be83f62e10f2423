"""A candidate's picture, as it was when it was labelled."""

from __future__ import annotations

import io

from PIL import Image

from annotate.records import Candidate, Snapshot

__all__ = ["open_candidate"]


def open_candidate(snapshot: Snapshot, candidate: Candidate) -> Image.Image:
    """The image in RGB, decoded.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is not what was labelled, or no whole image; names it.
    """
    data = snapshot.read_image(candidate)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        # Pillow reports a damaged PNG chunk as SyntaxError.
        path = snapshot.image_path(candidate)
        raise ValueError(f"the image {path} cannot be read: {error}") from error
