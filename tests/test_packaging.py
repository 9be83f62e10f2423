"""What a wheel carries, what its extras ask for, and what was tested together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from annotate.settings import configs_folder, find_config

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TRAIN_ONLY = {"torch", "diffusers", "transformers", "trl", "peft", "accelerate", "deepspeed"}
SERVE_ONLY = {"gradio", "fastapi", "uvicorn", "sqlalchemy", "alembic"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    [path] = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def requirements(extra: str) -> set[str]:
    """Names that ``pip install winsome[extra]`` asks for, other extras of winsome followed."""
    lines = list(PROJECT["dependencies"]) + PROJECT["optional-dependencies"].get(extra, [])
    names: set[str] = set()
    for requirement in map(Requirement, lines):
        if requirement.name == "winsome":
            names |= set[str]().union(*(requirements(part) for part in requirement.extras))
        else:
            names.add(canonicalize_name(requirement.name))
    return names


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel):
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert tops == {"align", "annotate", "rewards", f"winsome-{PROJECT['version']}.dist-info"}


def test_the_wheel_holds_all_that_the_checkout_tracks(wheel):
    tracked = subprocess.run(
        ["git", "ls-files", "align", "annotate", "rewards", "configs"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert tracked
    expected = {
        f"annotate/{name}" if name.startswith("configs/") else name
        for name in tracked
        if (ROOT / name).is_file()
    }
    assert expected - set(wheel.namelist()) == set()


@pytest.mark.parametrize(
    "pattern",
    ["align/tiny/**/*.safetensors", "annotate/web/static/**/*.js", "annotate/migrations/**/*.py"],
)
def test_data_files_are_in_the_checkout(pattern):
    assert list(ROOT.glob(pattern))


def test_an_installed_wheel_finds_its_configs_and_answers(wheel, tmp_path):
    installed, elsewhere = tmp_path / "site-packages", tmp_path / "elsewhere"
    wheel.extractall(installed)
    elsewhere.mkdir()
    program = """
import json, align.cli
from annotate.settings import configs_folder, load_config
from rewards.config import RewardTrainConfig
load_config(RewardTrainConfig, "configs/tiny/reward.yaml")
print(json.dumps([align.cli.__file__, str(configs_folder())]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=elsewhere, env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        str(installed / "align/cli.py"),
        str(installed / "annotate/configs"),
    ]


def test_the_command_and_the_licence_are_in_the_wheel(wheel):
    info = f"winsome-{PROJECT['version']}.dist-info"
    assert b"winsome = align.cli:console" in wheel.read(f"{info}/entry_points.txt")
    assert b"Apache License" in wheel.read(f"{info}/licenses/LICENSE")
    metadata = message_from_bytes(wheel.read(f"{info}/METADATA"))
    assert set(metadata.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])


def test_a_training_node_needs_no_server_and_a_labelling_server_no_torch():
    assert requirements("train") >= TRAIN_ONLY
    assert requirements("serve") >= SERVE_ONLY
    assert not requirements("train") & SERVE_ONLY
    assert not requirements("serve") & TRAIN_ONLY
    assert TRAIN_ONLY | SERVE_ONLY | {"psycopg"} <= requirements("all")


def test_the_constraints_pin_every_requirement_within_its_bounds():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, exact, version = line.partition("==")
            assert exact, f"{line!r} is no exact version"
            pins[canonicalize_name(name)] = version
    declared = PROJECT["dependencies"] + [
        line for lines in PROJECT["optional-dependencies"].values() for line in lines
    ]
    for requirement in map(Requirement, declared):
        if requirement.name != "winsome":
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])
    assert pins["torch"] == "2.13.0"


def test_shipped_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = find_config("configs/accelerate/ddp_cpu.yaml")
    assert shipped == configs_folder() / "accelerate/ddp_cpu.yaml"
    own = tmp_path / "configs/accelerate/ddp_cpu.yaml"
    own.parent.mkdir(parents=True)
    own.touch()
    assert find_config("configs/accelerate/ddp_cpu.yaml").resolve() == own
    assert find_config("configs/none.yaml") == Path("configs/none.yaml")
