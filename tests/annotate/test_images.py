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


def taken_in(image: Image.Image, kind: str = "PNG", **options) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    data, size = png_of(buffer.getvalue(), "a")
    with Image.open(io.BytesIO(data)) as kept:
        kept.load()
    assert kept.size == size
    return kept


def test_a_picture_looks_the_same_after_import():
    grey = Image.fromarray(np.array([[0, 257, 32768, 65535]], np.uint16))
    assert np.asarray(taken_in(grey)).tolist() == [[0, 1, 128, 255]]
    half = taken_in(Image.new("LA", (1, 1), (9, 99)))
    assert (half.mode, half.getpixel((0, 0))) == ("RGBA", (9, 9, 9, 99))
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([0, 0, 0, 5, 6, 7])
    assert taken_in(palette, transparency=1).getpixel((0, 0)) == (5, 6, 7, 0)
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn clockwise
    wide = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    kept = taken_in(wide, exif=turned)
    assert np.array_equal(np.asarray(kept), np.rot90(np.asarray(wide), -1))
    assert not kept.getexif()
    cmyk = taken_in(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    assert (cmyk.mode, "icc_profile" in cmyk.info) == ("RGB", False)
    rgb_profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    alien = taken_in(Image.new("CMYK", (8, 8)), "JPEG", icc_profile=rgb_profile[:16] + b"GRAY")
    assert "icc_profile" not in alien.info
