"""A studio that has something to review: answers that differ, a run with curves and samples."""

from __future__ import annotations

import hashlib
import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

from studio import answer
from web_studio import PASSWORD, make_studio, png

from annotate.records import Candidate, Generation, Prompt, Run
from annotate.store import PreferenceStore
from rewards.posters.draw import draw
from rewards.posters.spec import PosterSpec, caption

RUN = "poster-grpo-3"
HOSTILE_RUN = "dpo <b>${document.title='owned'}</b> {{1}}/2"
SETS = ("step-2", "step-10")
SPECS = (
    PosterSpec("cream", "circle", "red", "left", "TEA", "blue", "band"),
    PosterSpec("mint", "star", "purple", "center", "SUN", "yellow", "plain"),
)
START = datetime(2026, 1, 5, 9, tzinfo=UTC)


def make_review_studio(folder: Path) -> PreferenceStore:
    """Four tasks answered by three people who do not always agree, over two days; and a run."""
    store = make_studio(folder / "studio", counts=(4, 4, 3, 5), size=192, annotators=3)
    store.add_user("noor", PASSWORD)
    for number, name in enumerate(("jonas", "mei", "noor")):
        answer_all(store, name, START + timedelta(hours=30 * number), shift=number)
    store.add_run(
        Run(id=RUN, kind="grpo", folder=str(make_run(folder / "run")), snapshot_digest="7" * 64)
    )
    store.add_run(Run(id=HOSTILE_RUN, kind="dpo", folder=str(folder / "gone"), status="failed"))
    return store


def answer_all(store: PreferenceStore, name: str, now: datetime, shift: int = 0) -> int:
    """Answer every open task; ``shift`` moves best and worst of every second one. How many."""
    user, count = store.user(name).id, 0
    while claim := store.claim(user, now=now):
        names = [store.task(claim.task_id).candidate_ids[o] for o in claim.display_order]
        places = sorted(range(len(names)), key=lambda place: names[place])
        moved = shift if count % 2 else 0
        win = places[moved % len(places)]
        lose = places[(moved - 1) % len(places)]
        body = answer(claim, f"{name}-{claim.assignment_id}", win_position=win, lose_position=lose)
        store.submit(user, body.model_copy(update={"active_ms": 9_000 + 1_000 * shift}), now=now)
        now, count = now + timedelta(minutes=4), count + 1
    return count


def make_run(folder: Path) -> Path:
    """Curves of a run whose reward rises while gold falls, its report, and two sample sets."""
    folder.mkdir(parents=True)
    rows = []
    for step in range(1, 61):
        rise = 1 - math.exp(-step / 25)
        rows.append(
            {
                "step": step, "loss": 0.4 - 0.1 * rise, "reward": 0.2 + rise, "kl": 0.02 * rise,
                "monitor/gold": 0.6 - 0.2 * rise, "grad_norm": 1.5 - rise,
                "error/chosen": 0.21 - 0.01 * rise, "error/rejected": 0.21 + 0.05 * rise,
                "validation/rewards/accuracies": 0.5 + 0.2 * rise, "seconds": 0.7,
                "monitor/saturation/drift": 0.5 * rise, "monitor/alarms": float(step > 40),
            }
        )  # fmt: skip
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    bins = [[0.55, 0.53, 40], [0.65, 0.66, 60], [0.8, 0.74, 50], [0.93, 0.9, 20]]
    report = {"reliability": bins, "accuracy": 0.71, "ceiling": 0.78, "ece": 0.03}
    (folder / "report.json").write_text(json.dumps(report | {"ece_expected": 0.025}))
    for number, name in enumerate(SETS):
        draw_set(folder / "samples" / name, name, {"noise": 0.6 - 0.6 * number, "blur": 0.3})
    return folder


def draw_set(folder: Path, model: str, faults: dict[str, float]) -> None:
    """What `winsome generate` leaves: one image of each prompt."""
    (folder / "images").mkdir(parents=True)
    prompts, candidates = [], []
    for spec in SPECS:
        text = caption(spec, "en")
        prompt = Prompt(id=hashlib.sha256(text.encode()).hexdigest()[:16], text=text)
        data = png(draw(spec, 128, faults, seed=3))
        sha256 = hashlib.sha256(data).hexdigest()
        (folder / "images" / f"{sha256}.png").write_bytes(data)
        generation = Generation(
            model=model, model_sha256=hashlib.sha256(model.encode()).hexdigest(), seed="7",
            noise_key=f"7/{prompt.id}/0", steps=8, guidance_scale=1.0, height=128, width=128,
            dtype="float32", device="cpu",
        )  # fmt: skip
        candidates.append(
            Candidate(
                id=f"{model}-{prompt.id}", prompt_id=prompt.id, image_sha256=sha256,
                width=128, height=128, generation=generation,
            )
        )  # fmt: skip
        prompts.append(prompt)
    for name, records in (("prompts", prompts), ("candidates", candidates)):
        lines = "\n".join(record.model_dump_json() for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
