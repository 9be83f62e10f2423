"""Subcommands of a subcommand, as ``winsome store init``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """A full disk is told by the number of an error alone: name what was being written."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@dataclass(frozen=True)
class Action:
    """One of them: its help, a command line that works, its arguments and its work."""

    help: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[..., None]


def add_actions(parser: argparse.ArgumentParser, actions: Mapping[str, Action]) -> None:
    """Give ``parser`` a subparser for each action; the chosen name is ``args.action``."""
    subparsers = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, action in actions.items():
        subparser = subparsers.add_parser(
            name,
            help=action.help,
            description=action.help,
            epilog=f"example:\n  {action.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        action.add_arguments(subparser)


def add_studio_arguments(parser: argparse.ArgumentParser) -> None:
    """Which studio."""
    parser.add_argument("studio", help="folder of the studio, or a database URL")
    parser.add_argument("--images", metavar="PLACE", help="folder or URL where the images lie")
