"""How much of a target is right, by class of character: Chinese, Latin, figures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from rewards.text.distance import edit_distance
from rewards.text.matching import visible
from rewards.text.targets import normalise

__all__ = ["FIGURE_WEIGHT", "class_accuracy", "class_weights", "combine", "is_han"]

FIGURE_WEIGHT = 4.0
"""A number or price counts as so many Chinese characters: it is right or it is wrong."""
_LETTER_WEIGHT = 0.5
"""Two Latin letters count as one Chinese character."""
_FIGURE = re.compile(r"[$¥€£]?\d+(?:[.,:/-]\d+)*%?")


def is_han(character: str) -> bool:
    """A Chinese character: the unified ideographs and their extensions."""
    code = ord(character)
    return 0x3400 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x3FFFF


def class_weights(target: str) -> dict[str, float]:
    """How much each class weighs in a target, in Chinese characters; empty for mere signs."""
    weights = {
        "han": float(len(_han(target))),
        "latin": _LETTER_WEIGHT * len("".join(_words(target))),
        "figures": FIGURE_WEIGHT * len(_figures(target)),
    }
    return {name: weight for name, weight in weights.items() if weight}


def class_accuracy(target: str, shown: str) -> dict[str, float]:
    """In [0, 1] for each class that the target has; ``shown`` is what stands there, may be empty.

    - ``han``: 1 - edit distance / length, over the Chinese characters.
    - ``latin``: the mean of the share of words that are right (as in CVTG-2K) and of
      1 - edit distance / length over the letters.
    - ``figures``: the share of numbers and prices that are right in full.
    """
    found: dict[str, float] = {}
    if characters := _han(target):
        found["han"] = _similarity(characters, _han(shown))
    if words := _words(target):
        recall = _recall(words, _words(shown))
        found["latin"] = (recall + _similarity("".join(words), "".join(_words(shown)))) / 2
    if figures := _figures(target):
        found["figures"] = _recall(figures, _figures(shown))
    return found


def combine(target: str, shown: str, clean: str) -> float | None:
    """The target's accuracy over its classes by weight, held against what can be read of it.

    A class is as right as it is like the target, or like the clean rendering as it was read,
    whichever is more: the engine's own mistakes cost nothing, others all the same.

    Args:
        clean: what the engine reads of a clean rendering of the target; classes of which that is
            less than half are left out.
    Returns:
        In [0, 1]; None when the engine can read none of it.
    """
    weights = class_weights(target)
    if not weights:
        return _similarity(visible(target), visible(shown))
    readable, alike = class_accuracy(target, clean), class_accuracy(clean, shown)
    total = weight_sum = 0.0
    for name, accuracy in class_accuracy(target, shown).items():
        if readable[name] >= 0.5:
            total += weights[name] * max(accuracy, alike.get(name, 0.0))
            weight_sum += weights[name]
    return total / weight_sum if weight_sum else None


def _similarity(wanted: Sequence[str], shown: Sequence[str]) -> float:
    return max(0.0, 1.0 - edit_distance(wanted, shown) / len(wanted))


def _recall(wanted: Sequence[str], shown: Sequence[str]) -> float:
    return (Counter(wanted) & Counter(shown)).total() / len(wanted)


def _han(text: str) -> list[str]:
    return [character for character in normalise(text) if is_han(character)]


def _words(text: str) -> list[str]:
    spaced = "".join(" " if is_han(c) else c for c in normalise(text))
    return re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", spaced)


def _figures(text: str) -> list[str]:
    return _FIGURE.findall(normalise(text))
