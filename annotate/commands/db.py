"""``winsome db``: keeps a studio's database: upgrade, check, backup, restore, accounts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from annotate.commands.actions import Action, add_actions, add_studio_arguments, writing
from annotate.commands.store import ROLES, add_password_arguments, ask_password, open_studio

HELP = "Keep a studio's database: upgrade, check, back up, restore, accounts."
EXAMPLE = "winsome db backup studio backups/monday"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_actions(parser, ACTIONS)


def run(args: argparse.Namespace) -> None:
    ACTIONS[args.action].run(args)


def _upgrade(args: argparse.Namespace) -> None:
    from annotate.migrations import current_revision

    with open_studio(args.studio, args.images) as store:
        print(f"{args.studio} is at schema revision {current_revision(store.engine)}.")


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    add_studio_arguments(parser)
    parser.add_argument(
        "--since", type=Path, metavar="BACKUP", help="the audit trail must contain this backup's"
    )


def _check(args: argparse.Namespace) -> None:
    from annotate.store.backup import read_backup

    heads = read_backup(args.since).audit_heads if args.since else None
    with open_studio(args.studio, args.images) as store:
        faults = [*store.check(), *store.verify_audit(heads)]
    for fault in faults:
        print(fault)
    if faults:
        raise ValueError(f"{len(faults)} fault(s) in {args.studio}")
    print(f"{args.studio} is sound: database, images, audit trail.")


def _backup_arguments(parser: argparse.ArgumentParser) -> None:
    add_studio_arguments(parser)
    parser.add_argument("folder", type=Path, help="new folder to write")


def _backup(args: argparse.Namespace) -> None:
    with open_studio(args.studio, args.images) as store, writing(args.folder):
        backup = store.backup(args.folder)
    print(f"{sum(backup.rows.values())} rows of {len(backup.rows)} tables in {args.folder}")


def _restore_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of the backup")
    parser.add_argument("studio", help="new folder of a studio, or the URL of an empty database")
    parser.add_argument("--images", metavar="PLACE", help="folder or URL where the images lie")


def _restore(args: argparse.Namespace) -> None:
    from annotate.store import PreferenceStore
    from annotate.store.backup import read_backup, restore

    read_backup(args.folder)  # before a studio is made for nothing
    with PreferenceStore.open(args.studio, images=args.images) as store:
        backup = restore(store, args.folder)
        faults = store.verify_audit(backup.audit_heads)
    if faults:
        raise ValueError(f"restored, but the audit trail has {len(faults)} fault(s): {faults[0]}")
    print(f"{args.studio} is as it was at {backup.created_at}.")


def _user_arguments(parser: argparse.ArgumentParser) -> None:
    add_studio_arguments(parser)
    parser.add_argument("name", nargs="?", help="add or change this account (default: list all)")
    parser.add_argument("--role", choices=ROLES)
    state = parser.add_mutually_exclusive_group()
    state.add_argument("--close", action="store_true", help="close the account; its picks stay")
    state.add_argument("--reopen", action="store_true", help="open a closed account again")
    add_password_arguments(parser)


def _user(args: argparse.Namespace) -> None:
    with open_studio(args.studio, args.images) as store:
        if args.name is None:
            for user in store.users():
                state = "" if user.is_active else "  (closed)"
                print(f"{user.name}  {user.role}{state}")
            return
        known = {user.name.casefold() for user in store.users()}
        is_new = args.name.casefold() not in known
        wants_password = is_new or args.generate_password or args.password_stdin
        password = ask_password(args) if wants_password else None
        if is_new:
            user = store.add_user(args.name, password or "", args.role or "annotator")
        else:
            active = False if args.close else True if args.reopen else None
            found = store.user(args.name)
            user = store.update_user(found.id, role=args.role, password=password, is_active=active)
        print(f"{user.name} is {user.role}, {'active' if user.is_active else 'closed'}.")
        if args.generate_password:
            print(f"Password, shown this once: {password}")


def _audit_arguments(parser: argparse.ArgumentParser) -> None:
    add_studio_arguments(parser)
    parser.add_argument("--subject", help="only events about this, such as pick:7")
    parser.add_argument("--limit", type=int, default=50, help="newest events (default: 50)")


def _audit(args: argparse.Namespace) -> None:
    with open_studio(args.studio, args.images) as store:
        for event in store.audit_events(args.subject, args.limit):
            detail = json.dumps(event.detail, ensure_ascii=False)
            print(f"{event.at}  {event.actor}  {event.action}  {event.subject}  {detail}")


ACTIONS = {
    "upgrade": Action(
        "Bring the schema up to date; opening a studio does so too.",
        "winsome db upgrade studio",
        add_studio_arguments,
        _upgrade,
    ),
    "check": Action(
        "Verify references, images and the audit trail.",
        "winsome db check studio --since backups/monday",
        _check_arguments,
        _check,
    ),
    "backup": Action(
        "Copy everything into a new folder, while people go on labelling.",
        "winsome db backup studio backups/monday",
        _backup_arguments,
        _backup,
    ),
    "restore": Action(
        "Make a studio from a backup, on either database.",
        "winsome db restore backups/monday studio-again",
        _restore_arguments,
        _restore,
    ),
    "user": Action(
        "List the accounts; add one or change it.",
        "winsome db user studio ada --role reviewer --generate-password",
        _user_arguments,
        _user,
    ),
    "audit": Action(
        "Show the newest events of the audit trail.",
        "winsome db audit studio --subject pick:7",
        _audit_arguments,
        _audit,
    ),
}
