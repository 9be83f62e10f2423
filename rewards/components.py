"""Which prompts belong together: near-duplicates by text or by image share one split.

A pair from one brief in training and its twin in the test is a leak that no accuracy shows. The
unit of a split is the connected component of everything alike.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image, Resampling

from annotate.records import Prompt, Snapshot, Split
from rewards.images import open_candidate
from rewards.splits import LeakError, what_is_asked

__all__ = [
    "Component",
    "assign_splits",
    "check_components",
    "check_snapshot",
    "find_components",
    "perceptual_hash",
    "similar_hashes",
    "similar_texts",
    "snapshot_components",
]

MAX_SHARE = 0.3
"""Of all prompts in one component; a larger one leaves no split worth the name."""
MIN_VALUES = 50
"""Values of a template or batch from which it joins prompts: fewer would join nearly all."""
MIN_JACCARD = 0.9
MAX_BITS = 10
_SHINGLE = 4
_BANDS, _ROWS = 20, 5
_HASH_SIDE, _DCT_SIDE = 16, 64


@dataclass(frozen=True, slots=True)
class Component:
    """Prompts that must share a split, and how many links of each kind join them."""

    prompt_ids: tuple[str, ...]
    links: Mapping[str, int]


def find_components(
    prompts: Sequence[Prompt],
    image_hashes: Mapping[str, Sequence[bytes]] | None = None,
    join_by: Sequence[str] = ("template", "batch"),
) -> list[Component]:
    """Connected components of alike prompts, the largest first.

    Prompts with a ``spec`` in their metadata are alike where that is equal; others by text and
    image.

    Args:
        image_hashes: `perceptual_hash` of the images of each prompt, by its id.
        join_by: keys of the prompts' metadata that join those of one value, where they have at
            least `MIN_VALUES` values.
    """
    # A drawn poster is its specification: captions and pictures of two are alike by construction.
    free = [place for place, prompt in enumerate(prompts) if "spec" not in prompt.metadata]
    texts = [what_is_asked(prompts[place]) for place in free]
    links = [("text", free[a], free[b]) for a, b in similar_texts(texts)]
    specs: dict[str, int] = {}
    for place, prompt in enumerate(prompts):
        if "spec" in prompt.metadata:
            key = json.dumps(prompt.metadata["spec"], sort_keys=True)
            if (first := specs.setdefault(key, place)) != place:
                links.append(("specification", first, place))
    owners = [
        (place, digest)
        for place in free
        for digest in (image_hashes or {}).get(prompts[place].id, ())
    ]
    links += [
        ("image", owners[a][0], owners[b][0])
        for a, b in similar_hashes([digest for _, digest in owners])
        if owners[a][0] != owners[b][0]
    ]
    for key in join_by:
        groups: dict[str, list[int]] = defaultdict(list)
        for place, prompt in enumerate(prompts):
            if key in prompt.metadata:
                groups[str(prompt.metadata[key])].append(place)
        if len(groups) >= MIN_VALUES:
            links += [(key, group[0], other) for group in groups.values() for other in group[1:]]
    root = _union(len(prompts), [(a, b) for _, a, b in links])
    kinds: dict[int, Counter[str]] = defaultdict(Counter)
    for kind, a, _ in links:
        kinds[root[a]][kind] += 1
    members: dict[int, list[str]] = defaultdict(list)
    for place, prompt in enumerate(prompts):
        members[root[place]].append(prompt.id)
    found = [Component(tuple(sorted(ids)), dict(kinds[r])) for r, ids in members.items()]
    return sorted(found, key=lambda c: (-len(c.prompt_ids), c.prompt_ids))


def check_snapshot(snapshot: Snapshot, images: bool) -> list[Component]:
    """The components of a snapshot's prompts, refused where `check_components` does.

    Args:
        images: compare the images too, of which each is read.

    Raises:
        LeakError: as `check_components`.
        OSError: an image is missing.
    """
    components = snapshot_components(snapshot, images)
    check_components(components, {prompt.id: prompt.split for prompt in snapshot.prompts})
    return components


def snapshot_components(snapshot: Snapshot, images: bool) -> list[Component]:
    """`find_components` of a snapshot; ``images``: compare them too, of which each is read."""
    hashes: dict[str, list[bytes]] = defaultdict(list)
    for candidate in snapshot.candidates if images else ():
        if "spec" in snapshot.prompt_of[candidate.prompt_id].metadata:
            continue
        hashes[candidate.prompt_id].append(perceptual_hash(open_candidate(snapshot, candidate)))
    return find_components(snapshot.prompts, hashes)


def check_components(components: Sequence[Component], split_of: Mapping[str, Split]) -> None:
    """Refuse splits that cut a component, and a component too large to split around.

    Raises:
        LeakError: two alike prompts stand in two splits, or one component has more than
            `MAX_SHARE` of the prompts (given that there are enough to tell).
    """
    _check_sizes(components)
    for component in components:
        splits = {split_of[prompt_id] for prompt_id in component.prompt_ids}
        if len(splits) > 1:
            where = {split.value: _first(component, split, split_of) for split in sorted(splits)}
            raise LeakError(
                f"{len(component.prompt_ids)} prompts are alike by {_kinds(component)} but stand "
                f"in several splits: {where}"
            )


def assign_splits(
    components: Sequence[Component], shares: Mapping[Split, float], seed: int
) -> dict[str, Split]:
    """A split for each prompt: whole components, larger ones first, each where most is lacking.

    Args:
        shares: of the prompts, by split; they sum to 1.

    Raises:
        LeakError: a component is too large.
        ValueError: the shares do not sum to 1.
    """
    if abs(sum(shares.values()) - 1.0) > 1e-6 or min(shares.values()) < 0:
        raise ValueError(f"shares must be at least 0 and sum to 1, got {dict(shares)}")
    _check_sizes(components)
    total = sum(len(component.prompt_ids) for component in components)
    lacking = {split: share * total for split, share in shares.items()}

    def order(component: Component) -> tuple[int, bytes]:
        key = f"{seed}/{component.prompt_ids[0]}".encode()
        return -len(component.prompt_ids), hashlib.sha256(key).digest()

    assigned: dict[str, Split] = {}
    for component in sorted(components, key=order):
        split = max(lacking, key=lambda name: (lacking[name], name.value))
        lacking[split] -= len(component.prompt_ids)
        assigned |= dict.fromkeys(component.prompt_ids, split)
    return assigned


def similar_texts(texts: Sequence[str], min_jaccard: float = MIN_JACCARD) -> list[tuple[int, int]]:
    """Pairs of texts whose sets of 4-character shingles are alike, by Jaccard's index.

    Candidates come from MinHash in 20 bands of 5 (Broder 1997): at 0.9 alike, one pair in 10,000
    is missed or fewer. Equal texts are linked to the first of them.
    """
    first: dict[str, int] = {}
    links = [(first[t], i) for i, t in enumerate(texts) if first.setdefault(t, i) != i]
    places = sorted(first.values())
    shingles = {place: _shingles(texts[place]) for place in places}
    buckets: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place in places:
        signature = _min_hash(shingles[place])
        for band in range(_BANDS):
            rows = signature[band * _ROWS : (band + 1) * _ROWS]
            buckets[band, *(int(value) for value in rows)].append(place)
    candidates = {
        (a, b) for bucket in buckets.values() for i, a in enumerate(bucket) for b in bucket[i + 1 :]
    }
    for a, b in sorted(candidates):
        shared = len(shingles[a] & shingles[b])
        if shared >= min_jaccard * len(shingles[a] | shingles[b]):
            links.append((a, b))
    return links


def perceptual_hash(image: Image) -> bytes:
    """256 bits that survive resizing, JPEG and small changes of colour.

    The 16 x 16 lowest frequencies of the cosine transform of the 64 x 64 grey image, each above or
    below their median (as pHash does with 8 x 8).
    """
    grey = image.convert("L").resize((_DCT_SIDE, _DCT_SIDE), Resampling.LANCZOS)
    basis = _dct_basis(_DCT_SIDE)[:_HASH_SIDE]
    low = basis @ np.asarray(grey, dtype=np.float64) @ basis.T
    # Rounding keeps frequencies that a flat image does not have from flickering about 0.
    low = low.round(6)
    return np.packbits(low > np.median(low)).tobytes()


def similar_hashes(hashes: Sequence[bytes], max_bits: int = MAX_BITS) -> list[tuple[int, int]]:
    """Pairs of hashes that differ in at most ``max_bits`` bits; exhaustive, in blocks."""
    if not hashes:
        return []
    bits = np.frombuffer(b"".join(hashes), dtype=np.uint64).reshape(len(hashes), -1)
    links: list[tuple[int, int]] = []
    for start in range(0, len(bits), 256):
        block = bits[start : start + 256]
        distance = np.bitwise_count(block[:, None] ^ bits[None, start:]).sum(axis=2)
        for a, b in np.argwhere(distance <= max_bits):
            if a < b:
                links.append((start + int(a), start + int(b)))
    return links


def _check_sizes(components: Sequence[Component]) -> None:
    total = sum(len(component.prompt_ids) for component in components)
    for component in components:
        # A handful of prompts has no small components.
        if total >= 10 and len(component.prompt_ids) > MAX_SHARE * total:
            raise LeakError(
                f"{len(component.prompt_ids)} of {total} prompts are alike by {_kinds(component)}, "
                f"more than {MAX_SHARE:.0%}: no split can keep them together and still measure; "
                f"the first is {component.prompt_ids[0]!r}"
            )


def _kinds(component: Component) -> str:
    return ", ".join(f"{kind} ({count})" for kind, count in sorted(component.links.items()))


def _first(component: Component, split: Split, split_of: Mapping[str, Split]) -> str:
    return next(p for p in component.prompt_ids if split_of[p] == split)


def _union(count: int, links: Iterable[tuple[int, int]]) -> list[int]:
    """The root of each place."""
    parent = list(range(count))

    def find(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for a, b in links:
        parent[max(find(a), find(b))] = min(find(a), find(b))
    return [find(place) for place in range(count)]


def _shingles(text: str) -> frozenset[int]:
    padded = text if len(text) >= _SHINGLE else text.ljust(_SHINGLE)
    return frozenset(
        int.from_bytes(hashlib.blake2b(padded[i : i + _SHINGLE].encode(), digest_size=4).digest())
        for i in range(len(padded) - _SHINGLE + 1)
    )


_PRIME = np.uint64(2**31 - 1)
_RNG = random.Random(0)
_A, _B = (
    np.array([_RNG.randrange(1, 2**31 - 1) for _ in range(_BANDS * _ROWS)], dtype=np.uint64)
    for _ in range(2)
)


def _min_hash(shingles: frozenset[int]) -> NDArray[np.uint64]:
    values = np.array(sorted(shingles), dtype=np.uint64) % _PRIME
    return ((values[:, None] * _A + _B) % _PRIME).min(axis=0)


def _dct_basis(side: int) -> NDArray[np.float64]:
    """(side, side), orthonormal cosine transform of the second kind."""
    k, n = np.arange(side)[:, None], np.arange(side)[None]
    basis = np.cos(np.pi * k * (2 * n + 1) / (2 * side)) * np.sqrt(2 / side)
    basis[0] /= np.sqrt(2)
    return basis
