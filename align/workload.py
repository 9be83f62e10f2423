"""What a configuration asks of GPUs, whatever they are: sizes, samples and passes of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from align.config import DPOConfig, GRPOConfig, SFTConfig, resolve_model
from align.ledger import ModelShape, Tokens

__all__ = ["Workload", "workload_of"]


@dataclass(frozen=True)
class Workload:
    """What a configuration asks of the GPUs, whatever they are."""

    kind: Literal["sft", "dpo", "grpo"]
    shape: ModelShape
    tokens: Tokens
    config: SFTConfig | DPOConfig | GRPOConfig
    samples: int
    """Trained forward passes of one sample, for one optimizer step over all processes."""
    micro_samples: int | None
    """Of them in one forward pass of one process; None: all of its share."""
    drawn: int = 0
    """Forward passes of one sample without a gradient, for one optimizer step."""
    sources: int = 0
    """Pictures that a prompt edits; their tokens are in ``tokens``."""

    @property
    def recompute(self) -> str:
        return self.config.recompute

    @property
    def trained(self) -> int:
        lora = self.config.lora
        return self.shape.trained_parameters(None if lora is None else lora.rank)

    @property
    def element_size(self) -> int:
        """Of activations: 2 in bfloat16, by autocast or by the weights' own type."""
        config = self.config
        halves = config.mixed_precision == "bf16" or config.optimizer.weights != "float32"
        return 2 if halves or (config.lora and config.dtype == "bfloat16") else 4

    @property
    def reference(self) -> Literal["cached", "live", "streamed"]:
        """Where a reference is during the steps; ``cached``: nowhere."""
        config = self.config
        if isinstance(config, DPOConfig):
            return config.reference.mode
        is_live = isinstance(config, GRPOConfig) and config.objective.needs_reference
        return "live" if is_live else "cached"


def workload_of(
    config: SFTConfig | DPOConfig | GRPOConfig,
    text_tokens: int = 512,
    size: tuple[int, int] | None = None,
    sources: int | None = None,
) -> Workload:
    """Read a configuration.

    Args:
        text_tokens: of a prompt; what it pads to, unless the blocks are joint.
        size: height and width in pixels where the configuration names none.
        sources: pictures that each prompt edits; None: one for a model that edits.

    Raises:
        ValueError: no image size is known, or the model's shape is not; the model does not take so
            many sources.
    """
    shape = ModelShape.of(resolve_model(config.model))
    if sources is None:
        sources = int(shape.max_sources != 0)
    micro = config.micro_batch_size
    if isinstance(config, GRPOConfig):
        rollout, updates = config.rollout, config.updates_per_rollout
        images = config.prompts_per_step * config.group_size
        drawing = float(rollout.num_steps)
        if rollout.shared_noise:  # what one image draws of the steps before the window, on average
            first, end = rollout.window_bounds
            before = first + (end - first - rollout.window) / 2
            drawing -= before * (1 - 1 / config.group_size)
        passes = drawing * (2 if rollout.guidance_scale > 1 else 1)
        objective = config.objective
        trained = rollout.window if objective.trains_steps else objective.draws
        if not objective.trains_steps or config.recompute_log_probs or rollout.guidance_scale > 1:
            passes += 0 if objective.algorithm == "online_dpo" else trained
        samples = images * trained // updates
        if objective.algorithm == "online_dpo":
            samples = 2 * config.prompts_per_step * trained
        tokens = shape.tokens(
            rollout.height, rollout.width, text_tokens, sources, rollout.source_area
        )
        return Workload(
            "grpo",
            shape,
            tokens,
            config,
            samples,
            micro,
            drawn=round(images * passes / updates),
            sources=sources,
        )
    data = config.data
    if data.height is not None and data.width is not None:
        size = (data.height, data.width)
    if size is None:
        raise ValueError("data.height and data.width are null: give --size, in pixels")
    tokens = shape.tokens(*size, text_tokens, sources, data.source_area)
    factor = 2 if isinstance(config, DPOConfig) else 1  # the two images of a pair
    return Workload(
        "dpo" if factor == 2 else "sft",
        shape,
        tokens,
        config,
        factor * config.batch_size,
        None if micro is None else factor * micro,
        sources=sources,
    )
