"""Pictures that come in and pictures that go out: sizes, colours, ends, and nothing hidden."""

from __future__ import annotations

import io
import struct
import tracemalloc
import warnings
import zlib

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


def test_colour_meaning_is_kept_under_a_plain_name():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG", icc_profile=profile, dpi=(300, 300))
    data = SIGNATURE + b"".join(
        chunk(kind, body.replace(b"ICC Profile\0", b"SecretModel\0"))
        for kind, body in png_chunks(buffer.getvalue())
    )
    with Image.open(io.BytesIO(strip_metadata(data))) as image:
        image.load()
        assert image.info["icc_profile"] == profile
        assert "dpi" not in image.info
    assert b"SecretModel" in data
    assert b"SecretModel" not in strip_metadata(data)
