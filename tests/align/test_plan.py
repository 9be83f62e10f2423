"""The ledger against counted parameters, FLOPs and bytes; the plan's refusals."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from peft import LoraConfig
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from align import cli
from align.commands.plan import KINDS, RUNGS, kind_of
from align.config import DPOConfig, load_config
from align.ledger import SAVED_UNITS, ModelShape, Tokens, state_bytes_per_parameter
from align.mmdit.adapters import load_adapter
from align.optim import make_optimizer, state_bytes
from align.optim_config import OptimizerConfig
from align.plan import ELEMENTWISE, GPUS, make_plan, scaling_curve, workload_of
from align.policy import Policy
from annotate.settings import ConfigError, configs_folder
from benchmarks.cpu import flop_counter, measure_recompute, measure_traffic
from benchmarks.tables import RESULTS, newest_lines

FULL = configs_folder() / "dpo/qwen_image_full.yaml"


def counted(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_are_those_of_the_real_model():
    with torch.device("meta"):
        model = QwenImageTransformer2DModel()
    shape = ModelShape.of("Qwen/Qwen-Image")
    assert shape.parameters == counted(model) == 20_430_401_088
    assert shape.block_parameters == counted(model.transformer_blocks[0])


def test_what_is_trained_is_what_the_policy_trains(adapter, tiny_folder):
    shape = ModelShape.of(str(tiny_folder))
    assert shape.scale_factor == adapter.scale_factor
    for lora in (None, LoraConfig(r=4)):
        policy = Policy(adapter, copy.deepcopy(adapter.transformer), lora=lora)
        trained = sum(p.numel() for p in policy.trainable_parameters())
        assert shape.trained_parameters(4 if lora else None) == trained


def test_flops_are_those_that_torch_counts(adapter, tiny_folder, cond, noise):
    shape = ModelShape.of(str(tiny_folder))
    policy = Policy(adapter, copy.deepcopy(adapter.transformer))
    with flop_counter() as forward:
        velocity = policy.velocity(noise[:1], torch.tensor([0.5]), cond.select([1]).trim())
    with flop_counter() as backward:
        velocity.square().mean().backward()
    text = cond.select([1]).trim().prompt_embeds.shape[1]
    tokens = shape.tokens(64, 64, text)
    assert sum(shape.forward_flops(tokens)) == pytest.approx(forward.get_total_flops(), rel=0.03)
    assert sum(shape.backward_flops(tokens)) == pytest.approx(backward.get_total_flops(), rel=0.03)


def test_an_edit_has_the_tokens_of_its_source(edit_folder, noise, capsys):
    """FLOPs as torch counts them; the tokens of words and pictures as the adapter makes them."""
    area, size = 64 * 64, (64, 64)
    adapter, source = load_adapter(edit_folder), Image.new("RGB", size, "red")
    shape = ModelShape.of(str(edit_folder))
    cond = adapter.encode_prompts(["make the star blue"], [[source]], area)
    cond = replace(cond, sources=(adapter.encode_source(source, area)[None],))
    with flop_counter() as forward, torch.no_grad():
        adapter.velocity(adapter.transformer, noise[:1], torch.tensor([0.5]), cond)
    drawn, edited = (shape.tokens(*size, 0, sources, area) for sources in (0, 1))
    assert edited.image == 2 * drawn.image
    text = cond.prompt_embeds.shape[1]
    flops = shape.forward_flops(Tokens(edited.image, text))
    assert sum(flops) == pytest.approx(forward.get_total_flops(), rel=0.03)

    limits = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}  # Qwen2.5-VL's own
    processor = Qwen2VLImageProcessorPil(size=limits)
    plus = ModelShape.of("Qwen/Qwen-Image-Edit-2509")
    for model, side in ((ModelShape.of("Qwen/Qwen-Image-Edit"), 1024), (plus, 384)):
        [grid] = processor(Image.new("RGB", (side, side)))["image_grid_thw"]
        assert model.tokens(1024, 1024, 100, 1) == Tokens(8192, 100 + int(grid.prod()) // 4)
    assert plus.tokens(1024, 1024, 100, 3).image == 4 * 4096

    command = ["plan", str(FULL), "--gpu", "h800-80gb", "--count", "8"]
    assert cli.main([*command, "model=Qwen/Qwen-Image-Edit"]) == 0
    assert "8192 image and 1881 text tokens" in capsys.readouterr().out
    assert cli.main([*command, "--sources", "1"]) == 2
    assert "got 1 source image, this model takes none" in capsys.readouterr().err


def test_saved_bytes_are_those_that_are_counted():
    raw = measure_recompute(heads=2)
    shape = ModelShape(num_layers=1, num_attention_heads=2)
    tokens = Tokens(raw["tokens"] - 16, 16)
    for mode, name in (("none", "stock"), ("selective", "selective"), ("full", "full")):
        found = shape.saved_bytes(tokens, mode)
        assert found == pytest.approx(raw[f"{name}_bytes"], rel=0.03), mode
    assert SAVED_UNITS["none"] / SAVED_UNITS["selective"] > 2.5


def test_elementwise_traffic_is_that_which_is_counted():
    """75 launches for a forward pass of diffusers' block, beside its products and attention."""
    raw = measure_traffic()
    for kind in ("stock", "joint"):
        for way, units in zip(("forward", "backward"), ELEMENTWISE[kind][:2], strict=True):
            found = raw[f"{kind}_{way}_bytes"] / raw["unit_bytes"]
            assert found == pytest.approx(units, rel=0.03), (kind, way)
    assert raw["stock_forward_launches"] == 75
    assert raw["stock_backward_launches"] == pytest.approx(153, abs=2)
    assert raw["joint_forward_launches"] == pytest.approx(99, abs=2)
    assert raw["joint_backward_launches"] == pytest.approx(172, abs=2)


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize(
    ("rule", "form"),
    [
        ("adamw", "float32"),
        ("adam8bit", "float32"),
        ("adam8bit", "split"),
        ("adam8bit", "stochastic"),
        ("adafactor", "split"),
        ("adafactor", "stochastic"),
    ],
)
def test_state_bytes_are_those_that_are_held(rule, form, released):
    if rule == "adamw" and released:
        return
    release = {"gradient_release": True, "max_grad_norm": 0} if released else {}
    config = OptimizerConfig(type=rule, weights=form, **release)
    weight = torch.zeros(512, 512, dtype=torch.float32 if form == "float32" else torch.bfloat16)
    parameter = torch.nn.Parameter(weight)
    optimizer = make_optimizer(config, [parameter])
    if released:
        optimizer.release_gradients()
    parameter.square().sum().backward()
    optimizer.step()
    expected = sum(state_bytes_per_parameter(config).values())
    assert state_bytes(optimizer) / parameter.numel() == pytest.approx(expected, rel=0.03)


def plan(*overrides: str, gpu: str = "h800-80gb", count: int = 1):
    return make_plan(workload_of(load_config(DPOConfig, FULL, overrides)), GPUS[gpu], count)


def test_the_predictions_agree_with_the_model_of_the_card():
    """Figures computed by hand for one H200, 1024 px, 512 text tokens; GiB and seconds a pair."""
    rung = ("optimizer.type=adam8bit", "optimizer.weights=stochastic", "blocks=joint",
            "optimizer.gradient_release=true", "optimizer.max_grad_norm=0", "batch_size=1",
            "mixed_precision=no", "compile=true")  # fmt: skip
    selective = plan(*rung, "gradient_checkpointing=selective", gpu="h200-141gb")
    assert selective.peak_bytes / 2**30 == pytest.approx(115, rel=0.03)
    assert selective.compute_seconds == pytest.approx(0.851, rel=0.06)
    assert selective.fits
    full = plan(*rung, "gradient_checkpointing=true", gpu="h200-141gb")
    assert full.peak_bytes / 2**30 == pytest.approx(83, rel=0.03)
    eager = plan("reference.mode=live", "batch_size=1", gpu="h200-141gb")
    assert eager.compute_seconds == pytest.approx(1.562, rel=0.06)
    assert not eager.fits


def test_the_plan_agrees_with_every_measurement_that_it_foretells():
    """Newest lines of benchmarks/results."""
    lines = newest_lines()
    released = OptimizerConfig(
        type="adam8bit", weights="stochastic", gradient_release=True, max_grad_norm=0
    )
    foretold = {
        "cpu.saved_bytes_ratio": SAVED_UNITS["none"] / SAVED_UNITS["selective"],
        "cpu.recompute_flops_ratio": 1.0,
        "cpu.optimizer_bytes_per_param": sum(state_bytes_per_parameter(released).values()),
    }
    for bar, expected in foretold.items():
        assert lines[bar]["value"] == pytest.approx(expected, rel=0.03), bar
    path = RESULTS / lines["cpu.compiled_traffic_ratio"]["raw"]
    raw = json.loads(path.read_text(encoding="utf-8"))
    found = {name: size / raw["unit_bytes"] for name, size in raw.items() if "bytes" in name}
    back = found["none_backward_bytes"]
    added = [found[f"{mode}_backward_bytes"] - back for mode in ("selective", "full")]
    assert ELEMENTWISE["compiled"] == pytest.approx(
        (found["none_forward_bytes"], back, *added), rel=0.03
    )


LADDER = sorted(FULL.parents[1].glob("*/qwen_image_*gb*.yaml"))


@pytest.mark.parametrize("path", [pytest.param(p, id=f"{p.parent.name}/{p.stem}") for p in LADDER])
def test_a_rung_says_what_is_predicted_of_it(path):
    pattern = r"# Predicted for (\S+): ([\d.]+) GiB, ([\d.]+) s a step\. Not measured\."
    said = re.search(pattern, path.read_text(encoding="utf-8"))
    assert said, path
    config = load_config(KINDS[kind_of(path)], path)
    found = make_plan(workload_of(config), GPUS[said[1]], 1)
    assert found.fits
    assert float(said[2]) == pytest.approx(found.peak_bytes / 2**30, abs=0.06)
    assert float(said[3]) == pytest.approx(found.step_seconds, rel=0.01)


def test_a_run_that_cannot_fit_is_refused_with_the_next_rung(capsys):
    command = ["plan", str(FULL), "--gpu", "h200-141gb"]
    assert cli.main(command) == 1
    said = capsys.readouterr().out
    assert "does not fit: " in said
    [advice] = [line for line in said.splitlines() if line.startswith("next that fits: set ")]
    assert "next that fits: take --count 4" in said
    rung = advice.removeprefix("next that fits: set ").split()
    assert cli.main([*command[:2], *rung, *command[2:]]) == 0
    assert cli.main(["plan", str(FULL), "--gpu", "h200"]) == 2
    assert "choose from h200-141gb" in capsys.readouterr().err
    assert any("lora.rank" in text for rung in RUNGS for text in rung)


def advised(capsys, gpu: str, *run: str) -> list[str]:
    """The overrides that a refused plan names; with them the plan must fit."""
    assert cli.main(["plan", *run, "--gpu", gpu]) == 1
    said = capsys.readouterr().out.splitlines()
    [advice] = [line for line in said if line.startswith("next that fits: set ")]
    rung = advice.removeprefix("next that fits: set ").split()
    assert cli.main(["plan", *run, *rung, "--gpu", gpu]) == 0
    capsys.readouterr()
    return rung


def test_a_live_reference_that_does_not_fit_is_streamed(capsys):
    live = str(FULL.parent / "qwen_image_80gb.yaml")
    rung = advised(capsys, "h800-80gb", live, "reference.mode=live")
    assert rung == ["reference.mode=streamed"]
    found, other = (plan_of(live, f"reference.mode={mode}") for mode in ("streamed", "cached"))
    blocks = found.memory["reference's blocks"]
    assert found.peak_bytes - other.peak_bytes == blocks < 1.4 * 2**30
    # One pair: 40.9 GB at 50 GB/s take longer than two forward passes.
    assert found.compute_seconds - other.compute_seconds == pytest.approx(0.817, rel=0.01)


@pytest.mark.parametrize(("gpu", "base"), [("l40s-48gb", "fp8"), ("rtx4090-24gb", "nf4")])
@pytest.mark.parametrize("run", ["qwen_image_lora", "qwen_image_141gb"])
def test_a_small_card_is_told_of_a_quantised_base(capsys, gpu, base, run):
    assert f"quantize={base}" in advised(capsys, gpu, str(FULL.parent / f"{run}.yaml"))


def test_a_refusal_names_the_rung_of_grpo_another_sharding_or_nothing(capsys):
    grpo = str(FULL.parents[1] / "grpo/qwen_image_full.yaml")
    rung = advised(capsys, "h200-141gb", grpo)
    assert rung[:2] == ["optimizer.type=adam8bit", "optimizer.weights=stochastic"]
    assert "optimizer.gradient_release=true" not in rung
    several = ["plan", str(FULL), "--gpu", "h800-80gb", "--count", "8", "--sharding"]
    assert cli.main([*several, "zero2"]) == 1
    assert "next that fits: launch with --sharding zero3" in capsys.readouterr().out
    # A float32 copy on every GPU under FSDP2: more GPUs do not help.
    assert cli.main(["plan", str(FULL), "reference.mode=live", *several[2:], "fsdp2"]) == 1
    said = capsys.readouterr().out
    assert "next that fits: set reference.mode=streamed" in said
    assert "--count" not in said
    huge = ["data.height=16384", "data.width=16384"]
    assert cli.main(["plan", str(FULL), *huge, "--gpu", "rtx4090-24gb"]) == 1
    assert "no settings and no number of this card that are known do" in capsys.readouterr().out


def test_a_frozen_copy_is_whole_on_every_gpu():
    """Sharding takes the policy alone; under FSDP2 the copy is float32, as the policy is."""
    work = plan("reference.mode=live", count=8).workload
    for sharding, size in (("zero3", 2), ("fsdp2", 4)):
        found = make_plan(work, GPUS["h800-80gb"], 8, sharding)
        assert found.memory["reference"] == size * work.shape.parameters


def plan_of(path: str, *overrides: str, gpu: str = "h800-80gb"):
    return make_plan(workload_of(load_config(DPOConfig, path, overrides)), GPUS[gpu], 1)


def test_what_the_trainers_refuse_is_not_planned():
    with pytest.raises(ValueError, match="one GPU and one micro-batch a step, got 1 and 2"):
        plan_of(str(FULL.parent / "qwen_image_80gb.yaml"), "batch_size=2")
    with pytest.raises(ValueError, match="1 samples a step cannot be shared by 2 GPUs"):
        plan("batch_size=1", count=2)
    with pytest.raises(ValueError, match="micro_batch_size 3 does not divide the 16 samples"):
        plan("micro_batch_size=3", count=8)
    config = load_config(KINDS["grpo"], FULL.parents[1] / "grpo/qwen_image_141gb.yaml")
    reward = make_plan(workload_of(config), GPUS["h200-141gb"], 1).memory["reward model"]
    assert reward == pytest.approx(2 * (12 * 339_831_296 + 40_523_328))  # two bytes each
    with pytest.raises(ValueError, match="prompts_per_step 4 cannot be shared by 8 GPUs"):
        make_plan(workload_of(config), GPUS["h200-141gb"], 8, "none")


def test_the_scaling_curve_and_the_money(capsys):
    command = ["plan", str(FULL), "--gpu", "h800-80gb", "--count", "8", "--curve"]
    assert cli.main([*command, "--price", "2"]) == 0
    said = capsys.readouterr().out
    assert "at 2 an hour" in said
    assert "predicted, not measured" in said
    first = plan(count=8)
    plans = list(scaling_curve(first.workload, GPUS["h800-80gb"], 8))
    assert [p.count for p in plans] == [8, 16, 32, 64, 128]
    assert plans[0].step_seconds == first.step_seconds
    assert plans[-1].tokens_per_second / plans[0].tokens_per_second > 0.9 * 16
    assert first.sharding == "zero3"
    # Each of a machine's 8 processes loads the model whole, in bfloat16; under FSDP2 one of all
    # does, in float32, or each, where more than its weights is needed.
    assert plans[-1].host_bytes == first.host_bytes == 8 * 2 * first.workload.shape.parameters
    assert f"{first.host_bytes / 2**30:.2f}  of host memory a machine" in said
    other = make_plan(first.workload, GPUS["h800-80gb"], 8, "fsdp2")
    assert other.host_bytes == first.host_bytes / 4
    live = workload_of(load_config(DPOConfig, FULL, ["reference.mode=live"]))
    whole = make_plan(live, GPUS["h800-80gb"], 8, "fsdp2")
    assert whole.host_bytes == 2 * first.host_bytes
    assert sum(first.memory[n] for n in ("weights", "gradients", "master", "moments")) * 8 == (
        16 * first.workload.trained
    )


def test_fsdp2_shards_as_many_bytes_as_zero3(capsys):
    first = plan(count=8)
    other = make_plan(first.workload, GPUS["h800-80gb"], 8, "fsdp2")
    states = sum(other.memory[n] for n in ("weights", "gradients", "moments"))
    assert states * 8 == 16 * first.workload.trained
    assert other.step_seconds == first.step_seconds
    assert (
        cli.main(["plan", str(FULL), "--gpu", "h800-80gb", "--count", "8", "--sharding", "fsdp2"])
        == 0
    )
    assert "fsdp2" in capsys.readouterr().out


def test_split_modulation_gathers_a_third_less():
    """As `cpu.modulation_traffic_ratio` counts it over two processes, of a smaller model."""
    work = workload_of(load_config(DPOConfig, FULL, ["shard_modulation=true"]))
    found, whole = (
        make_plan(each, GPUS["h800-80gb"], 8, "fsdp2") for each in (work, plan(count=8).workload)
    )
    share = found.communication_seconds / whole.communication_seconds
    assert share == pytest.approx(1 - 6_796_984_320 / 20_430_401_088)
    assert share == pytest.approx(newest_lines()["cpu.modulation_traffic_ratio"]["value"], rel=0.03)
    with pytest.raises(ValueError, match="shard_modulation goes with fsdp2, got zero3"):
        make_plan(work, GPUS["h800-80gb"], 8)


def test_hsdp_shards_inside_a_machine_and_reduces_over_machines():
    work = plan(count=16).workload
    inside, flat = (make_plan(work, GPUS["h800-80gb"], 16, kind) for kind in ("hsdp", "fsdp2"))
    assert inside.memory["moments"] == 2 * flat.memory["moments"]
    # Three collectives of 40.9 GB over NVLink, and 40.9 GB there and back between two machines.
    micro = work.samples // 16 // (work.micro_samples or 1)
    whole = 2 * work.shape.parameters
    expected = micro * (3 * whole * 7 / 8 / 165e9 + 2 * whole / 2 / 340e9)
    assert inside.communication_seconds == pytest.approx(expected)
    one = make_plan(work, GPUS["h800-80gb"], 8, "hsdp")
    assert one.memory == make_plan(work, GPUS["h800-80gb"], 8, "fsdp2").memory


@pytest.mark.parametrize("kind", ["sft", "dpo", "grpo"])
def test_each_kind_is_told_from_its_file_and_planned(kind, capsys):
    path = configs_folder() / f"{kind}/qwen_image_lora.yaml"
    assert kind_of(path) == kind
    assert cli.main(["plan", str(path), "--gpu", "h800-80gb"]) == 0
    assert f"{kind} of Qwen/Qwen-Image on 1 x h800-80gb" in capsys.readouterr().out


def test_what_cannot_be_planned_says_why():
    with pytest.raises(ValueError, match=r"planning needs one of Qwen/Qwen-Image, .*, tiny, or a"):
        plan("model=somebody/else")
    with pytest.raises(ValueError, match="under zero3 it is adamw"):
        plan("optimizer.type=adam8bit", count=8)
    with pytest.raises(ValueError, match="128 samples a step cannot be shared by 7 GPUs"):
        plan(count=7)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just words"])
def test_a_file_that_is_no_configuration_is_named(text, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        kind_of(path)


@pytest.mark.parametrize("option", ["--count=0", "--text-tokens=-5", "--size=0", "--price=nan"])
def test_numbers_that_no_run_has_are_refused(option, capsys):
    path = configs_folder() / "dpo/qwen_image_lora.yaml"
    assert cli.main(["plan", str(path), "--gpu", "h800-80gb", option]) == 2
    assert "must be above 0, got" in capsys.readouterr().err
