"""The card's benchmark at a toy's size on a CPU: every part runs and fills its bars."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from align.mmdit.blocks import BlockSettings
from benchmarks import hopper
from benchmarks.hopper_bars import HOPPER
from benchmarks.hopper_bench import TOY, Bench

PARTS = [part for part in hopper.PARTS if part != "kernels"]  # test_kernels has those
KERNELS = {"hopper.kernel_bandwidth_share"}
CARD_ONLY = {bar.name for bar in HOPPER if ".peak_gib." in bar.name} | KERNELS


def test_every_part_fills_its_bars(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        sys, "argv",
        ["hopper", *PARTS, "--toy", "--device", "cpu", "--no-compile", "--repeats", "1",
         "--out", str(tmp_path)],
    )  # fmt: skip
    hopper.main()
    raws = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("hopper.*.json")}
    assert raws.keys() == {bar.name for bar in HOPPER} - CARD_ONLY
    for bar in HOPPER:
        if bar.name in raws:
            assert bar.formula(raws[bar.name]) >= 0
    assert raws["hopper.logprob_gap"] == {"max_abs_difference": 0.0}
    pair = json.loads((tmp_path / "pair.json").read_text())
    assert pair["facts"]["errors"]["gradients"] <= 2 * pair["facts"]["errors"]["stock"]
    assert "mixed: " in capsys.readouterr().out


def test_a_variant_that_computes_something_else_is_not_timed(monkeypatch):
    bench = Bench(torch.device("cpu"), TOY, repeats=1, compile=False)
    monkeypatch.setattr("align.mmdit.kernels.eager.rotate", lambda x, table: x)
    with pytest.raises(ValueError, match=r"joint.* errs by"):
        hopper.check_variant(bench, BlockSettings("joint"))


def test_a_part_that_fails_keeps_its_figures_and_lets_others_run(monkeypatch, tmp_path):
    def fail(bench, results):
        results.fact("first", 1)
        raise torch.OutOfMemoryError("no memory left")

    def late(bench, results):
        bench.deadline = 0.0
        results.fact("times", len(bench.seconds(lambda: None)))

    monkeypatch.setattr(hopper, "PARTS", {"fail": fail, "late": late})
    arguments = ["hopper", "--toy", "--device", "cpu", "--repeats", "3", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="fail: OutOfMemoryError: no memory left"):
        hopper.main()
    kept = json.loads((tmp_path / "fail.json").read_text())
    assert kept["facts"] == {"first": 1}
    assert kept["failed"] == "OutOfMemoryError: no memory left"
    assert json.loads((tmp_path / "late.json").read_text())["facts"] == {"times": 1}
