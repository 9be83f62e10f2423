"""What an annotator may see of a stored image: its pixels and their colour space, nothing else."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import ImageCms

from annotate.colour_profile import reduced_profile
from annotate.store.pictures import SIGNATURE, open_image, png_chunks

# Pixels, palette, transparency, and how the values mean colours, with the bytes each may have at
# most. All else could tell where an image came from: text with the prompt or seed, EXIF, times,
# the writing program's own chunks.
KEPT_CHUNKS = {
    b"IHDR": 13, b"PLTE": 768, b"tRNS": 256, b"sRGB": 1, b"gAMA": 4, b"cHRM": 32, b"cICP": 4,
}  # fmt: skip
MAX_PROFILE = 1 << 22


def strip_metadata(data: bytes) -> bytes:
    """The same picture, bit for bit in its pixels, without anything that says whose it is.

    Chunks that are not about pixels or colour are dropped, and so is what follows the compressed
    pixels or the end of the picture. A colour profile is reduced to its curves and primaries; the
    pixels of one that works by tables become sRGB.

    Raises:
        ValueError: ``data`` is no whole PNG.
    """
    head: dict[bytes, bytes] = {}
    packed, profile = [], None
    for kind, body in png_chunks(data):
        if kind == b"IDAT":
            packed.append(body)
        elif kind == b"iCCP" and profile is None:
            profile = zlib.decompressobj().decompress(body[body.index(b"\0") + 2 :], MAX_PROFILE)
        elif kind in KEPT_CHUNKS:
            head.setdefault(kind, body[: KEPT_CHUNKS[kind]])
    if profile is not None:
        try:
            reduced = reduced_profile(profile)
        except ValueError:
            return strip_metadata(_as_srgb(data, profile))
        # Before the palette, as the standard has it.
        head = {b"IHDR": head.pop(b"IHDR"), b"iCCP": b"ICC\0\0" + zlib.compress(reduced), **head}
    chunks = [*head.items(), (b"IDAT", _own_bytes(b"".join(packed))), (b"IEND", b"")]
    return SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def _own_bytes(packed: bytes) -> bytes:
    """A zlib stream without what follows its end."""
    stream = zlib.decompressobj()
    rest = packed
    while rest and not stream.eof:
        stream.decompress(rest, 1 << 20)
        rest = stream.unconsumed_tail
    return packed[: len(packed) - len(stream.unused_data)]


def _as_srgb(data: bytes, profile: bytes) -> bytes:
    """The picture with its colours in sRGB and no profile; one that is broken has no meaning."""
    with open_image(data) as image:
        if image.mode not in ("RGB", "RGBA", "L"):
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        try:
            given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            srgb = ImageCms.createProfile("sRGB")
            changed = ImageCms.profileToProfile(
                image, given, srgb, outputMode="RGB" if image.mode == "L" else image.mode
            )
        except (ImageCms.PyCMSError, OSError):
            changed = None  # browsers pass such a profile over too
        buffer = io.BytesIO()
        (changed or image).save(buffer, "PNG", icc_profile=b"")
        return buffer.getvalue()
