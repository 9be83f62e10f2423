"""Colour profiles reduced to what they do to colours (ICC.1:2022, sections 7.2, 9.2 and 10)."""

from __future__ import annotations

import struct

_DESCRIPTION = {
    2: b"desc" + bytes(4) + struct.pack(">I", 4) + b"ICC\0" + bytes(78),
    4: b"mluc" + bytes(4) + struct.pack(">II", 1, 12) + b"enUS" + struct.pack(">II", 6, 28)
    + "ICC".encode("utf-16-be"),
}  # fmt: skip
_RIGHTS = {2: b"text" + bytes(4) + b"\0", 4: _DESCRIPTION[4]}
_CURVES = {b"RGB ": (b"rTRC", b"gTRC", b"bTRC"), b"GRAY": (b"kTRC",)}
_POINTS = {b"RGB ": (b"rXYZ", b"gXYZ", b"bXYZ", b"wtpt"), b"GRAY": (b"wtpt",)}
_TABLES = (b"A2B", b"B2A", b"D2B", b"B2D")
_PARAMETERS = (1, 3, 4, 5, 7)
"""Of each type of parametric curve."""
_D50 = struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
_DATE = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)


def reduced_profile(profile: bytes) -> bytes:
    """A profile of curves and primaries with the same colours, without texts, times, makers, or
    bytes that no reader needs.

    Raises:
        ValueError: it is broken, or works by tables (which have room for anything).
    """
    try:
        return _reduced(profile)
    except struct.error as error:
        raise ValueError(f"the colour profile is broken: {error}") from error


def _reduced(profile: bytes) -> bytes:
    version, space = profile[8], profile[16:20]
    if profile[36:40] != b"acsp" or version not in (2, 4) or space not in _CURVES:
        raise ValueError(f"no RGB or grey profile of version 2 or 4: {profile[8:20]!r}")
    (count,) = struct.unpack_from(">I", profile, 128)
    given = {}
    for index in range(min(count, 100)):
        name, offset, size = struct.unpack_from(">4sII", profile, 132 + 12 * index)
        given[name] = profile[offset : offset + size]
    if any(name.startswith(_TABLES) for name in given):
        raise ValueError("the colour profile works by tables")
    missing = set(_CURVES[space] + _POINTS[space]) - set(given)
    if missing:
        raise ValueError(f"the colour profile lacks {sorted(missing)}")
    tags = {b"desc": _DESCRIPTION[version], b"cprt": _RIGHTS[version]}
    tags |= {name: _exact(given[name], b"XYZ ", 20) for name in _POINTS[space]}
    tags |= {name: _curve(given[name]) for name in _CURVES[space]}
    if b"chad" in given:
        tags[b"chad"] = _exact(given[b"chad"], b"sf32", 44)
    if b"cicp" in given:
        tags[b"cicp"] = _exact(given[b"cicp"], b"cicp", 12)
    (intent,) = struct.unpack_from(">I", profile, 64)
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, tag in tags.items():
        table += struct.pack(">4sII", name, start + len(body), len(tag))
        body += tag + bytes(-len(tag) % 4)
    header = (
        struct.pack(">I4xBB2x4s4s4s", start + len(body), version, 0x40 if version == 2 else 0x30,
                    b"mntr", space, b"XYZ ")
        + _DATE + b"acsp" + bytes(24) + struct.pack(">I", intent & 3) + _D50
    )  # fmt: skip
    return header.ljust(128, b"\0") + table + body


def _exact(tag: bytes, kind: bytes, size: int) -> bytes:
    if tag[:4] != kind or len(tag) < size:
        raise ValueError(f"the colour profile has {tag[:4]!r} of {len(tag)} bytes for {kind!r}")
    return kind + bytes(4) + tag[8:size]


def _curve(tag: bytes) -> bytes:
    if tag[:4] == b"para":
        (form,) = struct.unpack_from(">H", tag, 8)
        if form >= len(_PARAMETERS):
            raise ValueError(f"the colour profile has a curve of the unknown form {form}")
        return _exact(tag[:10] + bytes(2) + tag[12:], b"para", 12 + 4 * _PARAMETERS[form])
    (count,) = struct.unpack_from(">I", tag, 8)
    return _exact(tag, b"curv", 12 + 2 * count)
