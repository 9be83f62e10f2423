"""Image files from elsewhere as the PNG that a store keeps."""

from __future__ import annotations

import io

from annotate.store.errors import StoreError
from annotate.store.pictures import open_image


def png_of(data: bytes, name: str) -> tuple[bytes, tuple[int, int]]:
    """The same pixels as PNG bytes, their colour profile kept and all else dropped; and the size.

    Raises:
        StoreError: it is no PNG, JPEG or WebP, broken, or too large; the message has ``name``.
    """
    try:
        with open_image(data) as image:
            pixels = image if image.mode in ("RGB", "RGBA", "L") else image.convert("RGB")
            buffer = io.BytesIO()
            pixels.save(buffer, "PNG", icc_profile=image.info.get("icc_profile"), exif=b"")
            return buffer.getvalue(), image.size
    except StoreError as error:
        raise StoreError(f"{name}: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise StoreError(f"the image {name} cannot be decoded: {error}") from error
