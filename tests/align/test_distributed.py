"""Two processes over gloo, under DDP, ZeRO-2, ZeRO-3 and FSDP2, against one process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from golden_cases import CASES, GOLDEN, assert_follows
from launched_runs import DPO, GRPO, samples
from launching import launch
from PIL import Image
from run_data import FirstChannel, dpo_config, grpo_config, losses, sft_config, write_data

from align.checkpoint import read_json
from align.offline import train_dpo, train_sft
from align.online import train_grpo


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture(scope="module")
def alone(data: Path, untrained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of launched_runs.py in this one process."""
    out = tmp_path_factory.mktemp("alone")
    train_sft(sft_config(data, untrained_folder, out / "sft", samples=samples(data)))
    train_dpo(dpo_config(data, untrained_folder, out / "dpo", **DPO))
    train_grpo(grpo_config(data, untrained_folder, out / "grpo", **GRPO), FirstChannel())
    return out


@pytest.fixture(scope="module", params=["ddp", "zero2", "zero3", "fsdp2"])
def launched(
    request: pytest.FixtureRequest,
    data: Path,
    untrained_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    out = tmp_path_factory.mktemp(request.param)
    launch(request.param, "launched_runs.py", data, untrained_folder, out)
    return out


def assert_close(found: dict, expected: dict, tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for step, row in expected.items():
        assert found[step].keys() == row.keys()
        for name in ("loss", "validation/loss", "grad_norm", "reward"):
            if name in row:
                assert found[step][name] == pytest.approx(
                    row[name], rel=tolerance, abs=tolerance
                ), (step, name)


def test_two_processes_follow_one(launched, alone):
    for name in ("sft", "dpo", "grpo"):
        info = read_json(launched / name / "run.json")
        assert info["processes"] == 2
        assert_close(losses(launched / name), losses(alone / name))
    assert len(losses(launched / "sft")) == 11


def test_ten_steps_of_every_objective_are_those_that_were_recorded(launched):
    """The plain loop's in one process, see test_golden.py."""
    found, recorded = (json.loads(p.read_text()) for p in (launched / "golden.json", GOLDEN))
    assert found.keys() == CASES.keys()
    for name, rows in found.items():
        assert_follows(rows, recorded[name])


LAYOUTS = {
    "ddp": ("replicated", False, False),
    "zero2": ("deepspeed-zero2-2", False, True),
    "zero3": ("deepspeed-zero3-2", True, True),
    "fsdp2": ("fsdp2-2", True, True),
}
"""Launch -> name in run.json, whether weights are sharded, whether the optimizer's moments are."""


def test_each_process_holds_its_part(launched):
    launch = launched.name[:-1]  # pytest numbers its folders
    name, *are_sharded = LAYOUTS[launch]
    assert read_json(launched / "sft" / "run.json")["backend"] == name
    for rank in (0, 1):
        held = read_json(launched / f"held-sft-{rank}.json")
        # DeepSpeed's parts are no tensor class of their own: their sizes are what shows them.
        assert held["type"] == ("DTensor" if launch == "fsdp2" else "Tensor")
        # The average lies as the weights do.
        for part, is_sharded in zip(
            ("weights", "moments", "average"), (*are_sharded, are_sharded[0]), strict=True
        ):
            share = held[part] / held["trained"]
            assert (0.4 < share < 0.6) if is_sharded else share >= 1.0, (rank, part, share)


def test_under_fsdp2_one_process_reads_the_weights_and_sends_them(launched):
    """That all compute with the same ones is what the losses above show."""
    unread = [path.name for path in launched.glob("unread-*")]
    assert unread == (["unread-1"] if "fsdp2" in launched.name else [])


def test_split_modulation_trains_alike_and_moves_fewer_bytes(launched, alone):
    """By ``shard_modulation``, which goes with FSDP2 alone."""
    if "zero" in launched.name:
        return
    if "ddp" in launched.name:
        said = (launched / "split-refused.txt").read_text()
        assert "shard_modulation goes with a launch under FSDP2" in said
        assert LAYOUTS[launched.name[:-1]][0] in said
        return
    assert_close(losses(launched / "split"), losses(alone / "sft"))
    found, expected = transformer_of(launched / "split"), transformer_of(alone / "sft")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=0)
    for rank in (0, 1):
        held = read_json(launched / f"held-split-{rank}.json")
        for part in ("weights", "moments", "average"):
            assert 0.4 < held[part] / held["trained"] < 0.6, (rank, part)
        split, whole = (
            read_json(launched / f"traffic-{run}-{rank}.json")["bytes"] for run in ("split", "sft")
        )
        assert split <= 0.7 * whole, split / whole


def test_a_continued_run_gives_the_same_numbers(launched):
    assert losses(launched / "continued") == losses(launched / "sft")
    assert read_json(launched / "continued" / "run.json")["attempts"] == 2


def test_processes_with_other_weights_refuse_to_start(launched):
    refused = sorted(launched.glob("refused-*.txt"))
    if "ddp" in launched.name or "zero2" in launched.name:
        assert [path.name for path in refused] == ["refused-0.txt", "refused-1.txt"]
        text = refused[0].read_text()
        assert "the weights of process 1 differ from those of process 0" in text
        assert not (launched / "unequal" / "metrics.jsonl").read_text()
    else:  # shards differ by design
        assert not refused


def test_each_saves_a_pipeline_that_draws(launched, alone, untrained_folder):
    """The averaged weights of one process within rounding, and stock diffusers draws with them."""

    found, expected = transformer_of(launched / "sft"), transformer_of(alone / "sft")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=0)
    pipeline = DiffusionPipeline.from_pretrained(launched / "sft" / "final")
    pipeline.set_progress_bar_config(disable=True)
    assert draw(pipeline).tobytes() != draw_base(untrained_folder).tobytes()
    pipeline = DiffusionPipeline.from_pretrained(untrained_folder)
    pipeline.load_lora_weights(launched / "dpo" / "final")
    assert pipeline.get_list_adapters()["transformer"]


def test_two_processes_show_the_images_that_one_does(launched, alone):
    """In the same order, of the averaged weights, within rounding."""
    for step in (0, 10):
        grids = [
            np.asarray(Image.open(run / f"sft/samples/step-{step:08d}/grid.png")).astype(int)
            for run in (launched, alone)
        ]
        assert grids[0].shape == (12 * 32, 32, 3)
        assert np.abs(grids[0] - grids[1]).max() <= 2


def transformer_of(run: Path) -> dict[str, torch.Tensor]:
    return DiffusionPipeline.from_pretrained(run / "final").transformer.state_dict()


def draw(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        "a red circle",
        num_inference_steps=2,
        height=32,
        width=32,
        true_cfg_scale=1.0,
        generator=torch.Generator().manual_seed(0),
    ).images[0]


def draw_base(folder: Path):
    return draw(DiffusionPipeline.from_pretrained(folder))
