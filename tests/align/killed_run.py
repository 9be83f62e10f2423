"""Runs trainers that are killed by SIGKILL or asked to stop, each in a process of its own.

The processes are forked before torch has made its threads, so that one import serves all. Usage:
``killed_run.py DATA MODEL OUT``.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from run_data import (
    FirstChannel,
    dpo_config,
    grpo_config,
    lists_config,
    nft_config,
    sft_config,
)

import align.checkpoint
from align.engine import Engine
from align.offline import train_dpo, train_sft
from align.online import train_grpo


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_step(number: int, end: Callable[[], None] = die) -> None:
    """Die in the middle of an optimizer step: after it, before it is logged."""
    whole = Engine.train_step

    def train_step(self: Engine, step: int, *args):  # type: ignore[no-untyped-def]
        metrics = whole(self, step, *args)
        if step == number:
            end()
        return metrics

    Engine.train_step = train_step  # type: ignore[method-assign]


def ask() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def press() -> None:
    """Ctrl-C, once."""
    os.kill(os.getpid(), signal.SIGINT)


def kill_in_write(number: int) -> None:
    """Die while checkpoint ``number`` is written: its files are there, its name is not yet."""
    whole, count = align.checkpoint._fsync_tree, 0

    def fsync_tree(folder: Path) -> None:
        nonlocal count
        count += 1
        if count == number:
            die()
        whole(folder)

    align.checkpoint._fsync_tree = fsync_tree


def main(data: Path, model: Path, out: Path) -> None:
    def sft(name: str) -> object:
        return train_sft(sft_config(data, model, out / name))

    def dpo() -> object:
        return train_dpo(dpo_config(data, model, out / "dpo"))

    def grpo() -> object:
        return train_grpo(grpo_config(data, model, out / "grpo"), FirstChannel())

    cases: dict[str, list[Callable[[], object]]] = {
        "sft": [
            lambda: (kill_in_step(8), sft("sft")),
            lambda: (kill_in_write(1), sft("sft")),  # of step 10, once more from step 5
        ],
        "sft-write": [lambda: (kill_in_write(2), sft("sft-write"))],
        "sft-press": [lambda: (kill_in_step(3, press), sft("sft-press"))],
        "dpo": [lambda: (kill_in_step(7), dpo()), lambda: (kill_in_step(9), dpo())],
        "grpo": [lambda: (kill_in_step(9), grpo()), lambda: (kill_in_step(6), grpo())],
        "lists": [
            lambda: (kill_in_step(6), train_dpo(lists_config(data, model, out / "lists"))),
        ],
        "nft": [
            lambda: (
                kill_in_step(5, ask),
                train_grpo(nft_config(data, model, out / "nft"), FirstChannel()),
            )
        ],
    }
    for name, attempts in cases.items():
        for number, run in enumerate(attempts, 1):
            print(f"{name}/{number}", exit_code_of(run))


def exit_code_of(run: Callable[[], object]) -> int:
    """Of a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            run()
        except SystemExit as stop:
            os._exit(int(str(stop)))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
