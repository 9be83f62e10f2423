"""A small study on drawn posters: a base with random weights, a store, its snapshot."""

from __future__ import annotations

import hashlib
import io
import random
from pathlib import Path

import pytest
import torch

from annotate.records import Candidate, Outcome, Prompt, Question, Split
from annotate.snapshot import cut_snapshot
from annotate.store import Answer, PreferenceStore
from rewards.posters.draw import draw
from rewards.posters.spec import caption, random_spec

NUM_CANDIDATES = 4
DEFECT_OF = {Question.AESTHETICS: "muddy", Question.DETAIL: "noise"}


@pytest.fixture(autouse=True)
def seed() -> None:
    """Random numbers of a test do not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def random_base(tmp_path_factory) -> Path:
    """A Qwen-Image pipeline folder with random weights: features without knowledge."""
    from align.tiny_model import build_random_pipeline

    folder = tmp_path_factory.mktemp("base")
    build_random_pipeline(folder, 0)
    return folder


@pytest.fixture(scope="session")
def edit_base(random_base, tmp_path_factory) -> Path:
    """The same as an editing pipeline."""
    from align.tiny_edit import build_edit_pipeline

    return build_edit_pipeline(random_base, tmp_path_factory.mktemp("edit") / "pipeline")


@pytest.fixture(scope="session")
def snapshot_folder(tmp_path_factory) -> Path:
    """48 prompts x 4 posters, judged on two criteria and overall by two annotators who err."""
    folder = tmp_path_factory.mktemp("study")
    rng = random.Random(7)
    splits = [Split.TRAIN] * 32 + [Split.VALIDATION] * 6 + [Split.TEST] * 10
    prompts, candidates, images, severity = [], [], {}, {}
    for index, split in enumerate(splits):
        spec = random_spec(rng)
        prompt = Prompt(id=f"p{index:02d}", text=f"{caption(spec, 'en')} {index}", split=split)
        prompts.append(prompt)
        for ordinal in range(NUM_CANDIDATES):
            defects = {name: rng.random() for name in DEFECT_OF.values()}
            buffer = io.BytesIO()
            draw(spec, 64, defects, seed=rng.randrange(10**6)).save(buffer, "PNG")
            digest = hashlib.sha256(buffer.getvalue()).hexdigest()
            images[digest] = buffer.getvalue()
            candidate = Candidate(
                id=f"{prompt.id}-{ordinal}",
                prompt_id=prompt.id,
                image_sha256=digest,
                width=64,
                height=64,
            )
            candidates.append(candidate)
            severity[candidate.id] = defects
    with PreferenceStore.open(folder / "studio", pseudonym_key="a" * 32) as store:
        store.add_prompts(prompts)
        store.add_candidates(candidates, images)
        shown = {
            prompt.id: [c.id for c in candidates if c.prompt_id == prompt.id] for prompt in prompts
        }
        for question in (*DEFECT_OF, Question.OVERALL):
            tasks = store.add_tasks(shown, question, annotators_per_task=2)
            for name in ("ada", "ben"):
                user = _user(store, name)
                answers = [_answer(task, question, severity, rng) for task in tasks]
                store.add_answers(user.id, answers)
        cut_snapshot(store, folder / "snapshot")
    return folder / "snapshot"


def _user(store, name):
    known = {user.name: user for user in store.users()}
    return known.get(name) or store.add_user(name, "correct horse battery")


def _answer(task, question, severity, rng) -> Answer:
    def goodness(candidate_id: str) -> float:
        defects = severity[candidate_id]
        asked = [DEFECT_OF[question]] if question in DEFECT_OF else list(defects)
        return -sum(defects[name] for name in asked) + rng.gauss(0, 0.1)

    order = sorted(task.candidate_ids, key=goodness)
    return Answer(task_id=task.id, outcome=Outcome.PICKED, win_id=order[-1], lose_id=order[0])
