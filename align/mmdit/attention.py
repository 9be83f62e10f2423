"""Which attention path a device takes, and why; which backends of diffusers must not be taken.

A joint sequence of Qwen-Image is ``[padded text, image]``: its padding lies in the middle. Backends
that pack keys by their number of real tokens assume that padding comes last; they would keep the
padding and drop the last image tokens, without an error. The joint blocks of `align.mmdit.blocks`
unpad the text before attention, so no mask ever reaches a kernel; stock blocks do pass one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "BACKENDS",
    "AttentionChoice",
    "AttentionDevice",
    "AttentionProof",
    "Backend",
    "OpRecorder",
    "choose_attention",
    "prove_attention",
    "require_backend",
]

Masking = Literal["right", "refused", "wrong", "unproven"]


@dataclass(frozen=True)
class Backend:
    """What one backend of diffusers' dispatcher does with a joint sequence."""

    backward: bool
    """It has a gradient."""
    masking: Masking
    """``right``: padding inside the sequence is left out. ``refused``: it raises on a mask, or has
    no place for one. ``wrong``: it takes a mask and computes something else. ``unproven``: not
    looked into, so not taken."""
    note: str


_PACKS = "packs keys by their count, as if padding came last: drops image tokens, keeps padding"
_FLEX = "its boolean mask is not known to work; compiled only inside torch.compile"
_INFERENCE = "quantised, inference only"

BACKENDS: dict[str, Backend] = {
    "native": Backend(True, "right", "torch chooses: cuDNN, FlashAttention-2, efficient or math"),
    "_native_cudnn": Backend(True, "right", "copies q, k and v to be contiguous"),
    "_native_flash": Backend(True, "refused", "FlashAttention-2"),
    "_native_efficient": Backend(True, "right", "slower than cuDNN and FlashAttention"),
    "_native_math": Backend(True, "right", "holds the whole score matrix"),
    "_native_npu": Backend(True, "unproven", "another chip"),
    "_native_xla": Backend(True, "refused", "another chip"),
    "flex": Backend(True, "unproven", _FLEX),
    "flash": Backend(True, "refused", "needs flash-attn"),
    "flash_hub": Backend(True, "refused", "needs kernels and the hub"),
    "flash_varlen": Backend(True, "wrong", _PACKS),
    "flash_varlen_hub": Backend(True, "right", "two host synchronisations in every layer"),
    "flash_4_hub": Backend(False, "refused", "its gradient depends on the kernel that is fetched"),
    "_flash_3": Backend(False, "refused", "registered without a gradient"),
    "_flash_3_hub": Backend(True, "refused", "needs kernels and the hub"),
    "_flash_varlen_3": Backend(True, "wrong", _PACKS),
    "_flash_3_varlen_hub": Backend(True, "right", "two host synchronisations in every layer"),
    "aiter_fa2_hub": Backend(False, "refused", "another chip"),
    "sage": Backend(False, "refused", _INFERENCE),
    "sage_hub": Backend(False, "refused", _INFERENCE),
    "sage_blackwell_hub": Backend(False, "refused", _INFERENCE),
    "sage_varlen": Backend(False, "wrong", _PACKS),
    "_sage_qk_int8_pv_fp8_cuda": Backend(False, "refused", _INFERENCE),
    "_sage_qk_int8_pv_fp8_cuda_sm90": Backend(False, "refused", _INFERENCE),
    "_sage_qk_int8_pv_fp16_cuda": Backend(False, "refused", _INFERENCE),
    "_sage_qk_int8_pv_fp16_triton": Backend(False, "refused", _INFERENCE),
    "xformers": Backend(True, "right", "holds a mask of all pairs of tokens"),
}
"""Every name of the dispatcher, judged for a joint sequence ``[padded text, image]``."""


def require_backend(name: str, *, masked: bool, backward: bool = True) -> Backend:
    """The backend's facts, if it computes what is asked.

    Args:
        masked: the batch has padded text and the mask reaches the kernel (stock blocks).
        backward: a gradient is needed.

    Raises:
        ValueError: unknown, or wrong for this use; names the right ones.
    """
    right = [
        other
        for other, facts in BACKENDS.items()
        if (facts.backward or not backward) and (facts.masking == "right" or not masked)
    ]
    if name not in BACKENDS:
        raise ValueError(f"unknown attention backend {name!r} (choose from {', '.join(right)})")
    facts = BACKENDS[name]
    if name not in right:
        use = " ".join(["padded" if masked else "unpadded", "training" if backward else "drawing"])
        raise ValueError(
            f"attention backend {name!r} is wrong for {use}: {facts.note} "
            f"(choose from {', '.join(right)})"
        )
    return facts


# Choosing -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionDevice:
    """What the choice depends on."""

    type: str
    """``cpu``, ``cuda`` or another device type of torch."""
    torch: tuple[int, int]
    """Major and minor version."""
    capability: tuple[int, int] = (0, 0)
    """Of a CUDA device: (9, 0) is Hopper."""
    cudnn: int = 0
    """cuDNN's version as torch gives it, 91501 for 9.15.1; 0: none was found."""

    @classmethod
    def here(cls, device: torch.device | str) -> AttentionDevice:
        """Of this process and ``device``."""
        device = torch.device(device)
        major, minor = torch.__version__.split(".")[:2]
        version = (int(major), int(minor))
        if device.type != "cuda":
            return cls(device.type, version)
        cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
        return cls("cuda", version, torch.cuda.get_device_capability(device), cudnn or 0)


@dataclass(frozen=True)
class AttentionChoice:
    """A backend of the dispatcher, the kernel that it should reach there, and the reason."""

    backend: str
    kernel: str
    reason: str


_CUDNN_PREFERRED = 91500
"""torch from 2.11 puts cuDNN first on Hopper above this version (check_prefer_cudnn_attention)."""


def choose_attention(device: AttentionDevice, *, masked: bool = False) -> AttentionChoice:
    """The fastest backend with a gradient for bfloat16 and head size 128.

    Published rates at Qwen-Image's shape on an H100, forward: FlashAttention-2 329, cuDNN 631,
    FlashAttention-3 632 TFLOP/s (pytorch/pytorch#142132); FlashAttention-3 with a gradient is not
    on PyPI, so cuDNN is the aim on Hopper.
    """
    if device.type != "cuda":
        return AttentionChoice(
            "native", "flash for CPU" if device.type == "cpu" else "torch's own", "no CUDA device"
        )
    hopper = device.capability >= (9, 0)
    has_cudnn = device.cudnn >= 90000
    if hopper and device.torch >= (2, 11) and device.cudnn > _CUDNN_PREFERRED:
        reason = f"torch {_dots(device.torch)} puts cuDNN {device.cudnn} first on Hopper"
        return AttentionChoice("native", "cudnn", reason)
    if hopper and has_cudnn:
        reason = (
            f"torch {_dots(device.torch)} with cuDNN {device.cudnn} would take FlashAttention-2, "
            "half as fast on Hopper; asking for cuDNN costs copies of q, k and v"
        )
        return AttentionChoice("_native_cudnn", "cudnn", reason)
    if device.capability >= (8, 0) and not masked:
        reason = "no cuDNN was found: is a system CUDA on LD_LIBRARY_PATH?" if hopper else "Ampere"
        return AttentionChoice("native", "flash", reason)
    reason = "FlashAttention-2 takes no mask" if masked else "older than Ampere"
    return AttentionChoice("native", "efficient", reason)


def _dots(version: Iterable[int]) -> str:
    return ".".join(map(str, version))


# Proving ------------------------------------------------------------------------------------------


class OpRecorder(TorchDispatchMode):
    """Names of the operators that run inside, in the order of their first call."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: dict[Any, int] = {}
        """Operator -> number of calls."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops[func] = self.ops.get(func, 0) + 1
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class AttentionProof:
    """What a backend really did on a small joint sequence, against float64 arithmetic."""

    backend: str
    ops: tuple[str, ...]
    """Operators of attention that ran: they name the kernel."""
    forward_error: float
    """Largest absolute difference of the output over the largest output."""
    backward_error: float
    """The same of the gradients of q, k and v."""


def prove_attention(
    backend: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    text_lengths: Iterable[int] | None = None,
) -> AttentionProof:
    """Run ``backend`` forward and backward on 16 text and 48 image tokens.

    Args:
        text_lengths: real text tokens of each sample, at most 16; None: no padding and no mask.
            Rows of padding are not compared: nothing reads them.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = None if text_lengths is None else list(text_lengths)
    batch, text, image = len(lengths or [16, 16]), 16, 48
    shape = (batch, text + image, 2, 128)
    exact = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4)]
    real = torch.ones(batch, text + image, dtype=torch.bool)
    for row, length in zip(real, lengths or [], strict=False):
        row[length:text] = False
    upstream = exact.pop() * real[..., None, None]
    inputs = [x.to(device, dtype).requires_grad_() for x in exact]
    mask = None if lengths is None else real[:, None, None].to(device)
    with OpRecorder() as recorder:
        output = dispatch_attention_fn(
            *inputs, attn_mask=mask, backend=AttentionBackendName(backend)
        )
    output.backward(upstream.to(device, dtype))
    rounded = [x.detach().cpu().double().requires_grad_() for x in inputs]
    expected = _reference(rounded[0], rounded[1], rounded[2], real)
    expected.backward(upstream)
    keep = real[..., None, None]
    gradients = [(_host(x.grad), _host(r.grad)) for x, r in zip(inputs, rounded, strict=True)]
    return AttentionProof(
        backend=backend,
        ops=tuple(str(op) for op in recorder.ops if "attention" in str(op)),
        forward_error=_relative(_host(output) * keep, _host(expected) * keep),
        backward_error=max(_relative(found, wanted) for found, wanted in gradients),
    )


def _reference(query: Tensor, key: Tensor, value: Tensor, real: Tensor) -> Tensor:
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    weights = F.softmax(scores.masked_fill(~real[:, None, None], -torch.inf), dim=-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, value)


def _host(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.detach().cpu().double()


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())
