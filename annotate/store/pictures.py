"""Image files opened with care: their size is asked before, their wholeness with the pixels."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from annotate.store.errors import StoreError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 1 << 26
"""8192 x 8192; a larger image is refused."""


def open_image(data: bytes) -> ImageFile:
    """The image in ``data``, all of its header and nothing unpacked yet.

    Raises:
        StoreError: more than `MAX_PIXELS`.
        ValueError, OSError, SyntaxError: none of `FORMATS`, or broken.
    """
    # The plugins themselves: Image.open prints a warning about sizes that are refused here anyway.
    if data.startswith(SIGNATURE):
        image: ImageFile = PngImageFile(io.BytesIO(data))
    elif data.startswith(b"\xff\xd8\xff"):
        image = JpegImageFile(io.BytesIO(data))
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        image = WebPImageFile(io.BytesIO(data))
    else:
        raise ValueError(f"it is none of {', '.join(FORMATS)}; it begins with {data[:8]!r}")
    # A few kilobytes can say that they hold gigabytes.
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise StoreError(f"the image has {pixels} pixels, at most {MAX_PIXELS} are taken")
    if image.format == "PNG":
        for _ in png_chunks(data):
            pass  # Pillow stops at the last pixel, and takes a file that lacks its end
    return image


def png_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a PNG whose pixels all decode; StoreError for anything else."""
    try:
        with open_image(data) as image:
            if image.format != "PNG":
                raise StoreError(f"the image is {image.format}, expected PNG")
            image.load()
            return image.size
    except StoreError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise StoreError(f"the image cannot be decoded: {error}") from error


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, body) of each chunk up to IEND; what follows that is passed over.

    Raises:
        ValueError: ``data`` is no whole PNG: cut off, or a checksum is wrong.
    """
    if not data.startswith(SIGNATURE):
        raise ValueError(f"not a PNG: it begins with {data[:8]!r}")
    offset = len(SIGNATURE)
    while offset + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, offset)
        kind = data[offset + 4 : offset + 8]
        end = offset + 8 + length
        if end + 4 > len(data):
            break
        body = data[offset + 8 : end]
        if struct.unpack_from(">I", data, end) != (zlib.crc32(body, zlib.crc32(kind)),):
            raise ValueError(f"the PNG has a wrong checksum in its chunk {kind!r}")
        yield kind, body
        if kind == b"IEND":
            return
        offset = end + 4
    raise ValueError("the PNG is truncated: its last chunk is not whole")
