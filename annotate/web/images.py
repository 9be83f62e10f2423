"""What an annotator may see of a stored image: its pixels and their colour space, nothing else."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Pixels, palette, transparency, and how the values mean colours. All else could tell where an
# image came from: text with the prompt or seed, EXIF, times, the writing program's own chunks.
KEPT_CHUNKS = frozenset(
    (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP")
)


def strip_metadata(data: bytes) -> bytes:
    """The same picture, bit for bit in its pixels, without anything that says whose it is.

    Chunks that are not about pixels or colour are dropped, a colour profile loses its name, and
    whatever follows the end of the picture is cut off.

    Raises:
        ValueError: ``data`` is no whole PNG.
    """
    parts = [SIGNATURE]
    for kind, body in _chunks(data):
        if kind not in KEPT_CHUNKS:
            continue
        if kind == b"iCCP":
            body = b"ICC" + body[body.index(b"\0") :]
        parts.append(struct.pack(">I", len(body)) + kind + body)
        parts.append(struct.pack(">I", zlib.crc32(kind + body)))
    return b"".join(parts)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    if not data.startswith(SIGNATURE):
        raise ValueError(f"not a PNG: it begins with {data[:8]!r}")
    offset = len(SIGNATURE)
    while offset + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, offset)
        kind = data[offset + 4 : offset + 8]
        end = offset + 8 + length
        if end + 4 > len(data):
            break
        yield kind, data[offset + 8 : end]
        if kind == b"IEND":
            return
        offset = end + 4
    raise ValueError("the PNG ends in the middle of a chunk")
