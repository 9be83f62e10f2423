"""``winsome doctor``."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version

HELP = "What this machine has, which attention path training takes on it, and whether that works."
EXAMPLE = "winsome doctor"

PACKAGES = (
    "winsome",
    "torch",
    "triton",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "deepspeed",
    "trl",
)
KERNELS = {
    "cudnn": "_scaled_dot_product_cudnn_attention",
    "flash": "_scaled_dot_product_flash_attention",
    "efficient": "_scaled_dot_product_efficient_attention",
    "flash for CPU": "_scaled_dot_product_flash_attention_for_cpu",
}
"""The operator of torch that each kernel of `align.mmdit.attention` must be seen to run."""
TOLERANCE = 0.03
"""Relative error of bfloat16 attention against float64 that is still rounding."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="of torch (default: cuda where there is one, else cpu)")


def run(args: argparse.Namespace) -> int:
    print("\n".join(environment()))
    import torch

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    print("\n".join(hardware(device)))
    try:
        lines, faults = attention(device)
    except ModuleNotFoundError as error:
        lines, faults = [], [f"{error}: pip install 'winsome[train]'"]
    print("\n".join(lines))
    for fault in faults:
        print(f"FAULT: {fault}")
    return 1 if faults else 0


def environment() -> list[str]:
    """Versions of Python and of the packages that matter, absent ones named."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} absent")
    return [f"python {platform.python_version()} on {platform.machine()}", "  " + ", ".join(found)]


def hardware(device: str) -> list[str]:
    """The device and what drives it."""
    import torch

    if torch.device(device).type != "cuda":
        cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
        fast = torch.cpu._is_avx512_bf16_supported()
        return [
            f"device {device}: {cores} cores, {threads} threads, bfloat16 products "
            + ("in hardware" if fast else "emulated: mixed_precision bf16 does not pay")
        ]
    properties = torch.cuda.get_device_properties(device)
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else "none"
    nccl = "none"
    if torch.distributed.is_available() and torch.distributed.is_nccl_available():
        from torch.cuda.nccl import version as nccl_version

        nccl = ".".join(map(str, nccl_version()))
    return [
        f"device {device}: {properties.name}, {properties.total_memory / 2**30:.1f} GiB, "
        f"capability {properties.major}.{properties.minor}, {torch.cuda.device_count()} of them",
        f"  CUDA {torch.version.cuda}, cuDNN {cudnn}, NCCL {nccl}",
    ]


def attention(device: str) -> tuple[list[str], list[str]]:
    """What is chosen, what really ran, what is refused; and what is wrong."""
    import torch

    from align.mmdit.attention import BACKENDS, AttentionDevice, choose_attention, prove_attention

    facts = AttentionDevice.here(device)
    lines, faults = [], []
    for name, lengths in (("unpadded (joint blocks)", None), ("padded (stock blocks)", [16, 5])):
        choice = choose_attention(facts, masked=lengths is not None)
        lines.append(
            f"attention, {name}: {choice.backend}, kernel {choice.kernel}: {choice.reason}"
        )
        try:
            proof = prove_attention(choice.backend, device, torch.bfloat16, lengths)
        except RuntimeError as error:  # torch's word for a kernel that cannot run here
            faults.append(f"{choice.backend} does not run ({name}): {error}")
            continue
        lines += [
            f"  ran {', '.join(proof.ops) or 'no attention operator'}; relative error "
            f"{proof.forward_error:.1e} forward, {proof.backward_error:.1e} backward",
        ]
        wanted = KERNELS.get(choice.kernel)
        if wanted and not any(f".{wanted}." in op for op in proof.ops):
            faults.append(f"{choice.backend} did not reach {wanted}: it ran {proof.ops}")
        if max(proof.forward_error, proof.backward_error) > TOLERANCE:
            faults.append(f"{choice.backend} computes something else ({name})")
    if facts.type == "cuda" and "cuda" in os.environ.get("LD_LIBRARY_PATH", ""):
        faults.append(
            "LD_LIBRARY_PATH names a CUDA folder: its cuDNN may shadow the one that torch brought, "
            "and attention would fall back to half the speed; unset it"
        )
    wrong = [name for name, backend in BACKENDS.items() if backend.masking == "wrong"]
    lines.append(f"  refused for padded text, which they compute wrongly: {', '.join(wrong)}")
    return lines, faults
