"""Images from files: identity by content, decoding, and one size for all."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from align.config import ResolutionConfig
from rewards.images import as_rgb

__all__ = ["ImageFile", "MarkedRegion", "load_images"]


@dataclass(frozen=True)
class ImageFile:
    """An image on disk, known by its content."""

    path: Path
    expected_sha256: str | None = None
    """What its content must be, where a record says so."""

    @cached_property
    def sha256(self) -> str:
        """Digest of the file's bytes.

        Raises:
            FileNotFoundError: there is no file; names it.
            ValueError: it is a folder, or not the file that was expected; names it.
        """
        try:
            found = hashlib.sha256(self.path.read_bytes()).hexdigest()
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no image at {self.path}") from None
        except IsADirectoryError:
            raise ValueError(f"{self.path} is a folder; an image is needed") from None
        if self.expected_sha256 not in (None, found):
            raise ValueError(
                f"the image {self.path} was changed: its SHA-256 is {found}, expected "
                f"{self.expected_sha256}"
            )
        return found

    def size(self) -> tuple[int, int]:
        """``(height, width)`` from the file's header, as `load` would turn it upright.

        Raises:
            ValueError: the file is not an image; names it.
        """
        try:
            with Image.open(self.path) as image:
                width, height = image.size
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"the image {self.path} cannot be read: {error}") from error
        return (width, height) if turned else (height, width)

    def require_png(self) -> None:
        """Raises `ValueError` for another kind of file: a store knows source images as PNG."""
        with self.path.open("rb") as file:
            if file.read(8) != b"\x89PNG\r\n\x1a\n":
                raise ValueError(f"{self.path} is no PNG file; save it as PNG")

    def picture(self) -> Image.Image:
        """Upright, in RGB.

        Raises:
            ValueError: the file is not a whole image; names it.
        """
        try:
            with Image.open(self.path) as image:
                return as_rgb(ImageOps.exif_transpose(image))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            # Pillow reports a damaged PNG chunk as SyntaxError.
            raise ValueError(f"the image {self.path} cannot be read: {error}") from error

    def load(self, resolution: ResolutionConfig) -> Tensor:
        """``(3, H, W)`` float32 in [-1, 1]; raises as `picture`."""
        return _to_tensor(self.picture(), resolution)


@dataclass(frozen=True)
class MarkedRegion:
    """Rectangles of an image of ``size (height, width)``, as a greyscale image that is white
    there."""

    size: tuple[int, int]
    rectangles: tuple[tuple[int, int, int, int], ...]
    """Left, upper, width, height, in pixels."""

    @property
    def path(self) -> str:
        """Names it in messages."""
        return f"marked by {self.rectangles}"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(repr((self.size, self.rectangles)).encode()).hexdigest()

    def load(self, resolution: ResolutionConfig) -> Tensor:
        """``(3, H, W)`` in [-1, 1], scaled and cut as `ImageFile.load` does the image."""
        height, width = self.size
        image = Image.new("RGB", (width, height))
        for left, upper, w, h in self.rectangles:
            image.paste((255, 255, 255), (left, upper, left + w, upper + h))
        return _to_tensor(image, resolution)


def _to_tensor(pixels: Image.Image, resolution: ResolutionConfig) -> Tensor:
    if resolution.height is not None and resolution.width is not None:
        size = (resolution.width, resolution.height)
        if pixels.size != size:
            pixels = ImageOps.fit(pixels, size, Image.Resampling.LANCZOS)
    array = np.asarray(pixels, dtype=np.float32) / 127.5 - 1
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def load_images(files: list[ImageFile], resolution: ResolutionConfig) -> Tensor:
    """``(B, 3, H, W)``; all must be of one size.

    Raises:
        ValueError: sizes differ; names two files and what to set.
    """
    images = [file.load(resolution) for file in files]
    for file, image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            sizes = [f"{i.shape[2]} x {i.shape[1]}" for i in (images[0], image)]
            raise ValueError(
                f"images have different sizes: {files[0].path} is {sizes[0]}, {file.path} is "
                f"{sizes[1]}; set data.height and data.width to bring them to one size"
            )
    return torch.stack(images)
