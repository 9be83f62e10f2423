"""A frozen transformer whose blocks lie in host memory and pass over the card one after the other.

While a block computes, the next one is copied beside it: two blocks are on the card, 1.3 GiB of the
20B model and not 38. On a card the copies run on a stream of their own, out of pinned memory; on a
CPU the same code copies in turn, and gives the same numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

__all__ = ["BlockStream", "host_copy"]


def host_copy(transformer: nn.Module) -> nn.Module:
    """A frozen copy with its weights in host memory; none is made on the card on the way."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("cpu", copy=True), requires_grad=False)
        for p in transformer.parameters()
    }
    return copy.deepcopy(transformer, memo).eval()


class BlockStream:
    """Makes ``transformer``, frozen and in host memory, compute on ``device`` without a gradient.

    What is not a block moves there for good. Blocks are called in their order; a pass that was
    broken off may be followed by another.
    """

    def __init__(self, transformer: nn.Module, device: torch.device | str) -> None:
        device = torch.device(device)
        blocks = cast(Any, transformer).transformer_blocks
        self._is_cuda = device.type == "cuda"
        self._host = [_tensors(block, self._is_cuda) for block in blocks]
        self._slots = [[torch.empty_like(x, device=device) for x in self._host[0]] for _ in "ab"]
        self._stream = torch.cuda.Stream(device) if self._is_cuda else None
        self._copied: list[Any] = [None, None]
        self._used: list[Any] = [None, None]
        self._slot = 0
        """Where the next block goes, or lies."""
        self._ahead: int | None = None
        """The block that lies there."""
        for name, part in transformer.named_children():
            if name != "transformer_blocks":
                part.to(device)
        for index, block in enumerate(blocks):
            block.register_forward_pre_hook(partial(self._enter, index))
            block.register_forward_hook(partial(self._leave, index), always_call=True)

    def _enter(self, index: int, block: nn.Module, *_: Any) -> None:
        if torch.is_grad_enabled():
            raise ValueError("a streamed transformer has no gradient: its weights do not stay")
        if self._ahead != index:
            self._copy(index)
        slot = self._slot
        self._wait(self._copied[slot])
        _bind(block, self._slots[slot])
        self._slot = 1 - slot
        self._copy((index + 1) % len(self._host))

    def _leave(self, index: int, block: nn.Module, *_: Any) -> None:
        self._used[1 - self._slot] = self._mark()
        _bind(block, self._host[index])

    def _copy(self, index: int) -> None:
        slot = self._slot
        with self._aside():
            self._wait(self._used[slot])
            for here, there in zip(self._slots[slot], self._host[index], strict=True):
                here.copy_(there, non_blocking=True)
            self._copied[slot] = self._mark()
        self._ahead = index

    # Of a card ------------------------------------------------------------------------------------

    def _aside(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _mark(self) -> Any:
        """What the current stream was given up to here."""
        return torch.cuda.current_stream().record_event() if self._is_cuda else None

    def _wait(self, mark: Any) -> None:
        if mark is not None:
            torch.cuda.current_stream().wait_event(mark)


def _tensors(block: nn.Module, pin: bool) -> list[Tensor]:
    """The block's weights, moved to pinned memory if ``pin``."""
    place: Callable[[Tensor], Tensor] = Tensor.pin_memory if pin else Tensor.detach
    tensors = [place(p.data) for p in block.parameters()]
    _bind(block, tensors)
    return tensors


def _bind(block: nn.Module, tensors: list[Tensor]) -> None:
    for parameter, tensor in zip(block.parameters(), tensors, strict=True):
        parameter.data = tensor
