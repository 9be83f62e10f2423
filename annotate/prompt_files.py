"""Prompts from the files in which people keep them: text, CSV, JSON lines, Parquet."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from annotate.images import png_of
from annotate.schema import Prompt, Split, faults, language
from annotate.store.errors import StoreError

TEXT_COLUMNS = ("text", "prompt", "caption")
_WORDS = ("id", "lang", "category")
_SHA256 = re.compile(r"[0-9a-f]{64}")
Row = tuple[int, Mapping[str, Any]]
"""(number for messages, columns)."""


def read_prompts(
    path: Path, split: Split | str = Split.TRAIN, images: dict[str, bytes] | None = None
) -> list[Prompt]:
    """The prompts of ``path``, by its suffix: one a line (.txt), or one a row.

    A row has its text in a column ``text``, ``prompt`` or ``caption``, and may have ``id``,
    ``lang``, ``category``, ``split`` and ``source_image``, the picture that the text asks to edit:
    a file, relative to ``path``, or the SHA-256 of an image that the store has. All other columns
    become the prompt's metadata, as JSON has them: a date is its text, NaN is nothing. Without an
    id, a prompt gets one from its text; without a language, ``zh`` where it has Han characters and
    else ``en``; without a split, ``split``. Empty lines and the same prompt again are passed over.

    Args:
        images: takes the source pictures, as PNG by their SHA-256.

    Raises:
        StoreError: a row is wrong; the message names the file and the row.
        ValueError: the suffix is none of `READERS`.
    """
    if path.suffix not in READERS:
        raise ValueError(f"{path} is none of {', '.join(READERS)}; prompts are read from these")
    found: dict[str, tuple[int, Prompt]] = {}
    for number, row in READERS[path.suffix](path):
        try:
            prompt = _prompt(row, Split(split), path.parent, {} if images is None else images)
        except ValidationError as error:
            raise StoreError(f"{path}, row {number}: {faults(error)}") from error
        except (FileNotFoundError, ValueError) as error:
            raise StoreError(f"{path}, row {number}: {error}") from error
        if prompt is None:
            continue
        first, known = found.setdefault(prompt.id, (number, prompt))
        if known != prompt:
            raise StoreError(
                f"{path}, row {number}: id {prompt.id!r} is that of row {first}, "
                "which says otherwise"
            )
    return [prompt for _, prompt in found.values()]


def prompt_id(text: str, source_image: str | None = None) -> str:
    """The id of a prompt that came without one: one text may ask to edit many pictures."""
    key = text if source_image is None else f"{text}\0{source_image}"
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _source_image(given: str, folder: Path, images: dict[str, bytes]) -> str:
    """The SHA-256 of the picture as the PNG that a store keeps."""
    if _SHA256.fullmatch(given):
        return given
    file = folder / given
    if not file.is_file():
        raise FileNotFoundError(f"there is no source image {file}")
    data, _ = png_of(file.read_bytes(), str(file))
    sha256 = hashlib.sha256(data).hexdigest()
    images[sha256] = data
    return sha256


def _prompt(
    row: Mapping[str, Any], split: Split, folder: Path, images: dict[str, bytes]
) -> Prompt | None:
    plain = {key: _plain(key, value) for key, value in row.items()}
    values = {key: value for key, value in plain.items() if value not in (None, "")}
    column = next((name for name in TEXT_COLUMNS if name in row), None)
    if column is None:
        raise ValueError(
            f"no column {', '.join(TEXT_COLUMNS[:-1])} or {TEXT_COLUMNS[-1]}; "
            f"there are {', '.join(row) or 'none'}"
        )
    text = values.pop(column, "")
    if not isinstance(text, str):
        raise ValueError(f"{column} must be text, got {text!r}")
    text = text.strip()
    if not text:
        return None
    metadata = _metadata(values.pop("metadata", None))
    given = values.pop("source_image", None)
    source = None if given is None else _source_image(str(given), folder, images)
    own = {name: _word(name, values.pop(name)) for name in _WORDS if name in values}
    return Prompt.model_validate(
        {
            "id": prompt_id(text, source),
            "text": text,
            "lang": language(text),
            "split": values.pop("split", split),
            "source_image": source,
            "metadata": {**metadata, **values},
            **own,
        }
    )


def _plain(name: str, value: Any) -> Any:
    """The value as JSON has it, so that the store gives back what it was given; NaN is None."""
    try:
        return to_jsonable_python(value, inf_nan_mode="null")
    except ValueError as error:
        raise ValueError(f"column {name!r} is no metadata, leave it out: {error}") from error


def _word(name: str, value: object) -> str:
    if not isinstance(value, str | int | float):
        raise ValueError(f"{name} must be a word or a number, got {value!r}")
    return str(value)


def _metadata(given: object) -> dict[str, Any]:
    """The column ``metadata``: an object, or one written as JSON, as CSV has it."""
    try:
        found = json.loads(given) if isinstance(given, str) else given or {}
    except ValueError:
        found = given
    if not isinstance(found, dict):
        raise ValueError(f"metadata must be a JSON object, got {given!r}")
    return found


def _lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise StoreError(f"{path}, row {number}: not UTF-8 text: {error}") from error
            yield number, {"text": text}


def _csv(path: Path) -> Iterator[Row]:
    number = 1
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            # Strict: a quotation mark that is never closed would take in all rows below it.
            for number, row in enumerate(csv.DictReader(file, strict=True), start=2):
                if None in row or None in row.values():
                    raise StoreError(f"{path}, row {number}: not as many fields as the first row")
                yield number, row
        except csv.Error as error:
            raise StoreError(f"{path}, row {number + 1}: not valid CSV: {error}") from error
        except UnicodeDecodeError as error:
            raise StoreError(f"{path} is not UTF-8 text: {error}") from error


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise StoreError(f"{path}, row {number}: not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise StoreError(f"{path}, row {number}: expected an object, got {row!r}")
            yield number, row


def _parquet(path: Path) -> Iterator[Row]:
    return enumerate(parquet_rows(path), start=1)


def parquet_rows(path: Path, columns: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, a few in memory at a time; StoreError for anything else."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            wanted = None if columns is None else list(columns)
            missing = set(wanted or ()) - set(file.schema_arrow.names)
            if missing:
                raise StoreError(f"{path} lacks the columns {', '.join(sorted(missing))}")
            for batch in file.iter_batches(batch_size=64, columns=wanted):
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise StoreError(f"{path} is not a Parquet file: {error}") from error


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".txt": _lines,
    ".csv": _csv,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
