"""Draws candidates for prompts: resumable, by several processes, without holding them in memory.

The output folder is what ``winsome store import`` takes::

    config.yaml         the resolved configuration
    prompts.jsonl       one `annotate.records.Prompt` a line
    images/             <sha256>.png
    candidates.jsonl    one `annotate.records.Candidate` a line, when all are drawn
    parts/              the lines of each process, until then
    .lock               who is drawing here, see `rewards.lock`

A batch is the candidates of consecutive prompts, and batch b is drawn by process b modulo their
number. Which images share a batch thus depends neither on the number of processes nor on what was
drawn before a kill, and the files come out the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError
from tqdm import tqdm

from align.checkpoint import atomic_file, atomic_write, write_error
from align.config import GenerateConfig, dump_config, load_config, resolve_model
from align.data.rows import Request, iterate_prompts, iterate_requests
from align.draw import Cell, Drawer, check_model
from align.mmdit.adapters import load_adapter
from annotate.records import Candidate
from annotate.settings import changed_settings
from rewards.lock import FolderLock

__all__ = ["GenerateResult", "generate"]

OPERATIONAL = frozenset({"candidates", "batch_size", "processes", "progress", "output_dir"})
"""Settings that may differ when a folder is continued."""
LOCK_SECONDS = 30.0
"""How long to wait for a process of an earlier, killed launch to end its batch."""


@dataclass(frozen=True)
class GenerateResult:
    """What is in the output folder now."""

    folder: Path
    candidates: int
    prompts: int


def generate(config: GenerateConfig) -> GenerateResult:
    """Draw ``config.candidates`` images for each prompt; what is there already stays.

    Under a launcher (``WORLD_SIZE`` above 1) this process draws its share; otherwise
    ``config.processes`` processes are started.

    Raises:
        FileNotFoundError: the prompts file or the model is missing; names it.
        ValueError: the folder holds images of other settings; names each difference.
        FolderInUseError: another process draws into the folder; names it.
        OSError: the folder cannot be written; names the file. What was drawn stays.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    with FolderLock(config.output_dir) if rank == 0 else contextlib.nullcontext():
        if rank == 0:
            _open_folder(config)
        if world > 1:
            barrier = _barrier()
            barrier()
            _draw_share(config, rank, world)
            barrier()
        elif config.processes > 1:
            _run_processes(config)
        else:
            _draw_share(config, 0, 1)
        if rank == 0:
            _merge(config)
    prompts = sum(1 for _ in iterate_prompts(config.prompts, config.splits))
    return GenerateResult(config.output_dir, prompts * config.candidates, prompts)


# The folder ---------------------------------------------------------------------------------------


def _open_folder(config: GenerateConfig) -> None:
    """Create the folder, or refuse one that holds images of other settings.

    Where nothing was drawn yet, as after a size or model that was refused, nothing is bound.
    """
    folder = config.output_dir
    path = folder / "config.yaml"
    has_images = any(path.stat().st_size for path in _line_files(folder))
    if has_images and path.is_file():
        different = changed_settings(load_config(GenerateConfig, path), config, OPERATIONAL)
        if different:
            listing = "\n  ".join(different)
            raise ValueError(
                f"{folder} holds images of other settings; choose another output_dir:\n  {listing}"
            )
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "parts").mkdir(exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    _write_prompts(config, has_images)
    atomic_write(path, dump_config(config))


def _write_prompts(config: GenerateConfig, has_images: bool) -> None:
    path = config.output_dir / "prompts.jsonl"
    earlier = {p.id: p for p in iterate_prompts(path)} if has_images and path.is_file() else {}
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for prompt, request in iterate_requests(config.prompts, config.splits):
            known = earlier.pop(prompt.id, prompt)
            if (known.text, known.source_image) != (prompt.text, prompt.source_image):
                edits = known.text == prompt.text
                raise ValueError(
                    f"prompt {prompt.id!r} is {prompt.text!r} in {config.prompts}, but "
                    f"{config.output_dir} holds images of it as {known.text!r}"
                    + " of another source image"
                    * edits
                )
            _keep_sources(config, request)
            lines.write(prompt.model_dump_json() + "\n")
        for prompt in earlier.values():
            lines.write(prompt.model_dump_json() + "\n")


def _keep_sources(config: GenerateConfig, request: Request) -> None:
    """Put what the request asks to edit among the images, where a store looks for it."""
    if request.sources:
        try:
            _bare_adapter(resolve_model(config.model)).check_sources(len(request.sources))
        except ValueError as error:
            raise ValueError(f"prompt {request.prompt!r}: {error}") from error
    for source in request.sources:
        target = config.output_dir / "images" / f"{source.sha256}.png"
        if not target.is_file():
            _write_image(target, source.path.read_bytes())


@lru_cache(maxsize=1)
def _bare_adapter(model: str) -> Any:
    """Of a model that is not loaded."""
    return load_adapter(model, parts=())


def _line_files(folder: Path) -> list[Path]:
    """Files that hold candidate lines, the merged one first."""
    merged = folder / "candidates.jsonl"
    return [*([merged] if merged.is_file() else []), *sorted((folder / "parts").glob("*.jsonl"))]


def _read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of each whole line; a line torn by a kill is left out."""
    offset = 0
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield offset, line
            offset += len(line)


def _drawn(folder: Path) -> Iterator[tuple[Path, int, Candidate, tuple[str, int]]]:
    """File, offset, record and cell of each line whose image is there.

    A power cut can keep a line and lose its image, which is then drawn again.
    """
    for path in _line_files(folder):
        for offset, line in _read_lines(path):
            candidate, key = _parse(path, line)
            image = folder / "images" / f"{candidate.image_sha256}.png"
            if image.is_file() and image.stat().st_size:
                yield path, offset, candidate, key


def _parse(path: Path, line: bytes) -> tuple[Candidate, tuple[str, int]]:
    try:
        candidate = Candidate.model_validate_json(line)
        assert candidate.generation is not None
        return candidate, (candidate.prompt_id, int(candidate.generation.noise_key.split("/")[-1]))
    except (ValidationError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _merge(config: GenerateConfig) -> None:
    """Write candidates.jsonl in the order of the prompts, then remove the parts."""
    folder = config.output_dir
    places: dict[tuple[str, int], tuple[Path, int]] = {}
    for path, offset, _, key in _drawn(folder):
        places.setdefault(key, (path, offset))
    target = folder / "candidates.jsonl"
    with contextlib.ExitStack() as stack:
        sources = {p: stack.enter_context(p.open("rb")) for p in {p for p, _ in places.values()}}
        temporary = stack.enter_context(atomic_file(target))
        lines = stack.enter_context(temporary.open("wb"))
        asked = (
            (prompt.id, index)
            for prompt in iterate_prompts(config.prompts, config.splits)
            for index in range(config.candidates)
        )
        # What an earlier run drew beyond what is asked for now stays, after it.
        for place in dict.fromkeys([*asked, *places]):
            path, offset = places[place]
            sources[path].seek(offset)
            lines.write(sources[path].readline())
    for part in (folder / "parts").glob("*"):
        part.unlink()
    (folder / "parts").rmdir()


# Processes ----------------------------------------------------------------------------------------


def _run_processes(config: GenerateConfig) -> None:
    """Start workers on this machine and wait; the first failure ends them all."""
    threads = max(1, (os.cpu_count() or 1) // config.processes)
    code = "import sys; from align.generate import _worker; _worker(*sys.argv[1:])"
    workers = []
    for rank in range(config.processes):
        environment = os.environ | {
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
            "LOCAL_RANK": str(rank),
        }
        command = [sys.executable, "-c", code, config.model_dump_json(), str(rank)]
        workers.append(subprocess.Popen(command, env=environment))
    try:
        while any(worker.poll() is None for worker in workers):
            if any(worker.poll() for worker in workers):
                break
            time.sleep(0.1)
    finally:
        for worker in workers:
            worker.terminate()
        codes = [worker.wait() for worker in workers]
    if any(codes):
        raise OSError(f"a process that draws images failed (exit codes {codes}); see its message")


def _worker(config_json: str, rank: str) -> None:
    """Entry point of a started process; ends when its parent is gone."""
    config = GenerateConfig.model_validate_json(config_json)
    try:
        _draw_share(config, int(rank), config.processes, parent=os.getppid())
    except (OSError, ValueError) as error:
        sys.exit(f"winsome: error: {error}")


def _barrier() -> Any:
    """Waits for all processes of a launch; see `align.engine.make_accelerator` about CPUs."""
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return state.wait_for_everyone


@contextlib.contextmanager
def _own_part(folder: Path, rank: int, world: int) -> Iterator[IO[bytes]]:
    """This process's file of lines, locked, without a torn last line."""
    path = folder / "parts" / f"{rank:04d}-of-{world:04d}.jsonl"
    try:
        path.parent.mkdir(exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise write_error(path, error) from error
    with file:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ValueError(
                        f"another process is writing {path}: one `winsome generate` at a time "
                        "may fill a folder"
                    ) from None
                time.sleep(0.2)
        whole = sum(len(line) for _, line in _read_lines(path))
        file.truncate(whole)
        yield file


# Drawing ------------------------------------------------------------------------------------------


def _batches(config: GenerateConfig, rank: int, world: int) -> Iterator[list[list[Cell]]]:
    """This process's batches, each as chunks of at most ``batch_size`` cells."""
    per_batch = max(1, config.batch_size // config.candidates)
    asked = iterate_requests(config.prompts, config.splits)
    number = 0
    while batch := list(islice(asked, per_batch)):
        if number % world == rank:
            cells = [Cell(p, i, request) for p, request in batch for i in range(config.candidates)]
            size = config.batch_size
            yield [cells[i : i + size] for i in range(0, len(cells), size)]
        number += 1


def _draw_share(config: GenerateConfig, rank: int, world: int, parent: int | None = None) -> None:
    folder = config.output_dir
    with _own_part(folder, rank, world) as part:
        done: dict[tuple[str, int], str] = {}
        for _, _, candidate, key in _drawn(folder):
            assert candidate.generation is not None
            done[key] = candidate.generation.model_sha256
        drawer: Drawer | None = None
        hidden = not (config.progress and rank == 0 and sys.stderr.isatty())
        with tqdm(disable=hidden, unit="image", desc="drawing") as bar:
            for chunks in _batches(config, rank, world):
                for chunk in chunks:
                    if any(cell.key not in done for cell in chunk):
                        drawer = drawer or Drawer(config, set(done.values()))
                        _draw_chunk(drawer, chunk, done, part)
                    bar.update(len(chunk))
                if parent is not None and os.getppid() != parent:
                    return
        if drawer is None and done:
            check_model(config, set(done.values()))


def _draw_chunk(
    drawer: Drawer, chunk: Sequence[Cell], done: dict[tuple[str, int], str], part: IO[bytes]
) -> None:
    """Draw all of a chunk, so that its numbers do not depend on what is there, and keep the new."""
    lines = []
    for cell, png in zip(chunk, drawer.draw(chunk), strict=True):
        if cell.key not in done:
            candidate = drawer.record(cell, png)
            _write_image(drawer.images / f"{candidate.image_sha256}.png", png)
            lines.append(candidate.model_dump_json() + "\n")
            done[cell.key] = drawer.model_sha256
    try:
        part.write("".join(lines).encode())
        part.flush()
    except OSError as error:
        raise write_error(Path(part.name), error) from error


def _write_image(path: Path, png: bytes) -> None:
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        temporary.write_bytes(png)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise write_error(path, error) from error
