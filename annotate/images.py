"""Image files from elsewhere as the PNG that a store keeps."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms, ImageOps

from annotate.store.errors import StoreError
from annotate.store.pictures import open_image

_SPACES = {"RGB": b"RGB ", "RGBA": b"RGB ", "L": b"GRAY"}


def png_of(data: bytes, name: str) -> tuple[bytes, tuple[int, int]]:
    """The picture as PNG bytes of 8 bits a channel, its colour profile kept and all else of the
    file dropped; and its size.

    Pixels of RGB, RGBA and 8-bit grey stay as they are. A rotation in EXIF is applied, 16-bit grey
    is scaled, transparency becomes an alpha channel, and CMYK becomes sRGB by its profile.

    Raises:
        StoreError: it is no PNG, JPEG or WebP, broken, or too large; the message has ``name``.
    """
    try:
        with open_image(data) as image:
            profile = image.info.get("icc_profile") or b""
            pixels = _eight_bit(ImageOps.exif_transpose(image), profile)
            kept = profile if profile[16:20] == _SPACES[pixels.mode] else b""
            buffer = io.BytesIO()
            pixels.save(buffer, "PNG", icc_profile=kept, exif=b"")
            return buffer.getvalue(), pixels.size
    except StoreError as error:
        raise StoreError(f"{name}: {error}") from error
    except (OSError, SyntaxError, ValueError, ImageCms.PyCMSError) as error:
        raise StoreError(f"the image {name} cannot be decoded: {error}") from error


def _eight_bit(image: Image.Image, profile: bytes) -> Image.Image:
    """RGB, RGBA or L."""
    if image.mode.startswith("I;16"):
        # 65535 / 255 = 257; a plain conversion would cut at 255.
        return Image.fromarray(((np.asarray(image, np.uint32) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode == "CMYK" and profile[16:20] == b"CMYK":
        srgb = ImageCms.createProfile("sRGB")
        changed = ImageCms.profileToProfile(image, io.BytesIO(profile), srgb, outputMode="RGB")
        assert changed is not None
        return changed
    return image if image.mode in _SPACES else image.convert("RGB")
