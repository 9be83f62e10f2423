"""Image files from elsewhere as the PNG that a store keeps."""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from annotate.store.errors import StoreError

FORMATS = ("PNG", "JPEG", "WEBP")


def png_of(data: bytes, name: str) -> tuple[bytes, tuple[int, int]]:
    """The same pixels as PNG bytes, their colour profile kept and all else dropped; and the size.

    Raises:
        StoreError: it is none of `FORMATS`, or broken; the message has ``name``.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            pixels = image if image.mode in ("RGB", "RGBA", "L") else image.convert("RGB")
            buffer = io.BytesIO()
            pixels.save(buffer, "PNG", icc_profile=image.info.get("icc_profile"), exif=b"")
            return buffer.getvalue(), image.size
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise StoreError(f"the image {name} cannot be decoded: {error}") from error
    except Image.DecompressionBombError as error:
        raise StoreError(f"the image {name} is too large: {error}") from error
