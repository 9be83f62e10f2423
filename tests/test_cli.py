"""The command line: quick, lazy, and clear about what went wrong."""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shlex
import subprocess
import sys

import pytest

from align import cli

HEAVY = (
    "torch", "diffusers", "transformers", "trl", "peft", "accelerate", "deepspeed", "datasets",
    "gradio", "fastapi", "uvicorn", "sqlalchemy", "alembic", "pandas", "matplotlib",
)  # fmt: skip


def nested_parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """``parser`` and the parsers of its own subcommands, at any depth."""
    found = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                found += nested_parsers(child)
    return found


def test_no_help_imports_anything_heavy():
    program = f"""
import json, sys
from align.cli import COMMANDS, main
assert main(["--help"]) == 0
for name in COMMANDS:
    try:
        main([name, "--help"])
    except SystemExit as end:
        assert end.code == 0
print(json.dumps(sorted(set(sys.modules) & set({HEAVY!r}))))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_help_takes_under_a_second():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "align.cli", "--help"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_overview_names_every_command_with_its_line():
    text = cli.overview()
    for name in cli.COMMANDS:
        help_line = cli.load_command(name).HELP
        assert re.fullmatch(r"[A-Z].*\.", help_line), f"{help_line!r} is no sentence on one line"
        assert f"  {name} " in text
        assert help_line in text


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_help_has_an_example_that_parses(name):
    parser = cli.command_parser(name)
    for part in nested_parsers(parser):
        assert f"winsome {name}" in (part.epilog or ""), f"no example in `{part.prog} --help`"
        examples = (part.epilog or "").replace("\\\n", " ").splitlines()
        for example in (line.strip() for line in examples):
            if example.startswith("winsome "):
                parser.parse_args(shlex.split(example)[2:])


def test_settings_are_not_asked_for(capsys):
    for command in (["sft"], ["reward", "train"]):
        with pytest.raises(SystemExit):
            cli.main(command)
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.casefold().endswith("the following arguments are required: config")


def test_settings_may_stand_before_and_after_options(capsys):
    command = ["plan", "configs/dpo/qwen_image_full.yaml", "batch_size=64", "--gpu", "h800-80gb"]
    assert cli.main([*command, "objective.beta=1", "lora.rank=4"]) == 0
    assert " 36,691,968 trained" in capsys.readouterr().out
    for wrong in ("lora.rank", "--rank=4"):
        with pytest.raises(SystemExit):
            cli.main([*command, wrong])
        assert f"unrecognized arguments: {wrong}" in capsys.readouterr().err


def test_no_news_is_kept_back_and_news_is_not():
    program = """
import logging, os
from align.cli import main
main(["--version"])
logger = logging.getLogger("DeepSpeed")
logger.warning("Setting accelerator to CPU. If you have GPU or other accelerator, ...")
logger.warning("something is wrong")
print(os.environ["HF_HUB_DISABLE_PROGRESS_BARS"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == "something is wrong\n"
    assert done.stdout.endswith("\n1\n")


def test_an_unknown_command_suggests_the_nearest(capsys):
    assert cli.main(["snapshto"]) == 2
    error = capsys.readouterr().err
    assert "unknown command 'snapshto'; did you mean 'snapshot'?" in error
    assert all(name in error for name in cli.COMMANDS)


RAISING = """
import argparse
from pathlib import Path
HELP, EXAMPLE = "fails in the way it is told", "winsome fail value"

def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("way")
    parser.add_argument("--folder", type=Path)

def run(args):
    if args.way == "value":
        raise ValueError("group_size is 1, at least 2 is needed")
    if args.way == "missing":
        (args.folder / "snapshot.json").read_text()
    if args.way == "full":
        with open("/dev/full", "w") as disk:
            disk.write("x")
    if args.way == "record":
        from annotate.records import Split, Prompt
        Prompt(id="p1", text="a poster", split="tset")
    if args.way == "database":
        import sqlalchemy
        sqlalchemy.create_engine(f"sqlite:///{args.folder}/none/studio.db").connect()
    if args.way == "memory":
        import torch
        torch.empty(2**50)
    if args.way == "card":
        import torch
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
    if args.way == "interrupt":
        raise KeyboardInterrupt
    if args.way == "defect":
        raise RuntimeError("a defect")
"""


@pytest.fixture
def fail(tmp_path, monkeypatch):
    """Runs a real command that fails, in the way its argument says."""
    (tmp_path / "failing_command.py").write_text(RAISING)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(cli.COMMANDS, "fail", "failing_command")
    yield lambda way: cli.main(["fail", way, "--folder", str(tmp_path)])
    sys.modules.pop("failing_command", None)


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("value", "group_size is 1, at least 2 is needed"),
        ("missing", "snapshot.json: No such file or directory"),
        ("full", "No space left on device"),
        ("record", "split: Input should be 'train', 'validation' or 'test'"),
        ("database", "unable to open database file"),
        ("memory", "can't allocate memory: you tried to allocate 4503599627370496 bytes"),
        ("card", "out of memory: CUDA out of memory. Tried to allocate 9.00 GiB."),
    ],
)
def test_an_error_that_the_user_can_mend_is_one_message(fail, capsys, way, message):
    assert fail(way) == 2
    error = capsys.readouterr().err
    assert error.startswith("winsome: error: ")
    assert message in error
    assert "Traceback" not in error


def test_the_traceback_is_shown_when_asked_for(fail, capsys, monkeypatch):
    monkeypatch.setenv("WINSOME_TRACEBACK", "1")
    assert fail("value") == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_defect_keeps_its_traceback(fail):
    with pytest.raises(RuntimeError, match="a defect"):
        fail("defect")


def test_an_interrupt_is_no_error(fail, capsys):
    assert fail("interrupt") == 130
    assert capsys.readouterr().err == "winsome: interrupted\n"


def test_a_reader_that_goes_away_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "align.cli", "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
