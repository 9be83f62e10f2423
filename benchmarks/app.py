"""The labelling app: its page in a real Chromium, and its server under fifty annotators."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TASKS = 60
CANDIDATES = 4
SIDE = 512
LOOK_S = 0.5  # so long a task is looked at; the next one's images are loaded meanwhile
ANNOTATORS = 50
THINK_S = 15.0
"""Mean seconds for a task; each draws them evenly between half and one and a half of it."""
MINUTES = 2
PASSWORD = "a long enough password"

# Painted: two frames after the last image of the next task was decoded and put on the page.
_WATCH = """() => {
  window.painted = [];
  let begun = null;
  const stage = document.querySelector(".ws-stage");
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter") begun = performance.now();
  }, true);
  new MutationObserver(() => {
    const cards = [...stage.children];
    const waits = begun === null || cards.some((card) => card.dataset.loaded === undefined);
    if (waits || cards[0] === window.shown || cards.length === 0) return;
    window.shown = cards[0];
    const since = begun;
    requestAnimationFrame(() => requestAnimationFrame(() => {
      window.painted.push(performance.now() - since);
    }));
  }).observe(stage, { childList: true, subtree: true, attributes: true });
  window.shown = stage.children[0];
}"""


def fill_studio(store: Any, annotators: int, tasks: int, side: int) -> None:
    """Tasks of noise, the worst case for a PNG, for each of the annotators."""
    import numpy as np
    from PIL import Image

    from annotate.records import Candidate, Prompt

    noise = np.random.default_rng(0)
    for number in range(annotators):
        store.add_user(f"designer {number}", PASSWORD)
    for number in range(tasks):
        images, candidates = {}, []
        for index in range(CANDIDATES):
            buffer = io.BytesIO()
            pixels = noise.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
            digest = hashlib.sha256(buffer.getvalue()).hexdigest()
            images[digest] = buffer.getvalue()
            name = f"{number}-{index}"
            candidates.append(
                Candidate(
                    id=name, prompt_id=str(number), image_sha256=digest, width=side, height=side
                )
            )
        store.add_prompts([Prompt(id=str(number), text=f"noise {number}")])
        store.add_candidates(candidates, images)
        shown = {str(number): [candidate.id for candidate in candidates]}
        store.add_tasks(shown, annotators_per_task=annotators)


@contextmanager
def serving(studio: Path) -> Iterator[str]:
    """The address of ``winsome serve`` over a studio, a process of its own as in the field."""
    command = [sys.executable, "-m", "align.cli", "serve", str(studio), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            said = server.stdout.readline() if server.stdout else ""
            found = re.search(r"http://\S+", said)
            if found is None:
                raise RuntimeError(f"winsome serve gave no address but {said!r}")
            yield found[0]
        finally:
            server.terminate()


def measure_next_images() -> dict[str, Any]:
    """Milliseconds from Enter to the next task's images on the screen, one a task, on loopback."""
    from playwright.sync_api import sync_playwright

    from annotate.store import PreferenceStore

    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")
    with tempfile.TemporaryDirectory(prefix="winsome-bench-") as folder:
        studio = Path(folder) / "studio"
        with PreferenceStore.open(studio) as store:
            fill_studio(store, annotators=1, tasks=TASKS, side=SIDE)
        with serving(studio) as url, sync_playwright() as playwright:
            options = ["--no-sandbox"] if os.geteuid() == 0 else []
            browser = playwright.chromium.launch(executable_path=program, args=options)
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.set_default_timeout(120_000)
            page.goto(f"{url}/annotate")
            page.fill("input[name=name]", "designer 0")
            page.fill("input[name=password]", PASSWORD)
            page.keyboard.press("Enter")
            page.wait_for_selector(".ws[data-state=task] .ws-card[data-loaded]")
            page.evaluate(_WATCH)
            for done in range(TASKS - 1):
                page.wait_for_selector(".ws-stage:not(:has(.ws-card:not([data-loaded])))")
                page.wait_for_timeout(1000 * LOOK_S)
                for key in ("1", "2", "Enter"):
                    page.keyboard.press(key)
                page.wait_for_function("(count) => window.painted.length > count", arg=done)
            painted = page.evaluate("window.painted")
            browser.close()
    return {
        "milliseconds": painted,
        "tasks": TASKS,
        "candidates": CANDIDATES,
        "side": SIDE,
        "look_s": LOOK_S,
        "load_average": os.getloadavg()[0],
    }


def measure_submit() -> dict[str, Any]:
    """Milliseconds of each submit while many annotators work, each at a human pace."""
    from annotate.store import PreferenceStore

    with tempfile.TemporaryDirectory(prefix="winsome-bench-") as folder:
        studio = Path(folder) / "studio"
        with PreferenceStore.open(studio) as store:
            fill_studio(store, annotators=ANNOTATORS, tasks=20, side=64)
        with serving(studio) as url:
            milliseconds = asyncio.run(_everybody(url))
        with PreferenceStore.open(studio) as store:
            picks = len(store.labelled()[3])
    if picks != len(milliseconds):
        raise RuntimeError(f"{len(milliseconds)} submits were answered, {picks} picks are stored")
    return {
        "milliseconds": milliseconds,
        "annotators": ANNOTATORS,
        "think_s": THINK_S,
        "minutes": MINUTES,
        "load_average": os.getloadavg()[0],
    }


async def _everybody(url: str) -> list[float]:
    import httpx

    clients = []
    for number in range(ANNOTATORS):
        client = httpx.AsyncClient(base_url=url, headers={"Origin": url}, timeout=60)
        form = {"name": f"designer {number}", "password": PASSWORD}
        answer = await client.post("/login", data=form)
        if answer.status_code != 303:
            raise RuntimeError(f"designer {number} cannot sign in: HTTP {answer.status_code}")
        clients.append(client)
    end = time.monotonic() + 60 * MINUTES
    each = (_annotator(client, number, end) for number, client in enumerate(clients))
    times = [took for own in await asyncio.gather(*each) for took in own]
    for client in clients:
        await client.aclose()
    return times


async def _annotator(client: Any, number: int, end: float) -> list[float]:
    """One annotator's submits until ``end``: look, answer, look at the next, and so on."""
    pace = random.Random(number)
    times: list[float] = []
    task = (await client.post("/api/claim")).raise_for_status().json()["task"]
    while task is not None:
        await asyncio.sleep(pace.uniform(0.5, 1.5) * THINK_S)
        if time.monotonic() > end:
            break
        body = {
            "idempotency_key": f"{number:04}-{len(times):04}",
            "assignment_id": task["assignment_id"],
            "lease_token": task["lease_token"],
            "outcome": "picked",
            "win_position": 0,
            "lose_position": 1,
            "reasons": [{"target": "win", "criterion": "detail"}],
        }
        begun = time.perf_counter()
        answer = await client.post("/api/submit", json=body)
        times.append(1000 * (time.perf_counter() - begun))
        task = answer.raise_for_status().json()["task"]
        await client.get("/api/ahead")
    return times
