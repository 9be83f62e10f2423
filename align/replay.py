"""The batch of a step that spoilt a run, computed again: sample by sample, to see which did it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from align.checkpoint import CheckpointFolder, read_json
from align.config import DPOConfig, GRPOConfig, SFTConfig, load_config
from align.learners import online_objective
from align.loading import load_policy
from align.mmdit.adapters.base import Conditioning
from align.objectives.base import finish_parts
from align.objectives.diffusion_dpo import PairBatch
from align.objectives.feedback import Feedback
from align.objectives.flow_grpo import TransitionBatch
from align.objectives.listwise import ListBatch
from align.objectives.matching import SampleBatch
from align.objectives.sft import SFT, SFTBatch
from align.offline import preference_objective
from align.policy import Policy

__all__ = ["load_batches", "replay"]

CONFIGS = {"sft": SFTConfig, "dpo": DPOConfig, "grpo": GRPOConfig}
KINDS = {k.__name__: k for k in (SFTBatch, PairBatch, ListBatch, TransitionBatch, SampleBatch)}


def load_batches(path: Path) -> tuple[int, list[Any]]:
    """The step, and the micro-batches that one process had in it, as the objectives take them.

    Raises:
        ValueError: the file is damaged, or of another kind; names it.
    """
    try:
        kept = torch.load(path, weights_only=True)
        return kept["step"], [
            KINDS[row["kind"]](**row["batch"] | {"cond": Conditioning(**row["batch"]["cond"])})
            for row in kept["batches"]
        ]
    # torch reads a file of its own format, of an older one, or of any pickle, and each breaks in
    # ways of its own.
    except Exception as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is damaged, or holds no kept batch: {why}") from error


def replay(path: Path) -> tuple[int, int, list[dict[str, float]]]:
    """Loss, metrics and gradient norm of each micro-batch, under the newest checkpoint's weights.

    Args:
        path: ``diverged-step-N-RANK.pt`` in its run folder.

    Returns:
        The step, that of the checkpoint (0: the base model), and a row for each micro-batch.

    Raises:
        ValueError: the file is damaged, or the checkpoint's weights are parts of a sharded launch.
    """
    folder = path.parent
    step, batches = load_batches(path)
    config = load_config(CONFIGS[read_json(folder / "run.json")["command"]], folder / "config.yaml")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    needs_copy = config.lora is None and _needs_reference(config)
    policy = load_policy(config, device, "copy" if needs_copy else "none")
    latest = CheckpointFolder(folder / "checkpoints", config.keep_checkpoints).latest()
    state: dict[str, Any] = {}
    if latest is not None:
        state = read_json(latest[1] / "state.json")
        _load_weights(policy, latest[1], state["backend"])
    objective = _objective(config, state.get("objective"), batches[0])
    rows = [_figures(policy, objective, _to(batch, device)) for batch in batches]
    return step, latest[0] if latest else 0, rows


def _needs_reference(config: SFTConfig | DPOConfig | GRPOConfig) -> bool:
    if isinstance(config, GRPOConfig):
        return config.objective.needs_reference
    return isinstance(config, DPOConfig) and config.reference.mode != "cached"


def _load_weights(policy: Policy, folder: Path, backend: str) -> None:
    if backend != "replicated":
        raise ValueError(
            f"{folder} was written by {backend}: each process has a part of the weights; replay "
            "reads checkpoints of one process or of DDP. load_batches gives the batch by itself"
        )
    weights = load_file(folder / "trainable.safetensors")
    with torch.no_grad():
        for name, parameter in policy.transformer.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])


def _objective(config: SFTConfig | DPOConfig | GRPOConfig, state: Any, batch: Any) -> Any:
    if isinstance(config, SFTConfig):
        return SFT()
    if isinstance(config, GRPOConfig):
        return online_objective(config)
    feedback = Feedback(config.objective)
    if state is not None:
        feedback.load_state_dict(state)
    return preference_objective(config.objective, feedback, math.prod(batch.noise.shape[1:]))


def _to(batch: Any, device: str) -> Any:
    moved = {
        name: value.to(device)
        for name, value in vars(batch).items()
        if isinstance(value, Tensor | Conditioning)
    }
    return type(batch)(**vars(batch) | moved)


def _figures(policy: Policy, objective: Any, batch: Any) -> dict[str, float]:
    output = objective.loss(policy, batch)
    gradients = torch.autograd.grad(output.loss, policy.trainable_parameters(), allow_unused=True)
    norm = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
    metrics = {name: float(value) for name, value in output.metrics.items()}
    return {"loss": output.loss.item(), "grad_norm": norm.item(), **finish_parts(metrics)}
