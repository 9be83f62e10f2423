"""A studio with drawn posters, for the tests of the web app."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from annotate.records import Candidate, Generation, Prompt, Question
from annotate.store import PreferenceStore
from rewards.posters.draw import DEFECTS, draw
from rewards.posters.spec import PosterSpec, caption

PASSWORD = "a long enough password"
PEOPLE = {
    "mei": "annotator",
    "jonas": "annotator",
    "rita": "reviewer",
    "lea": "lead",
    "eva": "engineer",
    "ada": "admin",
}
HOST = "http://testserver"
SAME_ORIGIN = {"Origin": HOST, "Sec-Fetch-Site": "same-origin"}
MODEL = "acme-diffusion-v9"
SEED = "918273645"
SAMPLER = "zigzag-sampler"
TEXT_CHUNK = "drawn by"

_POSTERS = [
    (PosterSpec("cream", "circle", "red", "left", "TEA", "blue", "band"), "en"),
    (PosterSpec("navy", "star", "yellow", "center", "大吉", "red", "frame"), "zh"),
    (PosterSpec("mint", "triangle", "purple", "right", "SUN", "yellow", "plain"), "en"),
    (PosterSpec("pink", "heart", "blue", "left", "ART", "red", "frame"), "en"),
    (PosterSpec("gray", "ring", "orange", "center", "山水", "blue", "band"), "zh"),
    (PosterSpec("cream", "square", "green", "right", "NEW", "red", "plain"), "en"),
]
_FAULTS = (
    {},
    {"misalignment": 0.8, "noise": 0.35},
    {"clutter": 0.8},
    {"wrong_color": 0.9, "blur": 0.5},
    {"wobble": 0.5, "lost_button": 0.7},
    {"muddy": 0.8},
)


def png(image: Image.Image) -> bytes:
    """A PNG that says in its text where it comes from."""
    info = PngInfo()
    info.add_text("parameters", f"{TEXT_CHUNK} {MODEL}, seed {SEED}")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def make_studio(
    folder: Path,
    counts: Sequence[int] = (6, 5, 4, 6, 2, 6),
    size: int = 128,
    annotators: int = 1,
) -> PreferenceStore:
    """A store with one task for each of ``counts``: so many candidates, the first without fault."""
    store = PreferenceStore.open(folder)
    for name, role in PEOPLE.items():
        store.add_user(name, PASSWORD, role)
    assert all(name in DEFECTS for fault in _FAULTS for name in fault)
    for number, count in enumerate(counts):
        spec, lang = _POSTERS[number % len(_POSTERS)]
        prompt = Prompt(id=f"prompt-{number}", text=caption(spec, lang), lang=lang)
        images, candidates = {}, []
        for index in range(count):
            data = png(draw(spec, size, _FAULTS[index % len(_FAULTS)], seed=number * 10 + index))
            sha256 = hashlib.sha256(data).hexdigest()
            images[sha256] = data
            candidates.append(_candidate(prompt, index, sha256, size))
        store.add_prompts([prompt])
        store.add_candidates(candidates, images)
        question = list(Question)[number % len(Question)]
        order = random.Random(number).sample(candidates, count)
        shown = {prompt.id: [candidate.id for candidate in order]}
        store.add_tasks(shown, question, annotators, priority=-number)
    return store


def _candidate(prompt: Prompt, index: int, sha256: str, size: int) -> Candidate:
    return Candidate(
        id=f"{prompt.id}-{MODEL}-{index}",
        prompt_id=prompt.id,
        image_sha256=sha256,
        width=size,
        height=size,
        generation=Generation(
            model=MODEL,
            model_sha256="5" * 64,
            seed=SEED,
            sampler=SAMPLER,
            steps=8,
            guidance_scale=4.0,
            height=size,
            width=size,
            dtype="float32",
            device="cpu",
        ),
    )


def secrets_of(store: PreferenceStore) -> list[str]:
    """Texts that must never reach an annotator's browser."""
    candidates = store.candidates()
    hashes = [candidate.image_sha256 for candidate in candidates]
    ids = [candidate.id for candidate in candidates]
    return [MODEL, SEED, SAMPLER, TEXT_CHUNK, "5" * 64, "winsome.db", *hashes, *ids]


def sign_in(app: FastAPI, name: str) -> TestClient:
    client = TestClient(app, base_url=HOST, headers=SAME_ORIGIN, follow_redirects=False)
    answer = client.post("/login", data={"name": name, "password": PASSWORD})
    assert answer.status_code == 303, answer.text
    return client
