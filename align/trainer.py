"""The life of a run, the same for every objective: open, resume, step, validate, save, export.

What differs between objectives, the samples of a step and their loss, is given as a function of
the step number. Since that function and the engine depend on the step alone, a run that was killed
continues with the numbers it would have had.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch

from align.checkpoint import atomic_folder, read_json
from align.config import TrainConfig, flatten_config, resolve_model
from align.data.features import FeatureEncoder
from align.engine import Engine, make_accelerator
from align.interrupt import StopRequest, listening
from align.loading import load_policy
from align.metrics import MetricsLog
from align.mmdit.adapters import ModelAdapter, load_adapter
from align.policy import Policy, Reference
from align.replica import Replica
from align.run import RunFolder, RunResult
from align.samples import Samples
from align.stopping import Divergence, Patience
from rewards.digests import damage, digest_files, write_digests

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)

StepFn = Callable[[int], dict[str, float]]


class Stateful(Protocol):
    """Numbers that a step leaves to the next one."""

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Trainer:
    """Opens the run folder and the processes; then `begin`, `build_policy`, `fit`.

    As a context it keeps other processes out of the folder, from `begin` until it is left.

    Raises:
        ValueError: the folder holds a run of another configuration.
    """

    def __init__(self, config: TrainConfig, command: str) -> None:
        self.config = config
        self.command = command
        self.run = RunFolder(config)
        self.engine = Engine(config, make_accelerator(config))
        self.model = resolve_model(config.model)
        self.adapter: ModelAdapter
        self.policy: Policy
        self.divergence = Divergence(config.divergence)
        self.samples: Samples | None = None
        # Of -gold, which is to fall.
        self.gold = Patience(config.samples.patience if config.samples else 0)
        self.replica: Replica | None = None

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.run.close()

    def begin(self, **inputs: dict[str, Any]) -> RunResult | None:
        """Open the folder for a run on ``inputs``: mappings that name by content what it learns
        from.

        Returns:
            The result, when the folder holds a finished run on the same; None: there is work.

        Raises:
            FolderInUseError: another process writes there; names it.
            ValueError: the folder holds a run on other data or another model, or its checkpoints
                are all damaged.
            OSError: the folder cannot be written.
        """

        def is_open() -> bool:
            model = load_adapter(self.model, parts=())
            inputs["base"] = {"model": self.config.model, "sha256": model.model_sha256()}
            self.run.confirm(**inputs)
            if not self.run.is_finished:
                self.run.open()
            return not self.run.is_finished

        if not self._on_main(is_open):
            return self.run.result()
        self._set_damaged_aside()
        self._on_main(lambda: self._write_begin(inputs))
        return None

    def _write_begin(self, inputs: dict[str, dict[str, Any]]) -> bool:
        # Once more: what was set aside may have been all that was there.
        self.run.confirm(**inputs)
        self.run.begin(
            self.command,
            processes=self.engine.world,
            threads=torch.get_num_threads(),
            device=str(self.engine.device),
            backend=self.engine.layout.name,
            **inputs,
        )
        return True

    def _on_main(self, action: Callable[[], bool]) -> bool:
        """What the main process finds, on all; when it fails, all end."""
        failure: OSError | ValueError | None = None
        answer = False
        if self.engine.is_main:
            try:
                answer = action()
            except (OSError, ValueError) as error:
                failure = error
        if self.engine.any(failure is not None):
            # The main process says why.
            raise failure or SystemExit(2)
        return self.engine.any(answer)

    def _set_damaged_aside(self) -> None:
        """Make the newest whole checkpoint the newest of all.

        A step depends on its number and on the checkpoint alone: taken again from an older one, it
        gives the same numbers.

        Raises:
            ValueError: all are damaged; names a file of the newest.
        """
        engine, checkpoints = self.engine, self.run.checkpoints
        faults: dict[int, str] = {}
        steps = checkpoints.steps()
        for step in reversed(steps):
            fault = damage(checkpoints.path(step), engine.rank, engine.world)
            found = engine.gather_objects([] if fault is None else [fault])
            if not found:
                break
            faults[step] = found[0]
        if not faults:
            return
        newest = faults[max(faults)]
        if len(faults) == len(steps):
            raise ValueError(
                f"the checkpoint is damaged: {newest}. There is no whole one before it: put the "
                f"file back as it was, or remove {checkpoints.folder} to begin anew"
            )
        if engine.is_main:
            for step, fault in faults.items():
                place = checkpoints.set_aside(step)
                logger.error("the checkpoint is damaged: %s. It was renamed to %s", fault, place)
            step = checkpoints.steps()[-1]
            logger.error("continuing from the newest whole checkpoint, of step %d", step)
        engine.barrier()

    def forget(self, pattern: str) -> None:
        """Remove files of an earlier attempt from the run folder."""
        self.engine.barrier()
        if self.engine.is_main:
            for path in self.run.path.glob(pattern):
                path.unlink()
        self.engine.barrier()

    def encoder(self) -> FeatureEncoder:
        """The encoder of images and prompts, with its cache."""
        folder = self.config.cache_dir or self.run.path / "cache"
        return FeatureEncoder(self.model, folder, self.engine, getattr(torch, self.config.dtype))

    def build_policy(
        self,
        accumulation: int,
        micro_batch_size: int,
        reference: Reference = "none",
        replica: bool = False,
    ) -> Policy:
        """Load the transformer, choose what is trained, and prepare it for this launch.

        ``replica`` makes the one of the same name, to draw with whole weights where they are not.
        """
        if self.config.samples is not None:
            self.samples = Samples(self.config.samples, self.engine, self.encoder(), self.run.path)
        layout = self.engine.layout
        if self.config.quantize and layout.loads_on_cpu:
            raise ValueError(
                f"quantize {self.config.quantize!r} goes with one process or DDP; this launch is "
                f"{layout.name}"
            )
        device = "cpu" if layout.loads_on_cpu else self.engine.device
        # A reference, and rows of modulation layers, are taken from whole weights in each process.
        needs_whole = reference != "none" or self.config.shard_modulation
        self.policy = load_policy(
            self.config,
            device,
            reference,
            layout.keeps_masters,
            self.engine.device,
            reads_weights=layout.reads_weights(needs_whole),
        )
        self.adapter = self.policy.adapter
        self.policy.move_reference(self.engine.device)
        self.replica = Replica(self.policy) if replica else None
        self.policy.transformer = self.engine.prepare(
            self.policy.transformer, accumulation, micro_batch_size
        )
        if self.replica is not None:
            self.replica.attach(self.engine)
        if self.engine.is_main:
            self.run.update(
                trained_parameters=self.engine.num_trained,
                blocks=self.policy.blocks,
            )
        return self.policy

    def fit(
        self,
        train_step: StepFn,
        validate: Callable[[], dict[str, float]] | None = None,
        validate_every: int = 0,
        patience: Patience | None = None,
        state: Stateful | None = None,
        resumable_every: int = 1,
    ) -> RunResult:
        """Step until ``max_steps`` or until patience ends, then export.

        On SIGTERM or Ctrl-C the step in hand is finished and saved, and the process exits with code
        143 or 130; the same command continues.

        Args:
            train_step: takes the optimizer step of the given number, from 1; returns metrics.
            validate: measures the model, which has the average's weights meanwhile; returns
                metrics, ``validation/loss`` among them.
            validate_every: steps between measurements; the first is before training.
            state: what the step function keeps between steps; it becomes part of the checkpoint.
            resumable_every: a run can be taken up after multiples of so many steps alone.
        """
        config, engine = self.config, self.engine
        patience = patience or Patience()
        step = self._resume(patience, state)
        log = MetricsLog(
            self.run.path,
            engine.accelerator,
            config.max_steps,
            resumed_step=step or None,
            progress=config.progress,
            config=flatten_config(config),
        )
        try:
            with listening() as stop:
                if step == 0 and (figures := self._measure(0, validate, validate_every, patience)):
                    log.log(0, figures)
                while step < config.max_steps and not self._is_exhausted(step, patience):
                    step += 1
                    metrics = train_step(step)
                    limit = self.divergence.observe(metrics["grad_norm"])
                    if limit is not None:
                        norm = metrics["grad_norm"]
                        what = f"the gradient's norm is {norm:.4g}, above {limit:.4g} once more"
                        raise engine.diverged(step, what)
                    metrics |= self._measure(step, validate, validate_every, patience)
                    log.log(step, metrics)
                    is_asked = step % resumable_every == 0 and engine.any(stop.is_set)
                    if is_asked or (config.save_every and step % config.save_every == 0):
                        self._save(step, patience, state)
                    if is_asked and step < config.max_steps:
                        self._stop(step, stop)
            self._export(step)
        finally:
            log.close()
        return self.run.result()

    def _measure(
        self,
        step: int,
        validate: Callable[[], dict[str, float]] | None,
        validate_every: int,
        patience: Patience,
    ) -> dict[str, float]:
        """What is due of validation and samples, with the average's weights; early stopping takes
        note."""
        validates = validate is not None and validate_every and step % validate_every == 0
        draws = self.samples is not None and self.samples.is_due(step, self.config.max_steps)
        figures: dict[str, float] = {}
        if not validates and not draws:
            return figures
        self.engine.model.eval()
        with self.engine.averaged(), torch.no_grad():
            if validates and validate is not None:
                figures |= validate()
                patience.observe(step, figures["validation/loss"])
            if draws and self.samples is not None:
                figures |= self.samples.draw(self.policy, step)
        if "samples/gold" in figures:
            self.gold.observe(step, -figures["samples/gold"])
        return figures

    def _is_exhausted(self, step: int, patience: Patience) -> bool:
        """Whether the run is to end here for want of a better model; run.json says so."""
        ended = {"validation": patience, "gold": self.gold}
        by = [name for name, one in ended.items() if one.is_exhausted]
        if by and self.engine.is_main:
            found = {"step": step, "by": by[0], "best_step": ended[by[0]].best_step}
            self.run.update(stopped_early=found)
        return bool(by)

    def _stop(self, step: int, request: StopRequest) -> NoReturn:
        """Leave as the signal asked."""
        if self.engine.is_main:
            self.run.update(status="stopped", steps=step)
            logger.warning("stopped by %s after step %d, which is saved", request.name, step)
        self.engine.barrier()
        raise SystemExit(request.exit_code)

    # Checkpoints ----------------------------------------------------------------------------------

    def _resume(self, patience: Patience, kept: Stateful | None) -> int:
        """Take up the newest checkpoint; returns its step, 0 without one."""
        latest = self.run.checkpoints.latest()
        self.engine.barrier()
        if latest is None:
            return 0
        step, folder = latest
        state = read_json(folder / "state.json")
        if state["backend"] != self.engine.layout.name:
            raise ValueError(
                f"{folder} was written by {state['backend']}, this launch is "
                f"{self.engine.layout.name}: continue with the launcher's old settings"
            )
        if state["threads"] != torch.get_num_threads():
            logger.warning(
                "%s was written with %d threads, this process has %d: on a CPU the numbers will "
                "differ in their last bits (set OMP_NUM_THREADS)",
                folder,
                state["threads"],
                torch.get_num_threads(),
            )
        self.engine.load(folder)
        for name, one in (("patience", patience), ("gold", self.gold)):
            for key, value in state[name].items():
                setattr(one, key, value)
        self.divergence.load_state_dict(state["divergence"])
        if kept is not None:
            kept.load_state_dict(state["objective"])
        return step

    def _save(self, step: int, patience: Patience, kept: Stateful | None) -> None:
        engine, target = self.engine, self.run.checkpoints.path(step)
        with self._writing(target) as folder:
            engine.save(folder)
            if engine.is_main:
                state = {
                    "step": step,
                    "backend": self.engine.layout.name,
                    "threads": torch.get_num_threads(),
                    "patience": asdict(patience),
                    "gold": asdict(self.gold),
                    "divergence": self.divergence.state_dict(),
                    "objective": None if kept is None else kept.state_dict(),
                }
                (folder / "state.json").write_text(json.dumps(state, indent=2) + "\n")
            engine.barrier()
            digests = engine.gather_objects(
                [*digest_files(folder, engine.rank, engine.world).items()]
            )
            if engine.is_main:
                write_digests(folder, dict(digests))
        if engine.is_main:
            self.run.checkpoints.prune()

    def _export(self, step: int) -> None:
        """Write ``final/``: what stock diffusers loads."""
        with self._writing(self.run.final) as folder, self.engine.averaged():
            state = self.engine.state_dict(trained_only=self.policy.has_lora)
            if self.engine.is_main:
                self.policy.save_pretrained(folder, state)
        if self.engine.is_main:
            self.run.finish(step)
        self.engine.barrier()

    def _writing(self, target: Path) -> Any:
        return atomic_folder(target, self.engine.is_main, self.engine.barrier)
