"""Optimizers that fit a 20B model on one card: 4 bytes a parameter instead of 16.

AdamW on float32 masters with bfloat16 weights and gradients takes 16 bytes a parameter. Here the
moments are 8-bit codes or factored, the master is the bfloat16 weight with its other 16 bits beside
it or no master at all, and with gradient release a gradient lives only until its own step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from align.optim_config import OptimizerConfig
from align.optim_states import BLOCK, dequantize, join, quantize, round_stochastically, split

__all__ = ["ReducedOptimizer", "make_optimizer", "state_bytes"]

CHUNK = 2**24
"""Elements stepped at once: what bounds the float32 temporaries."""
MIN_QUANTIZED = 4096
"""Smaller tensors keep float32 moments, as in arXiv 2110.02861."""


def make_optimizer(
    config: OptimizerConfig, parameters: Iterable[nn.Parameter], seed: int = 0, fused: bool = True
) -> Optimizer:
    """The optimizer that the settings describe.

    Args:
        seed: of stochastic rounding.
        fused: torch's fused AdamW.
    """
    if config.type == "adamw":
        return torch.optim.AdamW(
            list(parameters),
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=fused,
        )
    return ReducedOptimizer(parameters, config, seed)


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of the parameters, their gradients as they are now, and the optimizer's state."""
    total = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            held = [parameter, parameter.grad, *optimizer.state[parameter].values()]
            total += sum(x.numel() * x.element_size() for x in held if isinstance(x, Tensor))
    return total


class ReducedOptimizer(Optimizer):
    """AdamW with 8-bit moments (arXiv 2110.02861) or Adafactor (arXiv 1804.04235).

    AdamW's moments are taken from their codes, updated, used in float32, and coded again; block 0
    to 255 of the flattened tensor share a scale, and so on. Adafactor keeps means of the squared
    gradient over rows and columns, no first moment, and bounds the update's root mean square by 1;
    the learning rate is the one that is set.

    With ``weights`` split or stochastic the parameters must be bfloat16, else float32.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], config: OptimizerConfig, seed: int = 0
    ) -> None:
        if config.type not in ("adam8bit", "adafactor"):
            raise ValueError(f"type is {config.type!r}; choices: adam8bit, adafactor")
        self.config = config
        self.seed = seed
        super().__init__(parameters, {"lr": config.lr})
        self._places = {p: i for i, p in enumerate(self.param_groups[0]["params"])}
        dtype = torch.float32 if config.weights == "float32" else torch.bfloat16
        for parameter in self._places:
            if parameter.dtype != dtype:
                raise ValueError(
                    f"weights {config.weights!r} take {dtype} parameters, got {parameter.dtype}"
                )
        self._released_square: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Step every parameter that has a gradient; released ones have none left."""
        assert closure is None
        for parameter in self._places:
            if parameter.grad is not None:
                self._step_one(parameter, parameter.grad)

    def release_gradients(self) -> None:
        """From now on the backward pass itself steps each parameter and frees its gradient."""

        def step_and_free(parameter: Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None
            with torch.no_grad():
                square = gradient.float().square().sum()
                known = self._released_square
                self._released_square = square if known is None else known + square
                self._step_one(parameter, gradient)
            parameter.grad = None

        for parameter in self._places:
            parameter.register_post_accumulate_grad_hook(step_and_free)

    def released_norm(self) -> float:
        """Norm of the gradients released since the last call."""
        square, self._released_square = self._released_square, None
        return 0.0 if square is None else float(square.sqrt())

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As any optimizer's, but tensors keep their dtypes.

        torch would cast all of them to the weights' first: codes of a byte to two, on the card.
        """
        super().load_state_dict({**state_dict, "state": {}})
        for index, parameter in enumerate(self._places):
            saved = state_dict["state"].get(index, {})
            self.state[parameter] = {
                name: x.to(parameter.device, copy=True) if isinstance(x, Tensor) else x
                for name, x in saved.items()
            }

    # One parameter --------------------------------------------------------------------------------

    def _step_one(self, parameter: Tensor, gradient: Tensor) -> None:
        state = self.state[parameter]
        if not state:
            self._start(state, parameter)
        state["step"] += 1
        rule = self._adam if self.config.type == "adam8bit" else self._adafactor
        generator = self._generator(parameter, state["step"])
        rule(parameter.view(-1), gradient, parameter.shape, state, generator)

    def _start(self, state: dict[str, Any], parameter: Tensor) -> None:
        state["step"] = 0
        size, device = parameter.numel(), parameter.device

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        if self.config.weights == "split":
            state["low"] = zeros(size, dtype=torch.int16)
        if self.config.type == "adafactor":
            if parameter.dim() > 1:
                rows = parameter.shape[0]
                state |= {"row": zeros(rows), "column": zeros(size // rows)}
            else:
                state["square"] = zeros(size)
        elif size % BLOCK or size < MIN_QUANTIZED:
            state |= {"first": zeros(size), "second": zeros(size)}
        else:
            for name, signed in (("first", True), ("second", False)):
                codes, _ = quantize(zeros(BLOCK), signed)
                state[name] = codes[:1].expand(size).clone()
                state[f"{name}_scale"] = zeros(size // BLOCK)

    def _generator(self, parameter: Tensor, step: int) -> torch.Generator | None:
        """Rounds by (seed, parameter, step), so that a resumed run draws the same bits."""
        if self.config.weights != "stochastic":
            return None
        key = f"{self.seed}/{self._places[parameter]}/{step}".encode()
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) >> 1
        return torch.Generator(parameter.device).manual_seed(seed)

    def _adam(
        self,
        weight: Tensor,
        gradient: Tensor,
        shape: torch.Size,
        state: dict[str, Any],
        generator: torch.Generator | None,
    ) -> None:
        beta_1, beta_2 = self.config.betas
        correct_1, correct_2 = 1 - beta_1 ** state["step"], 1 - beta_2 ** state["step"]
        flat = gradient.reshape(-1)
        for start in range(0, weight.numel(), CHUNK):
            rows = slice(start, start + CHUNK)
            g = flat[rows].float()
            first = _read(state, "first", rows, signed=True).lerp_(g, 1 - beta_1)
            second = _read(state, "second", rows, signed=False)
            second.mul_(beta_2).addcmul_(g, g, value=1 - beta_2)
            update = (first / correct_1).div_((second / correct_2).sqrt_().add_(self.config.eps))
            _write(state, "first", rows, first, signed=True)
            _write(state, "second", rows, second, signed=False)
            self._move(weight, rows, update, state, generator)

    def _adafactor(
        self,
        weight: Tensor,
        gradient: Tensor,
        shape: torch.Size,
        state: dict[str, Any],
        generator: torch.Generator | None,
    ) -> None:
        keep = 1 - state["step"] ** -0.8
        update = gradient.float()
        square = update.square().add_(1e-30)
        if len(shape) > 1:
            square = square.view(shape[0], -1)
            row = state["row"].lerp_(square.mean(1), 1 - keep)
            column = state["column"].lerp_(square.mean(0), 1 - keep)
            scale = (row / row.mean()).rsqrt_()[:, None] * column.rsqrt()
            update = update.view(shape[0], -1) * scale
        else:
            update = update * state["square"].lerp_(square, 1 - keep).rsqrt()
        root_mean_square = update.square().mean().sqrt_()
        update = update.div_(root_mean_square.clamp_min(1.0)).view(-1)
        for start in range(0, weight.numel(), CHUNK):
            rows = slice(start, start + CHUNK)
            self._move(weight, rows, update[rows], state, generator)

    def _move(
        self,
        weight: Tensor,
        rows: slice,
        update: Tensor,
        state: dict[str, Any],
        generator: torch.Generator | None,
    ) -> None:
        """Decay the weights and take ``lr`` times the update from them, in float32."""
        lr, form = self.param_groups[0]["lr"], self.config.weights
        held = weight[rows]
        master = join(held, state["low"][rows]) if form == "split" else held.float()
        master.mul_(1 - lr * self.config.weight_decay).add_(update, alpha=-lr)
        if form == "split":
            high, low = split(master)
            held.copy_(high)
            state["low"][rows].copy_(low)
        elif form == "stochastic":
            assert generator is not None
            held.copy_(round_stochastically(master, generator))
        else:
            held.copy_(master)


def _read(state: dict[str, Any], name: str, rows: slice, signed: bool) -> Tensor:
    values = state[name][rows]
    if values.dtype == torch.float32:
        return values
    return dequantize(values, state[f"{name}_scale"][_blocks(rows)], signed)


def _write(state: dict[str, Any], name: str, rows: slice, values: Tensor, signed: bool) -> None:
    if state[name].dtype == torch.float32:
        return  # it was changed in place
    codes, scales = quantize(values, signed)
    state[name][rows].copy_(codes)
    state[f"{name}_scale"][_blocks(rows)].copy_(scales)


def _blocks(rows: slice) -> slice:
    return slice(rows.start // BLOCK, rows.stop // BLOCK)
