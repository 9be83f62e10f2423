"""Long and cruel: runs that are killed at random moments, and what a whole run leaves behind.

    python -m benchmarks.soak    20 kills of each trainer, on one process and on two
    python -m benchmarks.soak --kinds sft --processes 1 --kills 3 --steps 40

Each trainer first runs through. Then the same run is killed by SIGKILL at moments drawn from the
seed, and started again, until it has been killed so often as asked and has come to its end: its
metrics must be those of the first run, to the bit. While the first run works, the memory and open
files of its processes are watched. Exit status 1: a number differs, or something grows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from align.config import DPOConfig, GRPOConfig, SFTConfig
from align.metrics import read_metrics
from annotate.settings import configs_folder, parse_config
from rewards.base import RewardItem, Score, ScorerSpec

KINDS: dict[str, type[SFTConfig | DPOConfig | GRPOConfig]] = {
    "sft": SFTConfig,
    "dpo": DPOConfig,
    "grpo": GRPOConfig,
}
CAPTIONS = [f"a {colour} square on the {side}" for colour in ("red", "green") for side in "abcd"]
MAX_GROWTH = 0.05
"""Of resident memory between the second and the last quarter of a run."""
SAMPLE_SECONDS = 0.25


class FirstChannel:
    """Scores latents by the mean of their first channel."""

    spec = ScorerSpec("first-channel", "1", ("mean",), frozenset({"latents"}))

    def score(self, items: Sequence[RewardItem]) -> list[Score]:
        found = []
        for item in items:
            assert item.latents is not None
            value = float(item.latents[0].mean())
            found.append(Score(value, {"mean": value}))
        return found


# The run that is killed ---------------------------------------------------------------------------


def write_data(folder: Path) -> None:
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for i, caption in enumerate(CAPTIONS):
        name = f"{i}.png"
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / name)
        rows.append({"prompt": caption, "image": name, "score": 5.0})
    pairs = [
        {"prompt": row["prompt"], "chosen": row["image"], "rejected": rows[i - 1]["image"]}
        for i, row in enumerate(rows)
    ]
    for name, lines in (("sft.jsonl", rows), ("pairs.jsonl", pairs)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "prompts.txt").write_text("\n".join(CAPTIONS))


def settings(kind: str, folder: Path, out: Path, steps: int) -> dict[str, Any]:
    """A run of 32 x 32 pixels that saves every third step."""
    of_kind: dict[str, dict[str, Any]] = {
        "sft": {
            "data": {"path": folder / "sft.jsonl"},
            "ema": {"decay": 0.9},
            "batch_size": 4,
            "validation": {"every": 0},
        },
        "dpo": {"data": {"type": "jsonl", "path": folder / "pairs.jsonl"}, "batch_size": 4},
        "grpo": {
            "prompts": folder / "prompts.txt",
            "rollout": {"height": 32, "width": 32, "num_steps": 4, "window": 2},
            "lora": {"rank": 4},
            "group_size": 2,
            "prompts_per_step": 2,
        },
    }
    shared = {
        "model": "tiny",
        "output_dir": out,
        "optimizer": {"lr": 1e-5},
        "max_steps": steps,
        "save_every": 3,
        "cache_dir": folder / "cache",
        "trackers": [],
        "progress": False,
    }
    return shared | of_kind[kind]


def train(kind: str, folder: Path, out: Path, steps: int) -> None:
    """What each process of a run does; it says who it is, for those who watch or kill it."""
    from align.cli import leave
    from align.offline import train_dpo, train_sft
    from align.online import train_grpo

    rank = int(os.environ.get("RANK", "0"))
    (out.parent / f"{out.name}.pid-{rank}").write_text(str(os.getpid()))
    config: Any = parse_config(KINDS[kind], settings(kind, folder, out, steps))
    if kind == "grpo":
        train_grpo(config, FirstChannel())
    else:
        {"sft": train_sft, "dpo": train_dpo}[kind](config)
    leave()


# Those who watch and kill -------------------------------------------------------------------------


@dataclass(frozen=True)
class Growth:
    """What the processes of one run held, in its second quarter and in its last."""

    rss_mib: tuple[float, float]
    files: tuple[float, float]
    steps_per_second: tuple[float, float]

    @property
    def fault(self) -> str | None:
        """What grew beyond what may."""
        before, after = self.rss_mib
        if after > before * (1 + MAX_GROWTH):
            return f"resident memory rose from {before:.0f} to {after:.0f} MiB"
        if self.files[1] > self.files[0] + 1:
            return f"open files rose from {self.files[0]:.1f} to {self.files[1]:.1f}"
        return None


def start(
    kind: str, folder: Path, out: Path, steps: int, processes: int
) -> subprocess.Popen[bytes]:
    """Start the run's processes; what they say goes into a file beside its folder."""
    for stale in out.parent.glob(f"{out.name}.pid-*"):
        stale.unlink()
    task = ["benchmarks.soak", "--train", kind, str(folder), str(out), "--steps", str(steps)]
    command = [sys.executable, "-m", *task]
    if processes > 1:
        launcher = configs_folder() / "accelerate/ddp_cpu.yaml"
        command = [
            *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launcher)),
            *("--num_processes", str(processes), "--main_process_port", "0", "-m", *task),
        ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with _log(out).open("wb") as log:
        return subprocess.Popen(command, env=environment, stderr=log)


def _log(out: Path) -> Path:
    return out.with_name(f"{out.name}.log")


def process_ids(out: Path) -> list[int]:
    texts = [path.read_text() for path in out.parent.glob(f"{out.name}.pid-*")]
    return [int(text) for text in texts if text]


def run_through(
    kind: str, folder: Path, out: Path, steps: int, processes: int
) -> tuple[Growth, float]:
    """Run to the end, watched; returns what was seen and the seconds it took."""
    began, samples = time.monotonic(), []
    run = start(kind, folder, out, steps, processes)
    while run.poll() is None:
        time.sleep(SAMPLE_SECONDS)
        held = [_held(pid) for pid in process_ids(out)] if _logged(out) else []
        if held and None not in held:
            samples.append(np.sum([each for each in held if each is not None], axis=0))
    if run.returncode:
        raise RuntimeError(f"{out} ended with {run.returncode}: {_log(out).read_text()[-2000:]}")
    quarters = np.array_split(np.array(samples), 4)
    (rss, files), (late_rss, late_files) = quarters[1].mean(0), quarters[3].mean(0)
    seconds = [row["seconds"] for row in read_metrics(out / "metrics.jsonl") if row["step"]]
    speed = [1 / float(np.median(part)) for part in np.array_split(np.array(seconds), 4)]
    growth = Growth((rss, late_rss), (files, late_files), (speed[1], speed[3]))
    return growth, time.monotonic() - began


def run_killed(
    kind: str, folder: Path, out: Path, steps: int, processes: int, kills: int, rng: random.Random,
    seconds: float,
) -> int:  # fmt: skip
    """Kill one process of the run at random moments; returns how often it was begun anew."""
    done, rounds = 0, 0
    while True:
        run = start(kind, folder, out, steps, processes)
        moment = time.monotonic() + rng.uniform(0.2, 1.0) * seconds
        # Without its workers' ids the launcher alone could be killed, and they would work on.
        while run.poll() is None and (
            done >= kills or time.monotonic() < moment or len(process_ids(out)) < processes
        ):
            time.sleep(0.05)
        is_killed = run.poll() is None and _kill(rng.choice(sorted(process_ids(out))))
        run.wait()
        done += is_killed
        if is_killed:
            continue
        if run.returncode:
            said = _log(out).read_text()[-2000:]
            raise RuntimeError(f"{out} ended with {run.returncode}: {said}")
        if done >= kills:
            return rounds
        # Finished before it was killed often enough: once more from the start.
        shutil.rmtree(out)
        rounds += 1


def _kill(pid: int) -> bool:
    """Whether the process was still there to be killed."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _logged(out: Path) -> bool:
    path = out / "metrics.jsonl"
    return path.is_file() and path.stat().st_size > 0


def _held(pid: int) -> tuple[float, float] | None:
    """Resident MiB and open files of a process; None when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        files = len(os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, files


def losses(out: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics, without the clock."""
    rows = read_metrics(out / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def soak(args: argparse.Namespace) -> int:
    faults = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        for kind in args.kinds:
            for processes in args.processes:
                case = f"{kind} on {processes}"
                whole, cruel = folder / f"{kind}-{processes}", folder / f"{kind}-{processes}-killed"
                growth, seconds = run_through(kind, folder, whole, args.steps, processes)
                rng = random.Random(f"{args.seed}/{case}")
                rounds = run_killed(
                    kind, folder, cruel, args.steps, processes, args.kills, rng, seconds
                )
                is_same = losses(whole) == losses(cruel)
                if growth.fault:
                    faults.append(f"{case}: {growth.fault}")
                if not is_same:
                    faults.append(f"{case}: the killed run's numbers are others")
                found = {"case": case, "kills": args.kills, "begun anew": rounds, "same": is_same}
                print(json.dumps(found | {"seconds": round(seconds, 1), **asdict(growth)}))
                sys.stdout.flush()
    print("\n".join(faults) or "nothing differs, nothing grows")
    return int(bool(faults))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=list(KINDS))
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", nargs=3, metavar=("KIND", "DATA", "OUT"), help="used by itself")
    args = parser.parse_args()
    if args.train:
        kind, folder, out = args.train
        train(kind, Path(folder), Path(out), args.steps)
        return 0
    return soak(args)


if __name__ == "__main__":
    sys.exit(main())
