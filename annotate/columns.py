"""Column types and the base of every table, for SQLite and PostgreSQL alike."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Integer, MetaData, TypeDecorator
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase

from annotate.schema import Criterion, Outcome, Question, Split


class UTCDateTime(TypeDecorator[datetime]):
    """Aware UTC on both engines; SQLite alone would drop the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a naive datetime {value!r} cannot be stored; give an aware one")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# Content that a digest covers: PostgreSQL's JSON keeps the text as written, where JSONB would
# rewrite numbers (1e16 comes back as an integer).
ExactJSON = JSON()
QueryJSON = JSON().with_variant(JSONB(), "postgresql")
# SQLite autoincrements INTEGER keys only.
RowId = BigInteger().with_variant(Integer(), "sqlite")


def one_of(
    column: str, values: tuple[str, ...] | type[Criterion | Outcome | Question | Split]
) -> str:
    """SQL text of a CHECK that ``column`` is one of ``values``."""
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
