"""One optimizer step on accelerate: a single process, DDP, DeepSpeed or FSDP2, on CPU and GPU.

The engine owns what training needs beyond the mathematics: processes, mixed precision,
accumulation, clipping, the learning rate, the moving average, and the state that a checkpoint
keeps. It holds no data and no loss.

Nothing in it depends on a running random generator: dropout is seeded anew at every step from
(seed, step, rank), and the learning rate is a function of the step. A resumed run therefore needs
only weights, optimizer moments and the moving average to continue with the very same numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from align.config import OptimizerConfig, TrainConfig
from align.ema import ShardedEMA, changed
from align.layouts import announce_fsdp, choose_layout, load_models_whole
from align.objectives.base import LossOutput
from align.optim import ReducedOptimizer, make_optimizer

__all__ = ["BatchPlan", "Engine", "learning_rate", "make_accelerator"]

T = TypeVar("T")


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The `Accelerator` of this process.

    On CPU, accelerate takes each rank of a launch for process 0 of 1 and trains independent copies
    unless `PartialState` is made first; the number of processes is therefore checked.

    Raises:
        RuntimeError: accelerate does not see the processes that the launcher started.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    # A process that trains several runs in turn may change the precision between them.
    AcceleratorState._reset_state(reset_partial_state=False)
    if world > 1 and not torch.cuda.is_available():
        PartialState(cpu=True)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and world > 1:
        announce_fsdp(config.mixed_precision)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        log_with=list(config.trackers) or None,
        project_dir=str(config.output_dir),
        kwargs_handlers=[
            # The buffers are constants, a quantised base among them: they need not be sent around.
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
        ],
    )
    if accelerator.num_processes != world:
        raise RuntimeError(
            f"the launcher started {world} processes but accelerate sees "
            f"{accelerator.num_processes}: each would train a copy of its own"
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        load_models_whole()
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return accelerator


def learning_rate(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """The rate of optimizer step ``step`` (from 1): linear warm-up, then the schedule."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps + 1)
    left = 1 - min(1.0, done)
    return config.lr * (left if config.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2)


@dataclass(frozen=True)
class BatchPlan:
    """How one step's samples are shared out: ``total = processes * accumulation * micro``."""

    total: int
    micro: int
    accumulation: int
    rank: int

    @classmethod
    def make(cls, total: int, micro: int | None, processes: int, rank: int) -> BatchPlan:
        """Raises `ValueError` with the sizes that do not divide."""
        share, rest = divmod(total, processes)
        if rest or not share:
            raise ValueError(f"batch_size {total} cannot be shared by {processes} processes")
        micro = micro or share
        if share % micro:
            raise ValueError(
                f"micro_batch_size {micro} does not divide the {share} samples that each of "
                f"{processes} processes has of batch_size {total}"
            )
        return cls(total, micro, share // micro, rank)

    def split(self, items: Sequence[T]) -> list[Sequence[T]]:
        """This process's micro-batches of the step's ``items``."""
        share = self.micro * self.accumulation
        start = self.rank * share
        return [items[i : i + self.micro] for i in range(start, start + share, self.micro)]


class Engine:
    """Trains the parameters of one module that require a gradient."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        self.config = config
        self.accelerator = accelerator
        self.layout = choose_layout(accelerator)
        self.ema: ShardedEMA | None = None
        self.model: nn.Module
        self.optimizer: Any
        self._named: dict[str, nn.Parameter] = {}
        self._released_norm: Callable[[], float] | None = None
        self._batches: Sequence[Any] = ()
        self.has_stepped = False
        """Whether the optimizer has stepped, and so holds its states, in this process."""

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def world(self) -> int:
        return self.accelerator.num_processes

    @property
    def num_trained(self) -> int:
        """Trained parameters, over all shards."""
        return sum(getattr(p, "ds_numel", p.numel()) for p in self._named.values())

    def barrier(self) -> None:
        self.accelerator.wait_for_everyone()

    # Set-up ---------------------------------------------------------------------------------------

    def prepare(self, module: nn.Module, accumulation: int, micro_batch_size: int = 1) -> nn.Module:
        """Wrap ``module`` for this launch and make its optimizer; returns the wrapped module.

        Args:
            module: on any device; only parameters with ``requires_grad`` are trained.
            accumulation: micro-batches in one optimizer step.
            micro_batch_size: samples in one of them; DeepSpeed wants to know.
        """
        if self.config.shard_modulation:
            self.layout.shard_modulation(module)
        self._named = {n: p for n, p in module.named_parameters() if p.requires_grad}
        if not self._named:
            raise ValueError("no parameter of the model requires a gradient")
        optimizer_config = self.config.optimizer
        self._check_release(accumulation)
        self.layout.check(optimizer_config)
        optimizer = make_optimizer(
            optimizer_config,
            self._named.values(),
            self.config.seed,
            fused=not self.layout.keeps_masters,
        )
        if optimizer_config.gradient_release:
            assert isinstance(optimizer, ReducedOptimizer)
            optimizer.release_gradients()
            self._released_norm = optimizer.released_norm
        self.accelerator.gradient_accumulation_steps = accumulation
        self.layout.configure(optimizer_config, accumulation, micro_batch_size)
        self.model, self.optimizer = self.accelerator.prepare(module, optimizer)
        self._named = self.layout.take(self.model, self.optimizer, self._named)
        if self.config.ema is not None:
            self.ema = ShardedEMA(self._named, self.config.ema)
        return self.model

    def _check_release(self, accumulation: int) -> None:
        if self.config.optimizer.gradient_release and (self.world > 1 or accumulation > 1):
            raise ValueError(
                "gradient_release steps inside the backward pass: it needs one process and one "
                f"micro-batch a step, got {self.world} and {accumulation}"
            )

    # Stepping -------------------------------------------------------------------------------------

    def train_step(
        self, step: int, batches: Sequence[Any], loss_fn: Callable[[Any], LossOutput]
    ) -> dict[str, float]:
        """Optimizer step number ``step`` (from 1) on this process's micro-batches.

        Returns:
            ``loss`` and the loss function's metrics as means over all samples of the step,
            ``grad_norm`` before clipping, and ``lr``.

        Raises:
            ValueError: the loss is not finite; the batch is written into the run folder, and
                nothing else since the last checkpoint.
        """
        self._seed(step)
        self._batches = batches
        rate = learning_rate(self.config.optimizer, step, self.config.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        sums: dict[str, Tensor] = {}
        grad_norm: Any = None
        for batch in batches:
            with self.accelerator.accumulate(self.model):
                output = loss_fn(batch)
                self._check_finite(step, output.loss)
                self.accelerator.backward(output.loss)
                if self.accelerator.sync_gradients:
                    grad_norm = self.layout.clip(self.config.optimizer.max_grad_norm)
                    if self._released_norm is not None:
                        grad_norm = self._released_norm()
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, value in {"loss": output.loss, **output.metrics}.items():
                value = torch.as_tensor(value, dtype=torch.float32).detach().to(self.device)
                sums[name] = sums[name] + value if name in sums else value
        self.has_stepped = True
        if self.ema is not None:
            self.ema.update()
        metrics = self.mean({name: value / len(batches) for name, value in sums.items()})
        return metrics | {"grad_norm": float(grad_norm or 0.0), "lr": rate}

    def _seed(self, step: int) -> None:
        """Seed dropout, the one user of the global generators, for this step and rank."""
        key = f"{self.config.seed}/{step}/{self.rank}".encode()
        torch.manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) >> 1)

    def _check_finite(self, step: int, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise self.diverged(step, f"the loss is {loss.item()}")

    def diverged(self, step: int, what: str) -> ValueError:
        """The error of a step that spoilt the run; keeps the step's micro-batches of this process.

        Args:
            what: what was found.
        """
        rate = learning_rate(self.config.optimizer, step, self.config.max_steps)
        path = self.config.output_dir / f"diverged-step-{step:08d}-{self.rank}.pt"
        try:
            kept = [{"kind": type(b).__name__, "batch": asdict(b)} for b in self._batches]
            torch.save({"step": step, "seed": self.config.seed, "batches": kept}, path)
            where = f"its batch is kept: winsome replay {path}"
        except (OSError, RuntimeError) as error:  # torch reports a full disk so
            where = f"its batch could not be kept in {path}: {error}"
        return ValueError(
            f"{what} at step {step} (lr {rate:.3g}); a lower optimizer.lr or a longer warm-up "
            f"usually mends this. Earlier checkpoints are kept; {where}"
        )

    def any(self, flag: bool) -> bool:
        """Whether it is set on some process; on all alike."""
        if self.world == 1:
            return flag
        return self.mean({"flag": torch.tensor(float(flag))})["flag"] > 0

    def gather_objects(self, share: list[T]) -> list[T]:
        """What all processes bring, in rank order; small things, pickled."""
        if self.world == 1:
            return share
        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, share)
        return [item for part in found for item in part]

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Means of scalars over all processes, with one collective."""
        stacked = torch.stack([torch.as_tensor(v, device=self.device) for v in values.values()])
        if self.world > 1:
            stacked = cast(Tensor, self.accelerator.reduce(stacked, "mean"))
        return dict(zip(values, stacked.tolist(), strict=True))

    def gather(self, share: Tensor) -> Tensor:
        """Rows of all processes in rank order; each brings equally many."""
        if self.world == 1:
            return share
        return cast(Tensor, self.accelerator.gather(share.to(self.device)))

    # State ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the model has the moving average's weights, if there is one."""
        if self.ema is None:
            yield
            return
        try:
            with self.ema.applied():
                self.layout.refresh()
                yield
        finally:
            self.layout.refresh()

    @contextlib.contextmanager
    def nudged(self, distance: float) -> Iterator[None]:
        """Within, every trained weight is larger by ``distance``; then all are what they were."""
        try:
            with changed(self._named, lambda _, shard: shard.add_(distance)):
                self.layout.refresh()
                yield
        finally:
            self.layout.refresh()

    def state_dict(self, trained_only: bool = False) -> dict[str, Tensor]:
        """Whole weights by their names in the module given to `prepare`, gathered from shards.

        All processes must call it; the main one gets the tensors.

        Args:
            trained_only: leave out what is frozen.
        """
        whole = self.layout.state_dict(trained_only)
        return {n: t for n, t in whole.items() if not trained_only or n in self._named}

    def save(self, folder: Path) -> None:
        """Write weights, optimizer and average into ``folder``; all processes call it."""
        self.layout.save(folder)
        if self.ema is not None and (self.is_main or self.layout.shards_weights):
            save_file(self.ema.state_dict(), folder / self._ema_name)

    def load(self, folder: Path) -> None:
        """Take up the state that `save` wrote."""
        self.layout.load(folder)
        if self.ema is not None:
            self.ema.load_state_dict(load_file(folder / self._ema_name))

    @property
    def _ema_name(self) -> str:
        return f"ema-{self.rank}.safetensors" if self.layout.shards_weights else "ema.safetensors"
