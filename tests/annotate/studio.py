"""Small studios for the tests of the store."""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime

from annotate.records import Candidate, Generation, Prompt, Split, Task
from annotate.store import Claim, PreferenceStore, Submission, User

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
PASSWORD = "correct horse"


@dataclass(frozen=True)
class Place:
    """Where a store is: what `PreferenceStore.open` takes."""

    location: str
    images: str

    def open(self, **options) -> PreferenceStore:
        return PreferenceStore.open(self.location, images=self.images, **options)


def png(colour: int, size: tuple[int, int] = (8, 6)) -> bytes:
    """A one-colour RGB PNG, uncompressed: its bytes are the same with every zlib."""
    width, height = size
    row = b"\0" + bytes((colour % 256, colour // 256 % 256, 7)) * width
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(row * height, 0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_prompts(count: int) -> list[Prompt]:
    splits = [Split.TRAIN, Split.TRAIN, Split.VALIDATION]
    return [
        Prompt(
            id=f"prompt-{i}",
            text=f"a poster with the word 你好 and number {i}\u2028!",
            lang="zh" if i % 2 else "en",
            split=splits[i % 3],
            metadata={"Zahl": 1e16, "null": None, "äöü": [i, -0.0]},
        )
        for i in range(count)
    ]


def make_candidates(prompts: list[Prompt], each: int) -> tuple[list[Candidate], dict[str, bytes]]:
    images: dict[str, bytes] = {}
    candidates = []
    for p, prompt in enumerate(prompts):
        for c in range(each):
            data = png(p * each + c)
            images[sha256(data)] = data
            generation = Generation(
                model="flux-dev-secret",
                model_sha256="0" * 64,
                seed=str(2**64 - 1 - c),
                steps=12,
                guidance_scale=1e-7,
                height=6,
                width=8,
                dtype="float32",
                device="cpu",
                versions={"torch": "2.13.0"},
            )
            candidates.append(
                Candidate(
                    id=f"{prompt.id}-c{c}",
                    prompt_id=prompt.id,
                    image_sha256=sha256(data),
                    width=8,
                    height=6,
                    generation=generation if c else None,
                )
            )
    return candidates, images


def fill(store: PreferenceStore, tasks: int = 3, each: int = 4, annotators: int = 1) -> list[Task]:
    """Prompts, candidates and one task a prompt."""
    prompts = make_prompts(tasks)
    candidates, images = make_candidates(prompts, each)
    store.add_prompts(prompts)
    store.add_candidates(candidates, images)
    groups = {p.id: [c.id for c in candidates if c.prompt_id == p.id] for p in prompts}
    return store.add_tasks(groups, annotators_per_task=annotators)


def add_users(store: PreferenceStore, *names: str, role: str = "annotator") -> list[User]:
    return [store.add_user(name, PASSWORD, role) for name in names]


def answer(claim: Claim, key: str, outcome: str = "picked", **values) -> Submission:
    """A submission for a claim; by default the first position wins and the second loses."""
    if outcome == "picked":
        values = {"win_position": 0, "lose_position": 1, **values}
    if outcome == "flag":
        values = {"note": "two prompts in one", **values}
    return Submission(
        idempotency_key=key.ljust(8, "-"),
        assignment_id=claim.assignment_id,
        lease_token=claim.lease_token,
        outcome=outcome,
        **values,
    )
