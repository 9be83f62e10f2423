"""The texts that an image must show: from structured data, or from a prompt's quotes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["TextTarget", "normalise", "parse_quoted", "read_targets"]

_QUOTES = {"“": "”", "‘": "’", "「": "」", "『": "』", '"': '"', "＂": "＂"}


@dataclass(frozen=True, slots=True)
class TextTarget:
    """One text that must stand in the image."""

    text: str
    role: str = ""
    """What it is on the page, e.g. ``headline``; carried along for reports."""
    order: int | None = None
    """Its place in the reading order; None where any place will do."""

    def __post_init__(self) -> None:
        if not normalise(self.text):
            raise ValueError(f"a text target must hold a character, got {self.text!r}")


def normalise(text: str) -> str:
    """As a reader takes it: width and case do not count, nor do runs of spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def read_targets(metadata: Mapping[str, Any]) -> tuple[TextTarget, ...] | None:
    """The targets under ``metadata["text_targets"]``, or None when that is absent.

    Each is a text, or a mapping with ``text`` and perhaps ``role`` and ``order``. Plain texts are
    to be read in the order in which they are listed.

    Raises:
        ValueError: something else is there.
    """
    listed = metadata.get("text_targets")
    if listed is None:
        return None
    if isinstance(listed, str) or not hasattr(listed, "__iter__"):
        raise ValueError(f"text_targets must be a list of texts or mappings, got {listed!r}")
    return tuple(_read_target(entry, place) for place, entry in enumerate(listed))


def _read_target(entry: Any, place: int) -> TextTarget:
    if isinstance(entry, TextTarget):
        return entry
    if isinstance(entry, str):
        return TextTarget(entry, order=place)
    if isinstance(entry, Mapping):
        known = {"text", "role", "order"}
        if "text" in entry and entry.keys() <= known:
            return TextTarget(**entry)
        raise ValueError(f"a text target has the keys {sorted(known)}, got {sorted(entry)}")
    raise ValueError(f"a text target must be a text or a mapping, got {entry!r}")


def parse_quoted(prompt: str) -> tuple[TextTarget, ...]:
    """The texts that a prompt quotes, outermost quotes only, without an order.

    Knows ``“ ” ‘ ’ 「 」 『 』`` and straight double quotes. An apostrophe is no quote; a quote
    without its partner quotes nothing.
    """
    found: list[TextTarget] = []
    position = 0
    while position < len(prompt):
        opening = prompt[position]
        end = _closing(prompt, position) if opening in _QUOTES else None
        if end is None:
            position += 1
            continue
        text = prompt[position + 1 : end]
        if normalise(text):
            found.append(TextTarget(text.strip()))
        position = end + 1
    return tuple(found)


def _closing(prompt: str, start: int) -> int | None:
    """Where the quote opened at ``start`` is closed, nested quotes of its kind counted."""
    opening, closing = prompt[start], _QUOTES[prompt[start]]
    depth = 0
    for index in range(start, len(prompt)):
        character = prompt[index]
        if character == "’" and re.match(r"\w’\w", prompt[max(index - 1, 0) : index + 2]):
            continue  # as in “it’s”
        if character == closing and (opening != closing or index > start):
            depth -= 1
            if depth <= 0:
                return index
        elif character == opening:
            depth += 1
    return None
