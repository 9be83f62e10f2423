"""Which lines of an image show which target.

A target may be wrapped over several lines, and a line may hold several targets. So targets are
matched to parts of *spans*: single lines, and runs of lines that stand beside or under one another.
No recognised character serves two targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewards.text.distance import find_best
from rewards.text.engines import TextLine
from rewards.text.targets import TextTarget, normalise

__all__ = ["Match", "match_targets", "visible"]

MAX_LINES = 4
"""A span has at most so many lines."""
MAX_NODES = 20_000
"""Partial assignments that the search looks at."""
_LINE_COST = 0.01
"""Between readings of equal distance, the one of fewer lines is meant."""

Place = tuple[int, int]
"""(line, character in its visible text)"""


@dataclass(frozen=True, slots=True)
class Match:
    """A target and the characters that show it."""

    target: int
    lines: tuple[int, ...]
    text: str
    """Normalised, as it stands in the image."""
    distance: int
    """Edits between it and the target, spaces left out."""
    places: frozenset[Place]


def visible(text: str) -> str:
    """Normalised, without spaces."""
    return normalise(text).replace(" ", "")


def match_targets(targets: Sequence[TextTarget], lines: Sequence[TextLine]) -> list[Match | None]:
    """Assign each target a part of a span, or None, at the least total cost in edits.

    A missing target costs its length. The search (branch and bound, best first) is exact unless
    it meets more than `MAX_NODES` partial assignments; then the best so far stands.
    """
    spans = _spans(lines)
    patterns = [visible(target.text) for target in targets]
    keep = max(6, len(targets))
    options = [
        _candidates(index, pattern, spans, lines)[:keep] for index, pattern in enumerate(patterns)
    ]
    return _least_cost(options, [float(len(pattern)) for pattern in patterns])


def _spans(lines: Sequence[TextLine]) -> list[tuple[int, ...]]:
    """Single lines, and runs of up to `MAX_LINES` neighbours."""
    follows = [
        [b for b in range(len(lines)) if a != b and _is_next(lines[a], lines[b])]
        for a in range(len(lines))
    ]
    found: list[tuple[int, ...]] = []
    frontier: list[tuple[int, ...]] = [(index,) for index in range(len(lines))]
    for _ in range(MAX_LINES):
        found.extend(frontier)
        frontier = [
            (*span, after) for span in frontier for after in follows[span[-1]] if after not in span
        ]
    return found


def _is_next(a: TextLine, b: TextLine) -> bool:
    """Whether ``b`` continues ``a``: to its right on one row, or under it at a like size."""
    left_a, top_a, right_a, bottom_a = a.bounds
    left_b, top_b, right_b, bottom_b = b.bounds
    height = min(a.height, b.height)
    beside = min(bottom_a, bottom_b) - max(top_a, top_b) > 0.5 * height
    if beside:
        return -0.5 * height <= left_b - right_a <= 2.0 * height
    under = min(right_a, right_b) - max(left_a, left_b) > 0.3 * min(
        right_a - left_a, right_b - left_b
    )
    alike = max(a.height, b.height) < 1.6 * height
    return under and alike and -0.3 * height <= top_b - bottom_a <= 1.2 * height


def _candidates(
    index: int, pattern: str, spans: Sequence[tuple[int, ...]], lines: Sequence[TextLine]
) -> list[tuple[float, Match]]:
    """Parts of spans that show more of the target than nothing does, nearest first."""
    found: list[tuple[float, float, Match]] = []
    for span in spans:
        places = [(line, at) for line in span for at in range(len(visible(lines[line].text)))]
        text = "".join(visible(lines[line].text) for line in span)
        distance, start, end = find_best(pattern, text)
        used = places[start:end]
        if distance >= len(pattern) or {line for line, _ in used} != set(span):
            continue  # nothing of it, or a shorter span says the same
        cost = distance + _LINE_COST * (len(span) - 1)
        size = max(lines[line].height for line in span)
        shown = " ".join(_part(lines[line].text, used, line) for line in span)
        match = Match(index, span, shown, distance, frozenset(used))
        found.append((cost, -size, match))
    found.sort(key=lambda entry: (entry[0], entry[1], entry[2].lines))
    return [(cost, match) for cost, _, match in found]


def _part(text: str, used: Sequence[Place], line: int) -> str:
    """The used characters of a line, with the spaces between them."""
    wanted = [at for index, at in used if index == line]
    part, at = "", 0
    for character in normalise(text):
        if wanted[0] <= at <= wanted[-1] and not (character == " " and not part):
            part += character
        at += character != " "
    return part.strip()


def _least_cost(
    options: Sequence[Sequence[tuple[float, Match]]], missing: Sequence[float]
) -> list[Match | None]:
    floor = [0.0] * (len(options) + 1)
    for index in reversed(range(len(options))):
        least = options[index][0][0] if options[index] else missing[index]
        floor[index] = floor[index + 1] + least
    best_cost, nodes = float("inf"), 0
    best: list[Match | None] = [None] * len(options)

    def visit(index: int, cost: float, used: frozenset[Place], chosen: list[Match | None]) -> None:
        nonlocal best_cost, best, nodes
        nodes += 1
        if cost + floor[index] >= best_cost or nodes > MAX_NODES:
            return
        if index == len(options):
            best_cost, best = cost, list(chosen)
            return
        for extra, match in options[index]:
            if not match.places & used:
                visit(index + 1, cost + extra, used | match.places, [*chosen, match])
        visit(index + 1, cost + missing[index], used, [*chosen, None])

    visit(0, 0.0, frozenset(), [])
    return best
