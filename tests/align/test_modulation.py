"""Modulation layers split over two processes: the same numbers from fewer bytes."""

from __future__ import annotations

from benchmarks.modulation import measure_modulation


def test_two_processes_move_a_third_fewer_bytes_for_the_same_gradients():
    raw = measure_modulation()
    assert raw["split_bytes"] <= 0.7 * raw["whole_bytes"]
    assert raw["loss_difference"] < 1e-6
    assert raw["gradient_error"] < 1e-4
