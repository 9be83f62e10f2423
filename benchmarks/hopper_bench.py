"""What the parts of `benchmarks.hopper` share: sizes, models of random weights, clocks, results."""

from __future__ import annotations

import gc
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope
from torch import Tensor, nn

from align import tiny_pipeline
from align.mmdit.adapters.base import Conditioning
from align.mmdit.adapters.qwen_image import QwenImageAdapter
from align.mmdit.blocks import BlockSettings
from align.policy import Policy
from benchmarks.hopper_sizes import TOY, Sizes

__all__ = ["PART_SECONDS", "STOCK", "TOY", "Bench", "Results", "Sizes", "run_part"]

STOCK = BlockSettings(recompute="full")
"""What is commonly run: diffusers' eager blocks, all recomputed."""


class Results:
    """One JSON file a part, written again after every figure, so that a stopped run keeps its own.

    Raw records of bars go into files of their own, which ``python -m benchmarks.record`` takes.
    """

    def __init__(self, folder: Path, part: str, about: dict[str, Any]) -> None:
        self.folder = folder
        self.content: dict[str, Any] = {
            "part": part, **about, "bars": {}, "facts": {}, "failed": {},
        }  # fmt: skip
        self._about = about
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{part}.json"
        self._write()

    def bar(self, name: str, **raw: Any) -> None:
        """The raw record of ``hopper.NAME``; its own file also says what measured it."""
        self.content["bars"][f"hopper.{name}"] = raw
        whole = json.dumps(raw | {"measured": self._about}, indent=1)
        (self.folder / f"hopper.{name}.json").write_text(whole + "\n")
        self._write()

    def fact(self, name: str, value: Any) -> None:
        """Something that explains the bars."""
        self.content["facts"][name] = value
        self._write()

    def finish(self, seconds: float) -> None:
        self.content["seconds"] = seconds
        self._write()

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """What ends the block early is written down, and what follows it runs."""
        try:
            yield
        # Of any kind: an hour of a rented card must not end with the first kernel that fails.
        except Exception as error:
            self.fail(what, error)

    def fail(self, what: str, error: BaseException) -> None:
        self.content["failed"][what] = f"{type(error).__name__}: {error}"
        self._write()

    def _write(self) -> None:
        self._path.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")


@dataclass
class Bench:
    """One device and the sizes that are measured on it."""

    device: torch.device
    sizes: Sizes
    repeats: int = 5
    compile: bool = True
    ceilings: dict[str, float] = field(default_factory=dict)
    deadline: float = float("inf")
    """On `time.perf_counter`; past it a call is repeated no more."""

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def joint(self, recompute: str = "selective") -> BlockSettings:
        """Our blocks, compiled where that is wanted."""
        return BlockSettings("joint", recompute, self.compile)  # type: ignore[arg-type]

    # Models ---------------------------------------------------------------------------------------

    def transformer(
        self, layers: int | None = None, dtype: torch.dtype = torch.bfloat16
    ) -> nn.Module:
        """Random weights, made on the device; the same for the same sizes."""
        sizes = self.sizes
        rest = sizes.head_dim - 16
        axes = (16, rest // 2, rest // 2)
        with torch.device("meta"):
            model: Any = QwenImageTransformer2DModel(
                num_layers=min(layers or sizes.layers, sizes.layers),
                num_attention_heads=sizes.heads,
                attention_head_dim=sizes.head_dim,
                joint_attention_dim=sizes.joint_dim,
                axes_dims_rope=axes,
            )
        model = nn.Module.to(model, dtype).to_empty(device=self.device)
        generator = torch.Generator(self.device).manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, parameter.shape[1] ** -0.5, generator=generator)
                else:
                    parameter.fill_(float("norm" in name and name.endswith("weight")))
            for block in model.transformer_blocks:
                for modulation in (block.img_mod[1], block.txt_mod[1]):
                    # Open gates: with closed ones a block computes next to nothing, right or wrong.
                    modulation.bias.view(6, -1)[2::3].fill_(1.0)
        model.pos_embed = QwenEmbedRope(10000, list(axes), scale_rope=True)
        return model.eval().requires_grad_(False)

    def adapter(self) -> QwenImageAdapter:
        """The family's adapter without modules: shapes and the scheduler alone."""
        folder = tiny_pipeline()
        scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        scheduler |= {"base_image_seq_len": 256, "max_image_seq_len": 8192}  # Qwen-Image's
        vae = json.loads((folder / "vae" / "config.json").read_text())
        return QwenImageAdapter(scheduler_config=scheduler, vae_config=vae)

    def policy(
        self,
        blocks: BlockSettings,
        reference: str = "none",
        layers: int | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> Policy:
        """All parameters trained, on a fresh transformer."""
        model = self.transformer(layers, dtype)
        return Policy(self.adapter(), model, reference=reference, blocks=blocks)  # type: ignore[arg-type]

    def free(self) -> None:
        """Give back what the last variant held."""
        torch._dynamo.reset()
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    # Inputs ---------------------------------------------------------------------------------------

    def latents(self, count: int, side: int, seed: int = 0) -> Tensor:
        shape = self.adapter().latent_shape(side, side)
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(count, *shape, device=self.device, generator=generator)

    def prompts(self, lengths: Sequence[int]) -> Conditioning:
        """Random embeddings of prompts of so many tokens."""
        generator = torch.Generator(self.device).manual_seed(1)
        return Conditioning.cat(
            Conditioning(
                torch.randn(
                    1, n, self.sizes.joint_dim, device=self.device, generator=generator
                ).bfloat16()
            )
            for n in lengths
        )

    # Clocks ---------------------------------------------------------------------------------------

    def seconds(self, call: Callable[[], Any], warm_up: int = 2) -> list[float]:
        """Of each of ``repeats`` calls, by CUDA events, after calls that are not counted; of fewer,
        at least one, past the deadline."""
        for _ in range(warm_up):
            call()
        found: list[float] = []
        while len(found) < self.repeats and not (found and time.perf_counter() > self.deadline):
            if not self.is_cuda:
                began = time.perf_counter()
                call()
                found.append(time.perf_counter() - began)
                continue
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            found.append(start.elapsed_time(end) / 1e3)
        return found

    def milliseconds(self, call: Callable[[], Any], warm_up: int = 2) -> list[float]:
        return [1e3 * each for each in self.seconds(call, warm_up)]

    def peak_bytes(self) -> int:
        """Highest allocation since `free`; 0 on a CPU, where torch does not count it."""
        return torch.cuda.max_memory_allocated() if self.is_cuda else 0


PART_SECONDS = 8 * 60


class OutOfTime(BaseException):
    """Ends a part; no `Results.attempt` may keep it."""


def run_part(part: Callable[[Bench, Results], None], bench: Bench, results: Results) -> None:
    """Run one part within its time; figures that it has by then stay."""

    def late(*_: Any) -> NoReturn:
        raise OutOfTime(f"the part took more than {PART_SECONDS} s")

    start = time.perf_counter()
    bench.deadline = start + PART_SECONDS / 2
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PART_SECONDS)
    try:
        with results.attempt("part"):
            part(bench, results)
    except OutOfTime as error:
        results.fail("part", error)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    bench.free()
    results.finish(time.perf_counter() - start)
