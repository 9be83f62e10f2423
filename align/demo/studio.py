"""The studio of the demo: prompts, reference posters, tasks, and designers at work."""

from __future__ import annotations

import hashlib
import json
import random
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from align.demo.config import DemoConfig
from align.pretrain.data import random_defects
from annotate.records import Candidate, Outcome, Prompt, Question, Split
from annotate.store import PreferenceStore, Submission, User
from rewards.posters.designers import Designer, studio_designers
from rewards.posters.draw import draw, quality_score
from rewards.posters.spec import PosterSpec, caption, random_spec

CRITERION_QUESTIONS = (Question.AESTHETICS, Question.INSTRUCTION, Question.DETAIL)


def make_prompts(count: int, split: Split, seed: int) -> list[Prompt]:
    """Captions of distinct specifications of one split, English and Chinese in turn."""
    rng = random.Random(f"{seed}/prompts/{split}")
    specs: dict[PosterSpec, None] = {}
    while len(specs) < count:
        specs[random_spec(rng, split=split.value)] = None
    prompts = []
    for i, spec in enumerate(specs):
        lang = ("en", "zh")[i % 2]
        text = caption(spec, lang)
        prompts.append(
            Prompt(
                id=hashlib.sha256(text.encode()).hexdigest()[:16],
                text=text,
                lang=lang,
                category="poster",
                split=split,
                metadata={"spec": spec.to_dict()},
            )
        )
    return prompts


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(p.model_dump_json() + "\n" for p in prompts), encoding="utf-8")
    return path


def write_references(path: Path, config: DemoConfig) -> None:
    """Reference posters with the scores of their severities as drawn: a JSONL for SFT."""
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"{config.seed}/references")
    lines = []
    for i in range(config.references):
        split = "validation" if i % 4 == 0 else "train"
        spec = random_spec(rng, split=split)
        defects = {} if rng.random() < 0.5 else random_defects(rng, min_quality=4.0)
        name = f"{i:05d}.png"
        draw(spec, defects=defects, seed=rng.getrandbits(31)).save(folder / name)
        row = {
            "prompt": caption(spec, rng.choice(("en", "zh"))),
            "image": name,
            "score": round(quality_score(defects), 3),
            "split": split,
        }
        lines.append(json.dumps(row, ensure_ascii=False))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_candidates(folder: Path) -> list[Candidate]:
    lines = (folder / "candidates.jsonl").read_bytes().splitlines()
    return [Candidate.model_validate_json(line) for line in lines]


def add_content(store: PreferenceStore, prompts: Sequence[Prompt], folder: Path) -> None:
    """Bring the prompts and what `generate` drew for them into the store."""
    store.add_prompts(prompts)
    store.add_candidates(read_candidates(folder), folder / "images")


def candidates_by_prompt(candidates: Iterable[Candidate]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.prompt_id, []).append(candidate.id)
    return groups


class Workplace:
    """Simulated designers with accounts in a store, who claim and submit as people do."""

    def __init__(self, store: PreferenceStore, seed: int):
        self.store, self.seed = store, seed
        self.designers = studio_designers()
        self.users = {designer.name: self._user(designer.name) for designer in self.designers}
        self.specs: dict[str, PosterSpec] = {}
        self._impressions: dict[tuple[str, str, str], float] = {}

    def _user(self, name: str) -> User:
        known = {user.name: user for user in self.store.users()}
        return known.get(name) or self.store.add_user(name, secrets.token_urlsafe(16))

    def know(self, prompts: Iterable[Prompt]) -> None:
        """Designers read a brief as its specification."""
        self.specs |= {p.text: PosterSpec(**p.metadata["spec"]) for p in prompts}

    def label_everything(self) -> int:
        """Everyone works, in turns of one task, until nothing is left; how many were answered."""
        waiting = list(self.designers)
        answered = 0
        while waiting:
            waiting = [designer for designer in waiting if self._label_one(designer)]
            answered += len(waiting)
        return answered

    def _label_one(self, designer: Designer) -> bool:
        user = self.users[designer.name]
        claim = self.store.claim(user.id)
        if claim is None:
            return False
        spec = self.specs[claim.prompt]
        seen = [_pixels(self.store.media(user.id, token)) for token in claim.media]
        # Noise follows what is seen: not the place on the screen, which differs between studios,
        # and not the file, whose bytes change with the encoder.
        digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in seen]
        places = sorted(range(len(seen)), key=digests.__getitem__)
        key = f"{self.seed}/{designer.name}/{claim.question}/{claim.prompt}"
        rng = np.random.default_rng(list(hashlib.sha256(key.encode()).digest()))
        judgement = designer.choose(
            [self._impression(designer, seen[i], digests[i], spec, claim.question) for i in places],
            rng,
        )
        self.store.submit(
            user.id,
            Submission(
                idempotency_key=secrets.token_hex(16),
                assignment_id=claim.assignment_id,
                lease_token=claim.lease_token,
                outcome=Outcome(judgement.outcome),
                win_position=None if judgement.win is None else places[judgement.win],
                lose_position=None if judgement.lose is None else places[judgement.lose],
            ),
        )
        return True

    def _impression(
        self,
        designer: Designer,
        image: Image.Image,
        digest: str,
        spec: PosterSpec,
        question: Question,
    ) -> float:
        """How the designer likes an image; they remember what they saw."""
        if (designer.name, digest, question) not in self._impressions:
            for name, value in designer.impressions(image, spec).items():
                self._impressions[designer.name, digest, name] = value
        return self._impressions[designer.name, digest, question]


def _pixels(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
