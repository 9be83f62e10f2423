"""Which prompts a reward model learns from, and the refusal of any that leak.

A split is made by prompt, never by pair: pairs of one prompt share their images, and a model that
learnt one of them has seen the other.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence

from annotate.records import Prompt

__all__ = [
    "LeakError",
    "check_disjoint",
    "normalise_prompt",
    "prompt_digest",
    "set_aside",
    "what_is_asked",
]


class LeakError(ValueError):
    """The same prompt lies in two splits."""


def normalise_prompt(text: str) -> str:
    """The text as a reader takes it: width, case, spacing and punctuation do not count."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = [
        " " if character.isspace() or unicodedata.category(character)[0] in "PZC" else character
        for character in folded
    ]
    return " ".join("".join(kept).split())


def what_is_asked(prompt: Prompt) -> str:
    """The normalised text, and the picture that it asks to edit: "make it blue" of another picture
    is another prompt."""
    return " ".join(filter(None, (normalise_prompt(prompt.text), prompt.source_image)))


def check_disjoint(prompts: Iterable[Prompt]) -> None:
    """Refuse prompts of which one id, or what is asked, stands in two splits.

    Raises:
        LeakError: naming the two prompts, their splits and the text.
    """
    seen: dict[str, Prompt] = {}
    for prompt in prompts:
        for key in (f"id {prompt.id}", f"text {what_is_asked(prompt)}"):
            other = seen.setdefault(key, prompt)
            if other.split != prompt.split:
                raise LeakError(
                    f"prompt {prompt.text!r} leaks: {other.id!r} is in {other.split.value!r} and "
                    f"{prompt.id!r} in {prompt.split.value!r}; a prompt may be in one split only"
                )


def set_aside(prompt_ids: Sequence[str], fraction: float, seed: int) -> frozenset[str]:
    """A seeded ``fraction`` of the prompts (at least one), the same in whatever order they come."""
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")

    def rank(prompt_id: str) -> bytes:
        return hashlib.sha256(f"{seed}/{prompt_id}".encode()).digest()

    unique = sorted(set(prompt_ids), key=rank)
    return frozenset(unique[: max(1, round(fraction * len(unique)))])


def prompt_digest(prompt: Prompt) -> str:
    """Names a prompt by what it asks without telling it."""
    return hashlib.sha256(what_is_asked(prompt).encode()).hexdigest()[:32]
