"""The console command ``winsome``: one table of subcommands, each loaded when it is named.

A subcommand is one module with four names::

    HELP: str                                            one line for the overview
    EXAMPLE: str                                         a command line that works as it stands
    add_arguments(parser: argparse.ArgumentParser) -> None
    run(args: argparse.Namespace) -> int | None          the exit status, None for 0

Its imports at module level are light (no torch, no gradio, no SQL), so that every ``--help`` and
every error in a configuration answers at once; ``run`` imports what the work needs.
"""

from __future__ import annotations

import argparse
import atexit
import difflib
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

COMMANDS = {
    "demo": "align.commands.demo",
    "serve": "annotate.commands.serve",
    "store": "annotate.commands.store",
    "snapshot": "annotate.commands.snapshot",
    "db": "annotate.commands.db",
    "generate": "align.commands.generate",
    "reward": "rewards.commands.reward",
    "sft": "align.commands.sft",
    "dpo": "align.commands.dpo",
    "grpo": "align.commands.grpo",
    "replay": "align.commands.replay",
    "eval": "align.commands.eval",
    "compare": "align.commands.compare",
    "contact": "align.commands.contact",
    "pretrain": "align.commands.pretrain",
    "plan": "align.commands.plan",
    "doctor": "align.commands.doctor",
}
"""Name on the command line -> module, in the order of the overview."""

INTRODUCTION = """\
usage: winsome COMMAND [OPTION ...]

Turns designers' picks into a better image model."""

EPILOGUE = """\
winsome COMMAND --help tells more, with an example.
WINSOME_TRACEBACK=1 shows where in the code an error arose.

example:
  winsome demo"""


def load_command(name: str) -> ModuleType:
    """Import the module of subcommand ``name``; ``ValueError`` with the nearest name otherwise."""
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown command {name!r}{hint} (choose from {', '.join(COMMANDS)})")
    return importlib.import_module(COMMANDS[name])


def overview() -> str:
    """What ``winsome --help`` prints: every subcommand with its one line."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {load_command(name).HELP}" for name in COMMANDS]
    return "\n".join([INTRODUCTION, "", "commands:", *lines, "", EPILOGUE])


def command_parser(name: str) -> argparse.ArgumentParser:
    """The parser of one subcommand, its example at the end of its help."""
    module = load_command(name)
    parser = argparse.ArgumentParser(
        prog=f"winsome {name}",
        description=module.HELP,
        epilog=f"example:\n  {module.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return parser


def describe(error: Exception) -> str:
    """One clear message for an error that the user can mend."""
    if is_out_of_memory(error):
        return (
            f"out of memory: {str(error).strip() or type(error).__name__}\n  Fewer images at once "
            "(micro_batch_size, rollout.batch_size, batch_size), gradient_checkpointing and a LoRA "
            "take less; winsome plan tells what fits"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        details = [
            f"{'.'.join(map(str, detail['loc'])) or error.title}: {detail['msg']}"
            for detail in error.errors(include_url=False)
        ]
        return "\n  ".join([f"invalid {error.title}", *details])
    return str(error) or type(error).__name__


def is_user_error(error: Exception) -> bool:
    """Whether the cause lies outside the code: input, configuration, memory, disk, or database.

    The database's own errors are looked up only if SQLAlchemy is loaded: without it none arose.
    """
    database = sys.modules.get("sqlalchemy.exc")
    outside = (OSError, ValueError, *((database.OperationalError,) if database else ()))
    return isinstance(error, outside) or is_out_of_memory(error)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a GPU or the machine has too little memory; torch says the latter in words alone."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return True
    return type(error) is RuntimeError and "can't allocate memory" in str(error)


def dispatch(name: str, arguments: list[str]) -> int:
    """Run one subcommand, or answer ``--help`` or ``--version``; returns the exit status."""
    if name in ("-h", "--help"):
        print(overview())
        return 0
    if name == "--version":
        from importlib.metadata import version

        print(f"winsome {version('winsome')}")
        return 0
    parser = command_parser(name)
    args, rest = parser.parse_known_args(arguments)
    # argparse takes positional arguments of one run only: key=value after an option are left over.
    if "overrides" in args and all("=" in text and not text.startswith("-") for text in rest):
        args.overrides += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return load_command(name).run(args) or 0


def quieten() -> None:
    """Keep what libraries print on every start from what is printed for a reason.

    Bars are for a terminal; and that there is no GPU is no news on a machine without one.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("DeepSpeed").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Setting accelerator to CPU")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return the exit status.

    2 for an error that the user can mend, told in one message; 130 when interrupted. Any other
    exception is a defect of the code and keeps its traceback.
    """
    quieten()
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        status = dispatch(name, arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("winsome: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`winsome ... | head`). Python flushes standard output
        # once more at exit, which would raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if not is_user_error(error):
            raise
        if os.environ.get("WINSOME_TRACEBACK") == "1":
            traceback.print_exc()
        print(f"winsome: error: {describe(error)}", file=sys.stderr)
        return 2


def leave(status: int = 0) -> NoReturn:
    """Exit this process with ``status``; in a launch by several processes, without teardown.

    A thread of gloo that drops the tensors of the last collective takes the interpreter's lock for
    it. Where Python is already being torn down, that aborts the process (before Python 3.14), and
    the launcher reports a finished run as failed. To destroy the group does not end these threads:
    DistributedDataParallel's hooks still hold it.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        sys.exit(status)
    if status == 0:  # after an error the other processes may be gone
        distributed.destroy_process_group()
    atexit._run_exitfuncs()  # trackers, temporary folders and logs end by these
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def console() -> NoReturn:
    """What ``winsome`` and ``python -m align.cli`` run."""
    leave(main())


if __name__ == "__main__":
    console()
