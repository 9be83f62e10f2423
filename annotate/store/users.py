"""Accounts and sessions."""

from __future__ import annotations

import hashlib
import secrets
import unicodedata
from datetime import UTC, datetime, timedelta

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from annotate.store.audit import append_event
from annotate.store.engine import StoreBase
from annotate.store.errors import ConflictError, NotFoundError, StoreError
from annotate.store.models import User
from annotate.tables import ROLES, SessionRow, UserRow

SESSION_LIFETIME = timedelta(days=14)
MIN_PASSWORD = 8

# OWASP's argon2id setting for servers: a login takes 19 MiB, so many at once cannot exhaust it.
_hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
# Verified for an unknown name, so that a wrong name takes as long as a wrong password.
_NOBODY = _hasher.hash(secrets.token_hex(16))


class UserStore(StoreBase):
    """The part of a store that knows who people are."""

    def add_user(self, name: str, password: str, role: str = "annotator") -> User:
        """Create an account; names are compared without case."""
        name = _checked_name(name)
        if role not in ROLES:
            raise StoreError(f"unknown role {role!r}; choose one of {', '.join(ROLES)}")
        row = UserRow(
            name=name,
            name_norm=name.casefold(),
            role=role,
            password_hash=_hash_password(password),
            is_active=True,
            created_at=datetime.now(UTC),
        )
        with self._write() as session:
            taken = session.scalar(select(UserRow.id).where(UserRow.name_norm == row.name_norm))
            if taken is not None:
                raise ConflictError(f"there is a user {name!r} already")
            session.add(row)
            session.flush()
            append_event(session, None, "add-user", f"user:{row.id}", {"role": role})
            return _user(row)

    def closed_account(self, name: str) -> User:
        """The annotator of that name who worked elsewhere, added where needed: nobody can sign in.

        ConflictError when the name is that of somebody who can.
        """
        name = _checked_name(name)
        with self._write() as session:
            row = session.scalar(select(UserRow).where(UserRow.name_norm == _normalise(name)))
            if row is None:
                row = UserRow(
                    name=name,
                    name_norm=_normalise(name),
                    role="annotator",
                    password_hash=_NOBODY,
                    is_active=False,
                    created_at=datetime.now(UTC),
                )
                session.add(row)
                session.flush()
            elif row.is_active:
                raise ConflictError(f"{name!r} is an account here, not an annotator elsewhere")
            return _user(row)

    def user(self, name: str) -> User:
        """The user of that name."""
        with self._read() as session:
            row = session.scalar(select(UserRow).where(UserRow.name_norm == _normalise(name)))
            if row is None:
                names = session.scalars(select(UserRow.name).order_by(UserRow.id).limit(20)).all()
                known = ", ".join(names) or "none yet"
                raise NotFoundError(f"there is no user {name!r}; known are: {known}")
            return _user(row)

    def users(self) -> list[User]:
        """Every account, oldest first."""
        with self._read() as session:
            return [_user(row) for row in session.scalars(select(UserRow).order_by(UserRow.id))]

    def update_user(
        self,
        user_id: int,
        *,
        role: str | None = None,
        password: str | None = None,
        is_active: bool | None = None,
    ) -> User:
        """Change an account. A new password or a closed account ends its sessions."""
        if role is not None and role not in ROLES:
            raise StoreError(f"unknown role {role!r}; choose one of {', '.join(ROLES)}")
        password_hash = None if password is None else _hash_password(password)
        with self._write() as session:
            row = _active_or_not(session, user_id)
            row.role = role or row.role
            row.is_active = row.is_active if is_active is None else is_active
            row.password_hash = password_hash or row.password_hash
            facts = {"role": row.role, "active": row.is_active, "password": bool(password_hash)}
            append_event(session, None, "change-user", f"user:{row.id}", facts)
            if password_hash or not row.is_active:
                session.execute(
                    update(SessionRow)
                    .where(SessionRow.user_id == user_id, SessionRow.revoked_at.is_(None))
                    .values(revoked_at=datetime.now(UTC))
                )
            return _user(row)

    def authenticate(self, name: str, password: str) -> User | None:
        """The active user of that name and password, or None."""
        with self._read() as session:
            row = session.scalar(select(UserRow).where(UserRow.name_norm == _normalise(name)))
        try:
            _hasher.verify(row.password_hash if row else _NOBODY, password)
        except VerificationError:
            return None
        return _user(row) if row and row.is_active else None

    def create_session(self, user_id: int, now: datetime | None = None) -> str:
        """A new session's token; the store keeps its hash alone."""
        token = secrets.token_urlsafe(32)
        now = now or datetime.now(UTC)
        with self._write() as session:
            _active_or_not(session, user_id)
            session.add(
                SessionRow(
                    token_sha256=_hash_token(token),
                    user_id=user_id,
                    created_at=now,
                    expires_at=now + SESSION_LIFETIME,
                )
            )
        return token

    def session_user(self, token: str, now: datetime | None = None) -> User | None:
        """The active user whose live session this is, or None."""
        query = (
            select(UserRow)
            .join(SessionRow, SessionRow.user_id == UserRow.id)
            .where(
                SessionRow.token_sha256 == _hash_token(token),
                SessionRow.revoked_at.is_(None),
                SessionRow.expires_at > (now or datetime.now(UTC)),
                UserRow.is_active,
            )
        )
        with self._read() as session:
            row = session.scalar(query)
            return _user(row) if row else None

    def revoke_session(self, token: str) -> None:
        """End a session; an unknown token is no error."""
        with self._write() as session:
            session.execute(
                update(SessionRow)
                .where(SessionRow.token_sha256 == _hash_token(token))
                .values(revoked_at=datetime.now(UTC))
            )


def _active_or_not(session: Session, user_id: int) -> UserRow:
    row = session.get(UserRow, user_id)
    if row is None:
        raise NotFoundError(f"there is no user with id {user_id}")
    return row


def _user(row: UserRow) -> User:
    return User(id=row.id, name=row.name, role=row.role, is_active=row.is_active)


def _checked_name(name: str) -> str:
    """The name as it is stored; two accounts must not look the same where one is read.

    Refused are the general categories Cc, Cf, Cs, Zl and Zp of Unicode: controls, line ends, zero
    width and direction marks.
    """
    name = unicodedata.normalize("NFKC", name).strip()
    if not name or len(name) > 200:
        raise StoreError(f"a user name has 1 to 200 characters, got {name!r}")
    for character in name:
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            raise StoreError(
                f"a user name has no control and no invisible characters, got U+"
                f"{ord(character):04X} in {name!a}"
            )
    return name


def _normalise(name: str) -> str:
    return unicodedata.normalize("NFKC", name).strip().casefold()


def _hash_password(password: str) -> str:
    if len(password) < MIN_PASSWORD:
        raise StoreError(f"a password has at least {MIN_PASSWORD} characters, got {len(password)}")
    return _hasher.hash(password)


def _hash_token(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
