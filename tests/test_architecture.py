"""The arrows between the packages, and what each extra promises."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("align", "annotate", "rewards")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_import_contracts_hold():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("path", "line", "contract"),
    [
        ("annotate/pairs.py", "import torch", "annotate stands alone"),
        ("annotate/records.py", "import sqlalchemy", "what travels to a training node"),
        ("rewards/losses.py", "import align.policy", "rewards enters align through the model room"),
        ("rewards/base.py", "import annotate.tables", "know annotate by its records"),
        ("align/mmdit/flow.py", "import align.sampling", "inside align, the model room"),
        ("align/objectives/base.py", "import annotate.tables", "knows annotate by its records"),
        ("rewards/posters/designers.py", "import rewards.posters.ruler", "the ruler is read by"),
        (
            "rewards/posters/designers.py",
            "import rewards.posters.edit_ruler",
            "the ruler is read by",
        ),
        ("rewards/posters/draw.py", "import torch", "the poster world needs"),
    ],
)
def test_a_forbidden_import_breaks_its_contract(tmp_path, path, line, contract):
    for package in PACKAGES:
        for source in (ROOT / package).rglob("*.py"):
            target = tmp_path / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    module = tmp_path / path
    module.write_text(module.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    broken = [text for text in done.stdout.splitlines() if " BROKEN" in text]
    assert any(contract in text for text in broken), done.stdout


def test_the_poster_world_needs_numpy_and_pillow_alone():
    graph = grimp.build_graph("rewards", include_external_packages=True, cache_dir=None)
    imported = {
        target.partition(".")[0]
        for module in {"rewards.posters"} | graph.find_descendants("rewards.posters")
        for target in graph.find_modules_directly_imported_by(module)
    }
    assert imported - set(sys.stdlib_module_names) <= {"rewards", "numpy", "PIL"}


IMPORT_ALL = """
import importlib, pkgutil, sys

sys.modules.update(dict.fromkeys({absent!r}))  # None: not installed
for root in {roots!r}:
    package = importlib.import_module(root)
    for module in pkgutil.walk_packages(package.__path__, root + "."):
        if not module.name.startswith({skipped!r}):
            importlib.import_module(module.name)
"""


@pytest.mark.parametrize(
    ("roots", "absent", "skipped"),
    [
        pytest.param(
            ("annotate",),
            ("torch", "diffusers", "transformers", "trl", "peft", "accelerate", "deepspeed"),
            ("annotate.migrations",),
            id="a labelling server has no torch",
        ),
        pytest.param(
            ("align", "rewards"),
            ("gradio", "fastapi", "uvicorn", "sqlalchemy", "alembic", "argon2", "psycopg"),
            ("align.demo",),
            id="a training node has no web framework and no database",
        ),
    ],
)
def test_a_package_imports_without_the_other_sides_libraries(roots, absent, skipped):
    program = IMPORT_ALL.format(roots=roots, absent=absent, skipped=skipped)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
