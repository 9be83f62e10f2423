"""``winsome store``: makes a studio, fills it, and says what is in it."""

from __future__ import annotations

import argparse
import getpass
import json
import secrets
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from annotate.commands.actions import Action, add_actions, add_studio_arguments
from annotate.commands.store_import import IMPORT_ACTIONS
from annotate.commands.store_keys import KEY_ACTIONS, warn_of_keyless
from annotate.commands.store_results import RESULT_ACTIONS
from annotate.schema import Question, Split

if TYPE_CHECKING:
    from annotate.store import PreferenceStore

HELP = "Make a studio and fill it: accounts, prompts, candidates, tasks."
EXAMPLE = "winsome store init studio"
ROLES = ("annotator", "reviewer", "lead", "engineer", "admin")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_actions(parser, ACTIONS)


def run(args: argparse.Namespace) -> None:
    with open_studio(args.studio, args.images, create=args.action == "init") as store:
        ACTIONS[args.action].run(args, store)


def open_studio(studio: str, images: str | None, create: bool = False) -> PreferenceStore:
    """The store of a studio; FileNotFoundError when there is none and none shall be made."""
    if not create and "://" not in studio and not (Path(studio) / "winsome.db").is_file():
        raise FileNotFoundError(
            f"there is no studio at {studio}; `winsome store init {studio}` makes one"
        )
    from annotate.store import PreferenceStore
    from annotate.store.engine import holds_studio

    if not create and not holds_studio(studio):
        raise ValueError(
            f"the database at {studio} is empty: restore a backup with `winsome db restore`, or "
            "make a new studio with `winsome store init`"
        )
    return PreferenceStore.open(studio, images=images)


def _init(args: argparse.Namespace, store: PreferenceStore) -> None:
    print(f"The studio {args.studio} is ready; its images lie in {store.images}.")
    if not store.users():
        print(f"Next: winsome store add-user {args.studio} NAME --role admin")


def _add_user_arguments(parser: argparse.ArgumentParser) -> None:
    add_studio_arguments(parser)
    parser.add_argument("name")
    parser.add_argument("--role", choices=ROLES, default="annotator", help="(default: annotator)")
    add_password_arguments(parser)


def add_password_arguments(parser: argparse.ArgumentParser) -> None:
    """Where a password comes from, when it is not asked for."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--generate-password", action="store_true", help="draw a password and print it once"
    )
    source.add_argument(
        "--password-stdin", action="store_true", help="read the password from standard input"
    )


def _add_user(args: argparse.Namespace, store: PreferenceStore) -> None:
    password = ask_password(args)
    user = store.add_user(args.name, password, args.role)
    print(f"Added {user.role} {user.name}.")
    if args.generate_password:
        print(f"Password, shown this once: {password}")


def ask_password(args: argparse.Namespace) -> str:
    """The password that the arguments say how to get."""
    if args.generate_password:
        return secrets.token_urlsafe(12)
    if args.password_stdin:
        return sys.stdin.readline().rstrip("\n")
    if not sys.stdin.isatty():
        raise ValueError("no terminal to ask on: give --generate-password or --password-stdin")
    password = getpass.getpass(f"Password for {args.name}: ")
    if getpass.getpass("The same again: ") != password:
        raise ValueError("the two passwords differ")
    return password


def _change_user_arguments(parser: argparse.ArgumentParser) -> None:
    add_studio_arguments(parser)
    parser.add_argument("name")
    parser.add_argument("--role", choices=ROLES, help="give another role")
    parser.add_argument("--new-password", action="store_true", help="ask for a new password")
    add_password_arguments(parser)
    state = parser.add_mutually_exclusive_group()
    state.add_argument("--close", action="store_true", help="close the account; its picks stay")
    state.add_argument("--reopen", action="store_true", help="open a closed account again")


def _change_user(args: argparse.Namespace, store: PreferenceStore) -> None:
    wants_password = args.new_password or args.generate_password or args.password_stdin
    if not (args.role or wants_password or args.close or args.reopen):
        raise ValueError("nothing to change: give --role, --new-password, --close or --reopen")
    user = store.user(args.name)
    password = ask_password(args) if wants_password else None
    is_active = False if args.close else True if args.reopen else None
    user = store.update_user(user.id, role=args.role, password=password, is_active=is_active)
    print(f"{user.name} is {user.role}, {'active' if user.is_active else 'closed'}.")
    if args.generate_password:
        print(f"Password, shown this once: {password}")


def _users(args: argparse.Namespace, store: PreferenceStore) -> None:
    users = store.users()
    width = max((len(user.name) for user in users), default=0)
    for user in users:
        progress = store.progress(user.id)
        state = "" if user.is_active else "  (closed)"
        print(f"{user.name:<{width}}  {user.role:<9}  {progress.done:>6} done{state}")


def _tasks_arguments(parser: argparse.ArgumentParser) -> None:
    add_studio_arguments(parser)
    parser.add_argument(
        "--question",
        action="append",
        choices=[word.value for word in Question],
        help="what to judge; may be given again (default: overall)",
    )
    parser.add_argument(
        "--per-task", type=int, metavar="N", help="candidates a task shows (default: all, 2 to 9)"
    )
    parser.add_argument(
        "--annotators", type=int, default=1, metavar="K", help="per task (default: 1)"
    )
    parser.add_argument(
        "--split", choices=[word.value for word in Split], help="only prompts of this split"
    )
    parser.add_argument(
        "--kind",
        default="standard",
        help="a word for these; gold and qualification need a key (default: standard)",
    )
    parser.add_argument("--priority", type=int, default=0, help="higher comes first (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the grouping (default: 0)")
    parser.add_argument(
        "--reference",
        action="append",
        default=[],
        metavar="ID",
        help="a candidate that is a gold image: every task of its prompt shows it as the best, and "
        "only the worst is chosen; may be given again",
    )


def _tasks(args: argparse.Namespace, store: PreferenceStore) -> None:
    from annotate.assignment import group_candidates

    shown: dict[str, list[str]] = {prompt.id: [] for prompt in store.prompts(args.split)}
    gold: dict[str, str] = {}
    unknown = set(args.reference)
    for candidate in store.candidates():
        unknown.discard(candidate.id)
        if candidate.id in args.reference:
            gold[candidate.prompt_id] = candidate.id
        elif candidate.prompt_id in shown:
            shown[candidate.prompt_id].append(candidate.id)
    if unknown:
        raise ValueError(f"there is no candidate {sorted(unknown)[0]!r} to be a reference")
    groups = [
        (prompt_id, [*group, gold[prompt_id]] if prompt_id in gold else group)
        for prompt_id, ids in shown.items()
        if len(ids) >= 2
        for group in group_candidates(
            ids, (args.per_task or len(ids) + 1) - (prompt_id in gold), args.seed, prompt_id
        )
    ]
    if not groups:
        raise ValueError("no prompt has two candidates to compare; import candidates first")
    before = store.status().tasks
    for question in args.question or [Question.OVERALL]:
        store.add_tasks(
            groups,
            question,
            args.annotators,
            args.kind,
            args.priority,
            args.seed,
            references=args.reference,
        )
    after = store.status()
    print(f"New: {after.tasks - before} tasks. Open slots now: {after.slots.get('open', 0)}.")
    warn_of_keyless(store)


def _policy_arguments(parser: argparse.ArgumentParser) -> None:
    add_studio_arguments(parser)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field; without it the fields are listed, with their meaning",
    )


def _policy(args: argparse.Namespace, store: PreferenceStore) -> None:
    for part in args.set:
        if "=" not in part:
            raise ValueError(f"--set takes FIELD=VALUE, got {part!r}")
    changes = dict(part.partition("=")[::2] for part in args.set)
    policy = store.set_policy(None, **changes) if changes else store.policy()
    meanings = type(policy).model_fields
    for name, value in policy.model_dump().items():
        print(f"{name:<22}  {value:<5}  {' '.join((meanings[name].description or '').split())}")


def _prioritise_arguments(parser: argparse.ArgumentParser) -> None:
    add_studio_arguments(parser)
    parser.add_argument(
        "scores", type=Path, help='JSONL of {"candidate_id", "uncertainty"}, one a line'
    )


def _prioritise(args: argparse.Namespace, store: PreferenceStore) -> None:
    """A task is worth the mean uncertainty of what it shows."""
    doubt: dict[str, float] = {}
    for number, line in enumerate(
        args.scores.read_text(encoding="utf-8-sig").splitlines(), start=1
    ):
        try:
            row = json.loads(line)
            doubt[row["candidate_id"]] = float(row["uncertainty"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{args.scores}, line {number}: needs candidate_id and uncertainty ({error!r})"
            ) from error
    known = {candidate.id for candidate in store.candidates()}
    unknown = sorted(doubt.keys() - known)
    if len(unknown) == len(doubt):
        raise ValueError(f"{args.scores} names no candidate of this studio, such as {unknown[:1]}")
    if unknown:
        print(f"Passed over: {len(unknown)} candidates that this studio does not have.")
    values = {
        task.id: sum(doubt[name] for name in task.candidate_ids) / len(task.candidate_ids)
        for task in store.tasks()
        if all(name in doubt for name in task.candidate_ids)
    }
    moved = store.prioritise(values)
    print(f"{moved} open slots of {len(values)} tasks are ranked by uncertainty.")


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    add_studio_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _status(args: argparse.Namespace, store: PreferenceStore) -> None:
    status = asdict(store.status())
    if args.json:
        print(json.dumps(status))
        return
    for name, value in status.items():
        if isinstance(value, dict):
            value = ", ".join(f"{count} {key}" for key, count in value.items()) or "none"
        print(f"{name:<10}  {value}")


ACTIONS = {
    "init": Action(
        "Make a studio: a database and a folder for its images.",
        "winsome store init studio\n"
        "  winsome store init postgresql://winsome@db/winsome --images /data/images",
        add_studio_arguments,
        _init,
    ),
    "add-user": Action(
        "Add an account.",
        "winsome store add-user studio ada --role annotator --generate-password",
        _add_user_arguments,
        _add_user,
    ),
    "change-user": Action(
        "Change an account's role or password, close it or open it again.",
        "winsome store change-user studio ada --role reviewer",
        _change_user_arguments,
        _change_user,
    ),
    "users": Action(
        "List the accounts and what each has done.",
        "winsome store users studio",
        add_studio_arguments,
        _users,
    ),
    **IMPORT_ACTIONS,
    "tasks": Action(
        "Make tasks from the candidates of each prompt.",
        "winsome store tasks studio --question aesthetics --per-task 4 --annotators 2",
        _tasks_arguments,
        _tasks,
    ),
    "status": Action(
        "Say how many of everything there are.",
        "winsome store status studio",
        _status_arguments,
        _status,
    ),
    "policy": Action(
        "Show how work is distributed, or change it: golds, repeats, caps, extra slots.",
        "winsome store policy studio --set gold_rate=0.04 --set max_extra_slots=2",
        _policy_arguments,
        _policy,
    ),
    "prioritise": Action(
        "Put open tasks in the order of a reward model's uncertainty.",
        "winsome store prioritise studio uncertainty.jsonl",
        _prioritise_arguments,
        _prioritise,
    ),
    **KEY_ACTIONS,
    **RESULT_ACTIONS,
}
