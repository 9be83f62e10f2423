"""Pictures that come in and pictures that go out: sizes, colours, ends, and nothing hidden."""

from __future__ import annotations

import io
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from studio import png

from annotate.images import png_of
from annotate.store import StoreError
from annotate.store.pictures import SIGNATURE, png_chunks, png_size
from annotate.web.images import strip_metadata


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("side", [13300, 30000])
def test_a_bomb_is_refused_by_its_header_without_a_warning(side):
    rows = zlib.compress(bytes(1 << 20))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    tracemalloc.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(StoreError, match=rf"big\.png: the image has {side * side} pixels"):
            png_of(bomb, "big.png")
        with pytest.raises(StoreError, match="at most 67108864 are taken"):
            png_size(bomb)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("lost", [1, 4, 8, 12])
def test_a_png_without_its_whole_end_is_refused(lost):
    whole = png(3)
    assert png_of(whole, "a")[1] == png_size(whole) == (8, 6)
    with pytest.raises(StoreError, match=r"a\.png cannot be decoded: the PNG is truncated"):
        png_of(whole[:-lost], "a.png")
    with pytest.raises(StoreError, match="the PNG is truncated"):
        png_size(whole[:-lost])


def rebuilt(data: bytes, change) -> bytes:
    chunks = (chunk(kind, change(kind, body)) for kind, body in png_chunks(data))
    return SIGNATURE + b"".join(chunks)


def hide(kind: bytes, body: bytes) -> bytes:
    """What a writer may say of itself where colours and pixels stand."""
    if kind == b"iCCP":
        profile = bytearray(zlib.decompress(body[body.index(b"\0") + 2 :]) + b"SecretModel")
        profile[48:52] = b"Secr"
        return b"SecretModel\0\0" + zlib.compress(profile)
    return body + b"SecretModel" if kind == b"IDAT" else body


def test_colours_stay_and_what_a_writer_says_beside_them_goes():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    colours = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours).save(buffer, "PNG", icc_profile=profile, dpi=(300, 300))
    clean = strip_metadata(rebuilt(buffer.getvalue(), hide))
    assert b"SecretModel" not in clean
    with Image.open(io.BytesIO(clean)) as image:
        assert np.array_equal(np.asarray(image), colours)
        assert set(image.info) == {"icc_profile"}
        kept = image.info["icc_profile"]
        for word in (b"Secr", b"lcms", b"sRGB", "sRGB".encode("utf-16-be")):
            assert word not in kept
        lab = ImageCms.createProfile("LAB")
        seen = [
            ImageCms.profileToProfile(image, io.BytesIO(each), lab, outputMode="LAB")
            for each in (profile, kept)
        ]
        assert np.array_equal(*map(np.asarray, seen))
    assert strip_metadata(clean) == clean
