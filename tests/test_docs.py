"""The documents say what is true: their commands parse, their links and configs exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from align import cli
from annotate.settings import find_config

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks/README.md"])


def commands(text: str) -> list[list[str]]:
    """Words of each ``winsome ...`` line in the shell blocks of ``text``."""
    found = []
    for block in re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            starts = [index for index, word in enumerate(words) if word.endswith("winsome")]
            if starts:
                found.append(words[starts[0] + 1 :])
            elif "align.cli" in words:
                found.append(words[words.index("align.cli") + 1 :])
    return found


def named(path: Path):
    return pytest.param(path, id=path.relative_to(ROOT).as_posix())


@pytest.mark.parametrize("path", [named(path) for path in DOCUMENTS])
def test_every_command_in_a_document_parses(path):
    for name, *arguments in commands(path.read_text(encoding="utf-8")):
        if name == "--help":
            continue
        cli.command_parser(name).parse_args(arguments)
        for config in (word for word in arguments if word.startswith("configs/")):
            assert find_config(config).is_file(), config


@pytest.mark.parametrize("path", [named(path) for path in DOCUMENTS])
def test_every_local_link_of_a_document_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target
