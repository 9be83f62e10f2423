"""Small optimizers: what is kept is exact where it says so, and close where it does not."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from align.optim import ReducedOptimizer, make_optimizer, state_bytes
from align.optim_config import OptimizerConfig
from align.optim_states import (
    dequantize,
    dynamic_code,
    join,
    quantize,
    round_stochastically,
    split,
)

STEPS = 200
RELEASED = {"gradient_release": True, "max_grad_norm": 0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def config(type: str, weights: str, lr: float = 1e-3, **changes) -> OptimizerConfig:
    return OptimizerConfig(type=type, weights=weights, lr=lr, weight_decay=0.01, **changes)


def train(model: nn.Module, settings: OptimizerConfig, steps: int = STEPS):
    """Learn a teacher's outputs in the model's own dtype; returns the optimizer."""
    optimizer = make_optimizer(settings, model.parameters())
    if settings.gradient_release:
        optimizer.release_gradients()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        teacher = network()
    inputs = torch.randn(steps, 16, 64, generator=seeded(1))
    for x in inputs:
        y = model(x.to(next(model.parameters()).dtype)).float()
        (y - teacher(x).detach()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))


@pytest.fixture
def start() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return network().bfloat16().float()


def weights_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """All weights in float32, of split ones both halves."""
    return torch.cat(
        [
            join(p.detach().view(-1), optimizer.state[p]["low"])
            if "low" in optimizer.state[p]
            else p.detach().float().view(-1)
            for p in model.parameters()
        ]
    )


def test_a_split_master_is_the_float32_number_to_the_bit():
    bits = torch.randint(-(2**31), 2**31 - 1, (100_000,), generator=seeded(), dtype=torch.int64)
    master = bits.to(torch.int32).view(torch.float32)
    master = master[master.isfinite()]
    weight, low = split(master)
    assert torch.equal(join(weight, low).view(torch.int32), master.view(torch.int32))
    ties = (master.view(torch.int32) & 0xFFFF) == 0x8000
    nearest = master.bfloat16()
    finite = nearest.isfinite() & ~ties
    assert torch.equal(weight[finite], nearest[finite])


@pytest.mark.parametrize("rule", ["adam8bit", "adafactor"])
def test_a_split_master_follows_a_float32_master_to_the_bit(rule):
    """The same gradients, 200 steps: the weights are those of the rule on float32 masters."""
    begin = torch.randn(64, 128, generator=seeded()).bfloat16()
    halves, whole = nn.Parameter(begin.clone()), nn.Parameter(begin.float())
    split_one = ReducedOptimizer([halves], config(rule, "split"))
    full_one = ReducedOptimizer([whole], config(rule, "float32"))
    generator = seeded(1)
    for _ in range(STEPS):
        gradient = torch.randn(64, 128, generator=generator) * 0.1
        halves.grad, whole.grad = gradient.bfloat16(), gradient.bfloat16().float()
        split_one.step()
        full_one.step()
    kept = join(halves.detach().view(-1), split_one.state[halves]["low"])
    assert torch.equal(kept, whole.detach().view(-1))
    assert not torch.equal(whole.detach(), begin.float())


def test_the_eight_bit_code():
    signed, unsigned = dynamic_code(True), dynamic_code(False)
    for levels, lowest in ((signed, -0.9929688), (unsigned, 0.0)):
        assert len(levels.unique()) == 256
        assert (levels[0].item(), levels[-1].item()) == (pytest.approx(lowest), 1.0)
    values = torch.randn(1024, generator=seeded()).square()
    codes, scales = quantize(values, signed=False)
    assert (codes.dtype, scales.shape) == (torch.uint8, (4,))
    found = dequantize(codes, scales, signed=False)
    near = values > 0.1 * values.view(4, -1).amax(1).repeat_interleave(256)
    assert ((found - values).abs() / values)[near].max() < 0.036
    values[:256] = 1.0
    values[1] = 1e-12
    codes, scales = quantize(values, signed=False)
    assert dequantize(codes, scales, signed=False)[1] > 0
    assert not dequantize(*quantize(torch.zeros(256), True), True).any()


def test_stochastic_rounding_has_the_right_mean_and_neighbours():
    value = torch.full((200_000,), 1.0 + 2**-9)  # a quarter of the way from 1 to 1 + 2 ** -7
    drawn = round_stochastically(value, seeded()).float()
    assert set(drawn.unique().tolist()) == {1.0, 1.0 + 2**-7}
    assert (drawn > 1).float().mean().item() == pytest.approx(0.25, abs=0.005)


@pytest.mark.parametrize(
    ("rule", "form", "limit"),
    [("adam8bit", "float32", 0.1), ("adam8bit", "split", 0.1), ("adam8bit", "stochastic", 0.25)],
)
def test_updates_stay_close_to_float32_adamw(start, rule, form, limit):
    """Distance after 200 steps over the distance that AdamW in float32 has gone."""
    reference = copy.deepcopy(start)
    train(reference, config("adamw", "float32"))
    model = copy.deepcopy(start)
    if form != "float32":
        model = model.bfloat16()
    optimizer = train(model, config(rule, form))
    origin, goal = (
        torch.nn.utils.parameters_to_vector(m.parameters()).detach() for m in (start, reference)
    )
    drift = (weights_of(model, optimizer) - goal).norm() / (goal - origin).norm()
    assert drift < limit, drift


@pytest.mark.parametrize("lr", [1e-3, 1e-5])
def test_small_rates_reach_bfloat16_weights_as_they_reach_float32(start, lr):
    """How far 200 steps go along the way of AdamW in float32 (1: as far), and off it.

    Rounding at random goes as far at every rate and adds noise, which is the larger beside the
    smaller rate; plain bfloat16 stands still; a split master has neither fault.
    """
    reference = copy.deepcopy(start)
    train(reference, config("adamw", "float32", lr=lr))
    origin, goal = (
        torch.nn.utils.parameters_to_vector(m.parameters()).detach() for m in (start, reference)
    )
    way = goal - origin
    found = {}
    for form in ("plain", "split", "stochastic"):
        model = copy.deepcopy(start).bfloat16()
        settings = config("adamw", "float32", lr=lr)
        if form != "plain":
            settings = config("adam8bit", form, lr=lr)
        gone = weights_of(model, train(model, settings)) - origin
        found[form] = (float(gone @ way / (way @ way)), float((gone - way).norm() / way.norm()))
    for form in ("split", "stochastic"):
        assert found[form][0] == pytest.approx(1, abs=0.03), found
    assert found["split"][1] < 0.05, found
    assert found["stochastic"][1] < {1e-3: 0.25, 1e-5: 1.0}[lr], found
    if lr == 1e-5:
        assert found["plain"][0] < 0.1, found


def test_adafactor_learns_what_adamw_learns(start):
    errors = {}
    x = torch.randn(256, 64, generator=seeded(2))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        target = network()(x).detach()
    for rule, form in (("adamw", "float32"), ("adafactor", "stochastic")):
        model = copy.deepcopy(start) if form == "float32" else copy.deepcopy(start).bfloat16()
        train(model, config(rule, form))
        output = model(x.to(next(model.parameters()).dtype)).detach().float()
        errors[rule] = float((output - target).square().mean())
    before = float((start(x).detach() - target).square().mean())
    assert errors["adafactor"] < 0.5 * before
    assert errors["adafactor"] < 2 * errors["adamw"]


@pytest.mark.parametrize(
    ("rule", "form", "limit"),
    [
        ("adam8bit", "stochastic", 4.1),
        ("adam8bit", "split", 6.1),
        ("adafactor", "stochastic", 2.1),
        ("adafactor", "split", 4.1),
    ],
)
def test_bytes_of_a_parameter(rule, form, limit):
    model = nn.Sequential(*(nn.Linear(256, 1024) for _ in range(2)))
    count = sum(p.numel() for p in model.parameters())
    plain = torch.optim.AdamW(model.parameters())
    model[1](torch.ones(1, 256)).sum().backward()
    model[0](torch.ones(1, 256)).sum().backward()
    plain.step()
    assert state_bytes(plain) / count == pytest.approx(16, rel=1e-4)
    small = copy.deepcopy(model).bfloat16()
    small.zero_grad()
    optimizer = make_optimizer(config(rule, form, **RELEASED), small.parameters())
    optimizer.release_gradients()
    (
        small[0](torch.ones(1, 256).bfloat16()) + small[1](torch.ones(1, 256).bfloat16())
    ).sum().backward()
    assert all(p.grad is None for p in small.parameters())
    assert optimizer.released_norm() > 0
    assert state_bytes(optimizer) / count <= limit


def test_released_gradients_make_the_same_step(start):
    kept, freed = copy.deepcopy(start).bfloat16(), copy.deepcopy(start).bfloat16()
    a = train(kept, config("adam8bit", "stochastic"), steps=5)
    b = train(freed, config("adam8bit", "stochastic", **RELEASED), steps=5)
    assert torch.equal(weights_of(kept, a), weights_of(freed, b))


def test_a_saved_state_continues_to_the_bit(start, tmp_path):
    settings = config("adam8bit", "stochastic")
    model = copy.deepcopy(start).bfloat16()
    optimizer = train(model, settings, steps=3)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.bin")
    other = copy.deepcopy(model)
    loaded = make_optimizer(settings, other.parameters())
    loaded.load_state_dict(torch.load(tmp_path / "optimizer.bin"))
    for one, two in ((model, optimizer), (other, loaded)):
        for parameter in one.parameters():
            parameter.grad = torch.full_like(parameter, 0.01)
        two.step()
    assert torch.equal(weights_of(model, optimizer), weights_of(other, loaded))
    states = [loaded.state[p] for p in other.parameters()]
    assert {x.dtype for s in states for x in s.values() if isinstance(x, torch.Tensor)} == {
        torch.uint8, torch.float32
    }  # fmt: skip


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValidationError, match="adamw takes weights float32"):
        OptimizerConfig(weights="split")
    with pytest.raises(ValidationError, match=r"set max_grad_norm to 0, got 1\.0"):
        OptimizerConfig(type="adam8bit", gradient_release=True)
    with pytest.raises(ValueError, match=r"take torch\.bfloat16 parameters, got torch\.float32"):
        ReducedOptimizer([nn.Parameter(torch.zeros(2))], config("adam8bit", "split"))
