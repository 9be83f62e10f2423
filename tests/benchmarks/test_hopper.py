"""The card's benchmark at a toy's size on a CPU: every part runs and fills its bars."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from align.mmdit.blocks import BlockSettings
from benchmarks import hopper
from benchmarks.hopper_bars import HOPPER
from benchmarks.hopper_bench import TOY, Bench, Results, run_part
from benchmarks.hopper_parts import PARTS
from benchmarks.hopper_work import check_drawing, check_variant, pair_loss
from benchmarks.record import record

ROOT = Path(__file__).parents[2]
ON_CPU = ["--toy", "--device", "cpu", "--no-compile", "--repeats", "1"]
KERNELS = {"hopper.kernel_bandwidth_share"}  # test_kernels has those
CARD_ONLY = {bar.name for bar in HOPPER if ".peak_gib." in bar.name} | KERNELS
ABSENT = ("trl", "deepspeed", "gradio", "sqlalchemy", "fastapi", "triton", "datasets")
"""What the card's machine may lack."""
BLOCK = f"""
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = staticmethod(
    lambda name, *rest: None if name.partition(".")[0] in {ABSENT} else find(name, *rest)
)
"""


def test_every_part_fills_its_bars(tmp_path, capsys):
    parts = [part for part in PARTS if part != "kernels"]
    hopper.main([*parts, *ON_CPU, "--here", "--out", str(tmp_path)])
    raws = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("hopper.*.json")}
    assert raws.keys() == {bar.name for bar in HOPPER} - CARD_ONLY
    for bar in HOPPER:
        if bar.name in raws:
            assert bar.formula(raws[bar.name]) >= 0
    assert raws["hopper.logprob_gap"]["max_abs_difference"] == 0.0
    found = {part: json.loads((tmp_path / f"{part}.json").read_text()) for part in parts}
    assert not any(part["failed"] for part in found.values())
    for name in ("cached", "live", "baseline"):
        errors = found["pair"]["facts"][f"errors.{name}"]
        assert errors["gradients"] <= 2 * errors["stock"]
    for name in ("no_recompute", "full_recompute", "adafactor"):
        assert found["memory"]["facts"][f"gradient_norm.{name}"] > 0
        assert abs(found["memory"]["facts"][f"margin.{name}"]) < 1
    assert "mixed: " in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"the whole model; .*layers 2 \(full: 60\)"):
        record(["hopper.useful_rate"], raws["hopper.useful_rate"], "hopper", tmp_path)


def test_parts_run_apart_and_need_little(tmp_path):
    """Each in its process, without the packages that only other work needs: a part that fails keeps
    its figures, and the next one runs."""
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.hopper", "kernels", "mixed", *ON_CPU,
         "--out", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"kernels: 1 (see {tmp_path / 'kernels'}.json)" in done.stderr
    failed = json.loads((tmp_path / "kernels.json").read_text())
    assert "blocks 'fused' need triton" in failed["failed"]["part"]
    assert failed["facts"]["ceilings"]["matmul_flops"] > 0
    mixed = json.loads((tmp_path / "mixed.json").read_text())
    assert not mixed["failed"]
    assert len(mixed["bars"]) == 2
    assert mixed["versions"]["torch"] == torch.__version__


def test_a_part_ends_with_the_program_that_started_it(tmp_path):
    program = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.hopper", "mixed", *ON_CPU, "--out", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children")
    deadline = time.monotonic() + 60
    while not (part := children.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.05)
    program.terminate()
    assert program.wait(timeout=60) == 143
    assert len(part) == 1
    assert not Path("/proc", part[0]).exists()


def test_a_variant_that_computes_something_else_is_not_timed(monkeypatch):
    bench = Bench(torch.device("cpu"), TOY, repeats=1, compile=False)
    monkeypatch.setattr("align.mmdit.kernels.eager.rotate", lambda x, table: x)
    with pytest.raises(ValueError, match=r"joint.* errs by"):
        check_variant(bench, BlockSettings("joint"), pair_loss(bench))
    with pytest.raises(ValueError, match=r"differ by .* from the pipeline's at guidance 4"):
        check_drawing(bench, 4.0)


def test_what_fails_or_is_late_is_written_down(monkeypatch, tmp_path):
    bench = Bench(torch.device("cpu"), TOY, repeats=3)

    def part(bench, results):
        bench.deadline = 0.0
        results.fact("times", len(bench.seconds(lambda: None)))
        with results.attempt("first"):
            raise torch.OutOfMemoryError("no memory left")
        with results.attempt("second"):
            time.sleep(60)

    monkeypatch.setattr("benchmarks.hopper_bench.PART_SECONDS", 1)
    results = Results(tmp_path, "late", {})
    run_part(part, bench, results)
    kept = json.loads((tmp_path / "late.json").read_text())
    assert kept["facts"] == {"times": 1}
    assert kept["failed"] == {
        "first": "OutOfMemoryError: no memory left",
        "part": "OutOfTime: the part took more than 1 s",
    }
    assert kept["seconds"] < 30
