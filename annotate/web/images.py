"""What an annotator may see of a stored image: its pixels and their colour space, nothing else."""

from __future__ import annotations

import struct
import zlib

from annotate.store.pictures import SIGNATURE, png_chunks

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
    for kind, body in png_chunks(data):
        if kind not in KEPT_CHUNKS:
            continue
        if kind == b"iCCP":
            body = b"ICC" + body[body.index(b"\0") :]
        parts.append(struct.pack(">I", len(body)) + kind + body)
        parts.append(struct.pack(">I", zlib.crc32(kind + body)))
    return b"".join(parts)
