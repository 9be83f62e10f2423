"""The circle, step by step: the main job on embedded defaults.

    references ─► SFT ─► candidates ─► designers' picks ─► snapshot ─► reward model
                   │                                          │             │
                   ├──────────────► Diffusion-DPO ◄───────────┘             │
                   │                     └──────► Flow-GRPO ◄───────────────┘
                   └─ continued (control)            └─► blind A/B tasks, ruler, report

Every step leaves its result in the folder and resumes there, so a demo that was killed goes on.
"""

from __future__ import annotations

import os
import resource
import secrets
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from align.config import GenerateConfig, resolve_model
from align.demo.config import DemoConfig
from align.demo.report import headline, write_report
from align.demo.settings import CircleSettings, circle_settings, continued_settings
from align.demo.studio import (
    CRITERION_QUESTIONS,
    Workplace,
    add_content,
    candidates_by_prompt,
    make_prompts,
    read_candidates,
    write_prompts,
    write_references,
)
from align.evaluation import Interval, Readings, compare, interval, measure, ruler_sha256
from align.generate import generate
from align.offline import train_dpo, train_sft
from align.online import train_grpo
from align.run import RunResult
from annotate.records import Outcome, Pick, Prompt, Question, Run, Snapshot, Split
from annotate.settings import dump_config
from annotate.shares import WinRate, win_rate
from annotate.snapshot import cut_snapshot
from annotate.store import PreferenceStore
from rewards.lock import FolderLock
from rewards.train import RewardResult, train_reward

MODELS = ("base", "sft", "sft_continued", "dpo", "grpo")


def run_demo(config: DemoConfig) -> Path:
    """Run the circle in ``config.folder``; returns the path of the HTML report.

    A folder that holds a demo of other settings is moved aside, never overwritten.

    Raises:
        ValueError: a setting of one of the parts is wrong; nothing has been moved or written.
        FolderInUseError: another process runs a demo in the folder.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        return _run(config)
    finally:
        torch.set_num_threads(threads)


def _run(config: DemoConfig) -> Path:
    settings = circle_settings(config)
    with _claim(config):
        return _run_circle(Circle(config, settings))


def _run_circle(circle: Circle) -> Path:
    started = time.monotonic()
    config, folder = circle.config, circle.folder
    circle.fine_tune()
    circle.fill_studio()
    snapshot = circle.label()
    reward = circle.train_reward()
    circle.align()
    evaluation = circle.evaluate()
    report = {
        "seed": config.seed,
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(cpu_seconds(), 1),
        "peak_rss_gib": round(peak_rss_gib(), 3),
        "ruler_sha256": ruler_sha256(),
        "snapshot_digest": snapshot.digest,
        "picks": len(snapshot.picks),
        "reward_model": reward.report,
        **evaluation,
    }
    path = write_report(folder, config, report, circle.runs)
    say(f"{headline(report)}: {path}")
    circle.leave_open_tasks()
    circle.store.close()
    return path


class Circle:
    """The steps of the demo, in the order in which `run_demo` calls them."""

    def __init__(self, config: DemoConfig, settings: CircleSettings):
        self.config, self.settings, self.folder = config, settings, config.folder
        folder = config.folder
        # A key of its own would give the same picks another digest in every studio.
        self.store = PreferenceStore.open(folder / "studio", pseudonym_key=f"demo-{config.seed}")
        self.workplace = Workplace(self.store, config.seed)
        self.prompts = {
            Split.TRAIN: make_prompts(config.train_prompts, Split.TRAIN, config.seed),
            Split.VALIDATION: make_prompts(
                config.validation_prompts, Split.VALIDATION, config.seed
            ),
            Split.TEST: make_prompts(config.test_prompts, Split.TEST, config.seed),
        }
        self.runs: dict[str, RunResult] = {}

    def fine_tune(self) -> None:
        """SFT of the base on the references scored 4.8 and more, until its loss stops falling."""
        write_references(self.settings.references, self.config)
        self._keep("sft", train_sft(self.settings.sft), self.settings.sft)

    def fill_studio(self) -> None:
        """Candidates of the fine-tuned model and their tasks: each criterion, and the whole."""
        asked = [*self.prompts[Split.TRAIN], *self.prompts[Split.VALIDATION]]
        folder = self._draw("candidates", self.runs["sft"].export, asked, self.config.candidates)
        add_content(self.store, asked, folder)
        groups = candidates_by_prompt(read_candidates(folder))
        held_out = {p.id for p in self.prompts[Split.VALIDATION]}
        for question in (*CRITERION_QUESTIONS, Question.OVERALL):
            for overlap, own in ((1, False), (3, True)):
                chosen = {key: ids for key, ids in groups.items() if (key in held_out) is own}
                self.store.add_tasks(chosen, question, overlap, seed=self.config.seed)
        self.workplace.know(asked)

    def label(self) -> Snapshot:
        """The designers pick; the snapshot is cut."""
        say(f"{self.workplace.label_everything()} picks by {len(self.workplace.designers)} people")
        return cut_snapshot(self.store, self.settings.snapshot, kinds=["standard"])

    def train_reward(self) -> RewardResult:
        config = self.settings.reward
        result = train_reward(config)
        report = result.report
        say(f"reward model: held-out accuracy {report['accuracy']:.3f}")
        self._register("reward", result.folder, config.model_dump(mode="json"), {})
        return result

    def align(self) -> None:
        """DPO from the SFT model, GRPO from the DPO model, and SFT for as many steps more."""
        settings = self.settings
        self._keep("dpo", train_dpo(settings.dpo), settings.dpo)
        write_prompts(settings.prompts, self.prompts[Split.TRAIN])
        self._keep("grpo", train_grpo(settings.grpo), settings.grpo)
        steps = self.runs["dpo"].steps + self.runs["grpo"].steps
        control = continued_settings(self.config, settings, steps)
        self._keep("sft_continued", train_sft(control), control)

    def evaluate(self) -> dict[str, Any]:
        """All models on the held-out prompts and the same noise, by the ruler and by designers."""
        models = {"base": resolve_model(self.config.model)}
        models |= {name: str(self.runs[name].export) for name in MODELS[1:]}
        prompts = self.prompts[Split.TEST]
        readings: dict[str, Readings] = {}
        for name, model in models.items():
            folder = self._draw(f"evaluation/{name}", model, prompts, self.config.test_images)
            readings[name] = measure(prompts, read_candidates(folder), folder / "images")
            say(f"{name}: " + ", ".join(f"{k} {v:.3f}" for k, v in readings[name].means().items()))
        self._share_samples(list(models))
        baselines = {name: readings[name] for name in ("sft", "sft_continued")}
        compared = {
            name: compare(readings[name], baselines, self.config.seed) for name in ("dpo", "grpo")
        }
        criteria = {name: _with_intervals(r, self.config.seed) for name, r in readings.items()}
        return {
            "criteria": {
                name: readings[name].means() for name in MODELS if name != "sft_continued"
            },
            "sft_continued": readings["sft_continued"].means(),
            "criteria_intervals": criteria,
            "gain_over_sft": {
                k: {"mean": c["gain"].value, **_bounds(c["gain"])} for k, c in compared.items()
            },
            "gain_by_criterion": {
                k: {n: asdict(i) for n, i in c["criteria"].items()} for k, c in compared.items()
            },
            "headroom_closed": {k: c["headroom_closed"] for k, c in compared.items()},
            "win_rate": asdict(self._win_rate("grpo", "sft")),
        }

    def _share_samples(self, models: list[str]) -> None:
        """Let each run's page in the studio show what every model drew of the held-out prompts."""
        for run in self.runs.values():
            samples = run.folder / "samples"
            samples.mkdir(exist_ok=True)
            for number, name in enumerate(models):
                link = samples / f"{number}-{name}"
                if not link.is_symlink():
                    drawn = (self.folder / "evaluation" / name).resolve()
                    link.symlink_to(os.path.relpath(drawn, samples.resolve()), True)

    def leave_open_tasks(self) -> None:
        """Tasks for a person, and an account to label them with, for ``winsome serve``."""
        folder = self.folder / "candidates"
        groups = candidates_by_prompt(read_candidates(folder))
        chosen = dict(list(groups.items())[: self.config.open_tasks])
        self.store.add_tasks(
            chosen, Question.OVERALL, kind="open", priority=1, seed=self.config.seed + 1
        )
        login = self.folder / "login.txt"
        if not any(user.role == "admin" for user in self.store.users()):
            password = secrets.token_urlsafe(9)
            self.store.add_user("admin", password, role="admin")
            login.touch(mode=0o600)
            login.write_text(f"name: admin\npassword: {password}\n", encoding="utf-8")
        say(f"`make serve` opens the studio; the account is in {login}")

    def _win_rate(self, ours: str, theirs: str) -> WinRate:
        """How often designers blindly prefer ``ours``."""
        prompts = self.prompts[Split.TEST]
        self.workplace.know(prompts)
        first: dict[str, dict[str, str]] = {}
        for name in (ours, theirs):
            folder = self.folder / "evaluation" / name
            add_content(self.store, prompts, folder)
            groups = candidates_by_prompt(read_candidates(folder))
            first[name] = {prompt_id: ids[0] for prompt_id, ids in groups.items()}
        tasks = self.store.add_tasks(
            {p.id: [first[ours][p.id], first[theirs][p.id]] for p in prompts},
            Question.OVERALL,
            len(self.workplace.designers),
            kind="blind-ab",
            seed=self.config.seed,
        )
        self.workplace.label_everything()
        _, _, _, picks = self.store.labelled(kinds=["blind-ab"])
        task_of = {task.id: task for task in tasks}
        won: list[tuple[str, float]] = []
        for pick in picks:
            task = task_of[pick.task_id]
            value = _share_won(pick, task.candidate_ids.index(first[ours][task.prompt_id]))
            if value is not None:
                won.append((task.prompt_id, value))
        return win_rate(won)

    def _draw(self, name: str, model: str | Path, prompts: list[Prompt], count: int) -> Path:
        folder = self.folder / name
        generate(
            GenerateConfig(
                model=str(model),
                prompts=write_prompts(folder.with_name(f"{folder.name}-prompts.jsonl"), prompts),
                output_dir=folder,
                candidates=count,
                seed=self.config.seed,
                num_steps=self.config.num_steps,
                batch_size=50,
            )
        )
        return folder

    def _keep(self, name: str, result: RunResult, config: Any) -> None:
        self.runs[name] = result
        say(f"{name}: {result.steps} steps")
        self._register(name, result.folder, config.model_dump(mode="json"), result.metrics)

    def _register(
        self, name: str, folder: Path, config: dict[str, Any], metrics: dict[str, float]
    ) -> None:
        digests = [entry.digest for entry in self.store.snapshots()]
        self.store.add_run(
            Run(
                id=f"demo-{self.config.seed}-{name}",
                kind="sft" if name == "sft_continued" else name,
                folder=str(folder.resolve()),
                snapshot_digest=digests[0] if digests and not name.startswith("sft") else None,
                config=config,
                status="finished",
                metrics={k: float(v) for k, v in metrics.items() if isinstance(v, int | float)},
            )
        )


def _share_won(pick: Pick, ordinal: int) -> float | None:
    if pick.outcome == Outcome.PICKED:
        return float(pick.win == ordinal)
    return 0.5 if pick.outcome == Outcome.ALL_EQUAL else None


def _bounds(figure: Interval) -> dict[str, float]:
    return {"ci_low": figure.ci_low, "ci_high": figure.ci_high}


def _with_intervals(readings: Readings, seed: int) -> dict[str, dict[str, float]]:
    rows = readings.by_prompt()
    names = (*readings.means(),)
    columns = [*rows.T, rows.mean(axis=1)]
    return {
        name: asdict(interval(lambda i, c=column: float(c[i].mean()), len(rows), seed))
        for name, column in zip(names, columns, strict=True)
    }


def _claim(config: DemoConfig) -> FolderLock:
    """The demo's folder, with its settings written in; another demo's is moved aside."""
    folder, text = config.folder, dump_config(config)
    settings = folder / "demo.yaml"
    lock = FolderLock(folder)
    while settings.is_file() and settings.read_text(encoding="utf-8") != text:
        number = 1
        while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
            number += 1
        folder.rename(aside)
        lock.release()
        say(f"another demo was in {folder}; it is in {aside} now")
        lock = FolderLock(folder)
    settings.write_text(text, encoding="utf-8")
    return lock


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total


def peak_rss_gib() -> float:
    """Largest resident size of this process or of one child, GiB."""
    usages = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return max(usage.ru_maxrss for usage in usages) * unit / 2**30


def say(text: str) -> None:
    print(f"[demo] {text}", flush=True)


__all__ = ["Circle", "cpu_seconds", "peak_rss_gib", "run_demo"]
