"""The fused kernels equal their eager twins, and become machine code for Hopper."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

COMPILE = """
import re
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from align.mmdit.kernels import fused

FLOAT = {"table", "partial", "statistics"}
NUMBER = {"rows", "tokens", "joint_tokens", "offset", "heads", "width", "programs"}
for name, constants in {
    "_qk_forward": {"WIDTH": 128, "HALF": 64, "HEADS": fused.HEADS},
    "_qk_backward": {"WIDTH": 128, "HALF": 64, "HEADS": fused.HEADS, "ROWS": fused.ROWS},
    "_norm_forward": {"HAS_UPDATE": True, "BLOCK": 4096},
    "_norm_backward": {"HAS_UPDATE": True, "BLOCK": 4096, "ROWS": fused.ROWS},
}.items():
    kernel = getattr(fused, name)
    types = {
        argument: "constexpr" if argument in constants
        else "fp32" if argument == "eps"
        else "i32" if argument in NUMBER
        else "*fp32" if argument in FLOAT
        else "*bf16"
        for argument in kernel.arg_names
    }
    # What the launcher finds out by itself: addresses and widths are multiples of 16.
    whole = {
        (i,): [["tt.divisibility", 16]]
        for i, argument in enumerate(kernel.arg_names)
        if types[argument].startswith("*") or argument == "width"
    }
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=whole)
    options = {"num_warps": fused.WARPS} if "norm" in name else None
    made = compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm
    narrow = len(re.findall(r"(?:ld|st)\\.global\\.b(?:16|32) ", made["ptx"]))
    wide = made["ptx"].count(".global.v4.b32 ")
    short = re.findall(
        r"muli %\\w+, %(?:tokens|joint_tokens|heads|width|programs)\\b[^\\n]*i32", made["ttir"]
    )
    print(name, len(made["cubin"]), wide, narrow, len(short))
"""


def run(*arguments: str, **changes: str) -> str:
    """Output of a Python program that sees this checkout first."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path} | changes
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_kernels_equal_their_twins_forward_and_backward():
    run(str(Path(__file__).with_name("interpreted_kernels.py")), TRITON_INTERPRET="1")


def test_the_kernels_compile_for_hopper(tmp_path):
    """By the assembler that Triton brings; no card is needed. Tensors are moved 16 bytes a thread,
    and places in them are computed in 64 bits: a batch may hold more than 2^31 numbers."""
    said = run("-c", COMPILE, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    found = {line.split()[0]: [*map(int, line.split()[1:])] for line in said.splitlines()}
    assert len(found) == 4
    for name, (size, wide, narrow, short) in found.items():
        assert size > 1000, name
        assert wide >= 8, name
        assert narrow <= 2, name  # what a row or a program has one of
        assert short == 0, name
