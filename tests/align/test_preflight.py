"""Faults planted one by one: each stops the run before its first step, and says by how much."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from run_data import FirstChannel, grpo_config, losses, write_data

import align.online
from align.engine import BatchPlan, Engine, make_accelerator
from align.learners import StepLearner
from align.online import train_grpo
from align.policy import Policy
from align.preflight import (
    PreflightError,
    check_accumulation,
    check_batch_size,
    check_groups,
    check_margins,
    check_weights,
)
from align.rollout import Group, Rollout
from annotate.records import Prompt


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data")


def start_with(monkeypatch, change):
    """Let ``change`` spoil the first rollout."""
    draw = align.online.draw_rollout
    monkeypatch.setattr(
        align.online, "draw_rollout", lambda policy, *args: change(draw(policy, *args))
    )


def refuse(data, folder, tmp_path, message, **changes):
    config = grpo_config(data, folder, tmp_path / "run", **changes)
    with pytest.raises(PreflightError, match=message):
        train_grpo(config, FirstChannel())
    assert losses(config.output_dir) == {}


def test_trajectories_stored_in_bfloat16(data, untrained_folder, tmp_path, monkeypatch):
    start_with(monkeypatch, lambda r: replace(r, x_next=r.x_next.bfloat16().float()))
    message = r"log-ratios up to [\d.e+]+ nats where 0\.0001 is allowed \(at sigma 0\.\d+"
    refuse(data, untrained_folder, tmp_path, message)


def test_guidance_left_in_the_trained_probability(data, untrained_folder, tmp_path, monkeypatch):
    """As if the guided velocity's log-probabilities were not computed anew without it."""
    monkeypatch.setattr(StepLearner, "_recompute", lambda self: None)
    rollout = {"height": 32, "width": 32, "num_steps": 4, "window": 2, "guidance_scale": 4.0}
    refuse(data, untrained_folder, tmp_path, "is not the one that drew", rollout=rollout)


def test_windows_of_their_own_and_groups_of_one_name():
    prompts = [Prompt(id=name, text=name) for name in ("a", "b")]
    states, levels = torch.zeros(4, 1, 1, 1, 1), torch.full((4, 1), 0.5)
    rollout = Rollout(
        [Group(p, 0, 2) for p in prompts], list("wxyz"), torch.zeros(4, 1, 1, 1), None,
        states, states, levels, levels / 2, torch.zeros(4, 1), states,
    )  # fmt: skip
    assert check_groups(rollout) == {"groups": 2}
    levels = levels.clone()
    levels[3] = 0.25
    with pytest.raises(PreflightError, match=r"group '0/b' have .* \(\[\[0\.5\], \[0\.25\]\]\)"):
        check_groups(replace(rollout, sigma=levels))
    merged = [rollout.groups[0], rollout.groups[0]]
    with pytest.raises(PreflightError, match="two groups of a rollout are named '0/a'"):
        check_groups(replace(rollout, groups=merged))


def test_a_run_asks_for_both_and_counts_what_a_rollout_brings(
    data, untrained_folder, tmp_path, monkeypatch
):
    """The faults in a whole run: each is refused by the call that a trainer makes."""

    def own_windows(rollout):
        return replace(
            rollout, sigma=rollout.sigma + 0.01 * torch.arange(len(rollout.sigma))[:, None]
        )

    with monkeypatch.context() as patch:
        start_with(patch, own_windows)
        refuse(data, untrained_folder, tmp_path, "all of a group must share their window")
    with monkeypatch.context() as patch:
        patch.setattr(Group, "id", property(lambda self: str(len(self.prompt.text) % 1)))
        refuse(data, untrained_folder, tmp_path, "two groups of a rollout are named '0'")
    with monkeypatch.context() as patch:
        images = classmethod(lambda cls, config: config.prompts_per_step * config.group_size)
        patch.setattr(StepLearner, "units", images)
        message = "would see 8 sampling steps .* where it has 16"
        refuse(data, untrained_folder, tmp_path, message)


@pytest.fixture
def engine(data, tiny_folder, tmp_path):
    config = grpo_config(data, tiny_folder, tmp_path / "run")
    return Engine(config, make_accelerator(config))


class Leaky(Policy):
    """Lets the padding of a batch into its attention."""

    def velocity(self, x_t, sigma, cond):
        return super().velocity(x_t, sigma, replace(cond, mask=None))


SIGMA = torch.tensor([0.3, 0.5, 0.8])


def test_padding_that_leaks_into_a_sample(engine, adapter, cond, noise):
    sound, leaky = (cls(adapter, copy.deepcopy(adapter.transformer)) for cls in (Policy, Leaky))
    found = check_batch_size(engine, sound, noise, SIGMA, cond, 1e-3)
    assert found["batch_difference"] < 1e-4
    with pytest.raises(PreflightError, match=r"changes by 0\.\d+ of its size .* 0\.02 is allowed"):
        check_batch_size(engine, leaky, noise, SIGMA, cond, 0.02)


def test_weights_that_are_not_those_that_compute(engine, adapter, transformer, cond, noise):
    from peft import LoraConfig

    policy = Policy(adapter, transformer, lora=LoraConfig(r=2))
    policy.transformer = engine.prepare(policy.transformer, 1)
    before = {name: p.clone() for name, p in policy.transformer.named_parameters()}
    assert check_weights(engine, policy, noise, SIGMA, cond)["weights_move_output"] > 0
    for name, parameter in policy.transformer.named_parameters():
        assert torch.equal(parameter, before[name])
    policy.transformer = copy.deepcopy(policy.transformer)  # a sync that bound nothing
    with pytest.raises(PreflightError, match=r"by 0\.001 changes the model's output by 0 of"):
        check_weights(engine, policy, noise, SIGMA, cond)


def test_a_lora_that_is_frozen_or_switched_off(engine, adapter, transformer, cond, noise):
    from peft import LoraConfig
    from peft.tuners.tuners_utils import BaseTunerLayer

    policy = Policy(adapter, transformer, lora=LoraConfig(r=2))
    policy.transformer = engine.prepare(policy.transformer, 1)
    layers = [m for m in policy.transformer.modules() if isinstance(m, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    with pytest.raises(PreflightError, match="what is trained is not what computes"):
        check_weights(engine, policy, noise, SIGMA, cond)
    policy.transformer.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        engine.prepare(policy.transformer, 1)


def test_accumulation_that_forgets_the_sampling_steps(engine):
    plan = BatchPlan.make(32, 4, 1, 0)
    engine.accelerator.gradient_accumulation_steps = plan.accumulation
    assert check_accumulation(engine, plan, 32, "sampling steps") == {"accumulated": 8}
    engine.accelerator.gradient_accumulation_steps = 4  # of images, where each has two steps
    with pytest.raises(PreflightError, match=r"would see 16 sampling steps .* where it has 32"):
        check_accumulation(engine, plan, 32, "sampling steps")


def test_stored_errors_of_another_model(engine):
    assert check_margins(engine, torch.zeros(4, 2), 0.0) == {"reward_max": 0}
    with pytest.raises(PreflightError, match=r"is 0\.3 nats where 0 is right and 0\.1 is allowed"):
        check_margins(engine, torch.tensor([[0.0, -0.3]]), 0.1)
