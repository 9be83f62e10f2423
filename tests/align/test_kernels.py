"""The fused kernels equal their eager twins, and become machine code for Hopper."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

COMPILE = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from align.mmdit.kernels import fused

FLOAT = {"table", "partial", "statistics"}
NUMBER = {"rows", "tokens", "joint_tokens", "offset", "heads", "width", "programs"}
for name, constants in {
    "_qk_forward": {"WIDTH": 128, "HALF": 64},
    "_qk_backward": {"WIDTH": 128, "HALF": 64, "ROWS": fused.ROWS},
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
    source = ASTSource(fn=kernel, signature=types, constexprs=constants)
    print(name, len(compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]))
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
    """By the assembler that Triton brings; no card is needed."""
    said = run("-c", COMPILE, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    sizes = [int(line.split()[1]) for line in said.splitlines()]
    assert len(sizes) == 4
    assert min(sizes) > 1000
