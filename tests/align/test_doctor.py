"""``winsome doctor`` on this machine, and what it calls a fault."""

from __future__ import annotations

import sys

from align import cli
from align.commands import doctor


def test_a_sound_machine_passes_and_says_what_it_takes(capsys):
    assert cli.main(["doctor", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "torch 2." in said
    assert (
        "attention, unpadded (joint blocks): native, kernel flash for CPU: no CUDA device" in said
    )
    assert "ran aten._scaled_dot_product_flash_attention_for_cpu.default" in said
    assert "refused for padded text, which they compute wrongly: flash_varlen" in said


def test_a_path_that_is_not_the_chosen_one_is_a_fault(monkeypatch, capsys):
    monkeypatch.setitem(doctor.KERNELS, "flash for CPU", "_scaled_dot_product_cudnn_attention")
    assert cli.main(["doctor", "--device", "cpu"]) == 1
    assert "FAULT: native did not reach _scaled_dot_product_cudnn" in capsys.readouterr().out


def test_a_path_that_does_not_run_is_a_fault(monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("No available kernel")

    monkeypatch.setattr("align.mmdit.attention.dispatch_attention_fn", fail)
    assert cli.main(["doctor", "--device", "cpu"]) == 1
    said = capsys.readouterr().out
    assert "FAULT: native does not run (unpadded (joint blocks)): No available kernel" in said
    assert "FAULT: native does not run (padded (stock blocks)): No available kernel" in said


def test_an_absent_package_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "align.mmdit.attention", None)
    assert cli.main(["doctor", "--device", "cpu"]) == 1
    assert "FAULT: import of align.mmdit.attention halted" in capsys.readouterr().out
