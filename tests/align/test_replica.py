"""Rollouts from gathered weights, two processes over gloo, against those from shards."""

from __future__ import annotations

import pytest
import torch
from launching import launch
from run_data import FirstChannel, grpo_config, losses, write_data

from align.online import train_grpo


@pytest.mark.parametrize(
    ("launcher", "precisions"), [("zero3", ["bf16"]), ("fsdp2", ["no", "bf16"])]
)
def test_a_replica_draws_the_same_images_for_a_quarter_of_the_traffic(
    launcher, precisions, untrained_folder, tmp_path
):
    """Four passes that gather become one gather; weights move between the two rollouts."""
    data = write_data(tmp_path / "data")
    launch(launcher, "replica_runs.py", data, untrained_folder, tmp_path, *precisions)
    for precision in precisions:
        for rank in (0, 1):
            sharded, replica = (
                torch.load(tmp_path / f"{precision}-{use}-{rank}.pt") for use in (False, True)
            )
            assert len(replica["drawn"]) == 2
            for found, expected in zip(replica["drawn"], sharded["drawn"], strict=True):
                assert torch.equal(found["latents"], expected["latents"])
                assert torch.equal(found["log_prob"], expected["log_prob"])
            assert 0 < replica["bytes"] < 0.3 * sharded["bytes"]
        runs = [losses(tmp_path / f"{precision}-{use}") for use in (False, True)]
        assert runs[0] == runs[1]
        assert {row["log_ratio_abs"] for row in runs[1].values()} == {0.0}


def test_a_replica_of_whole_weights_is_refused(untrained_folder, tmp_path):
    data = write_data(tmp_path / "data")
    rollout = {"height": 32, "width": 32, "num_steps": 4, "window": 2, "replica": True}
    config = grpo_config(data, untrained_folder, tmp_path / "run", rollout=rollout)
    with pytest.raises(ValueError, match=r"this launch \(replicated\) keeps them whole"):
        train_grpo(config, FirstChannel())
