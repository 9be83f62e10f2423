"""Edit distances on characters."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["edit_distance", "find_best"]


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Levenshtein: the fewest insertions, deletions and substitutions that make ``a`` into ``b``.

    Longer sequences cost len(a) * len(b) steps.
    """
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(diagonal + (x != y), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def find_best(pattern: Sequence[str], text: Sequence[str]) -> tuple[int, int, int]:
    """The part of ``text`` nearest to ``pattern`` (Sellers 1980, semi-global alignment).

    Returns:
        (distance, start, end): ``edit_distance(pattern, text[start:end])`` is the least over all
        parts; the first such part that is as long as possible.
    """
    # Each cell holds (distance, start of the part that it ends); a part may start anywhere free.
    row = [(0, j) for j in range(len(text) + 1)]
    for i, x in enumerate(pattern, start=1):
        diagonal, row[0] = row[0], (i, 0)
        for j, y in enumerate(text, start=1):
            options = (
                (diagonal[0] + (x != y), diagonal[1]),
                (row[j][0] + 1, row[j][1]),
                (row[j - 1][0] + 1, row[j - 1][1]),
            )
            diagonal, row[j] = row[j], min(options)
    end = min(range(len(row)), key=lambda j: (row[j][0], row[j][1] - j, j))
    distance, start = row[end]
    return distance, start, end
