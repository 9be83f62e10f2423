"""Settings of the optimizer: its rule, its numbers, and the learning rate."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from align.data_config import Fraction
from annotate.settings import Config

__all__ = ["EMAConfig", "OptimizerConfig", "Precision"]


def _yaml_no(value: Any) -> Any:
    """YAML reads a bare ``no`` as false."""
    return "no" if value is False else value


Precision = Annotated[Literal["no", "bf16"], BeforeValidator(_yaml_no)]


class OptimizerConfig(Config):
    """AdamW or a smaller rule, and its learning-rate schedule."""

    type: Literal["adamw", "adam8bit", "adafactor"] = "adamw"
    """``adamw``: float32 moments, 8 bytes a parameter. ``adam8bit``: block-wise 8-bit moments, 2
    bytes. ``adafactor``: a factored second moment and no first, next to nothing."""
    weights: Literal["float32", "split", "stochastic"] = "float32"
    """How trained weights are kept. ``float32``: 4 bytes. ``split``: bfloat16 weights and the other
    16 bits beside them, exactly a float32 master in 4 bytes, of which the model computes with 2.
    ``stochastic``: bfloat16 alone, rounded at random, 2 bytes."""
    gradient_release: bool = False
    """Step each parameter as soon as its gradient is there, and free the gradient: no second copy
    of the model in memory. One process, no accumulation, no clipping of the global norm."""
    lr: float = Field(default=1e-5, gt=0)
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay of the moments; Adafactor has a schedule of its own."""
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: hold, or fall to zero at ``max_steps``."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the rate rises linearly from ``lr / warmup_steps``; 0: none."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Clips the gradient's global norm; 0: no clipping."""

    @model_validator(mode="after")
    def _rule_has_what_it_needs(self) -> OptimizerConfig:
        if self.type == "adamw" and (self.weights != "float32" or self.gradient_release):
            raise ValueError(
                f"adamw takes weights float32 and no gradient_release, got {self.weights} and "
                f"{self.gradient_release}; choose type adam8bit or adafactor"
            )
        if self.gradient_release and self.max_grad_norm:
            raise ValueError(
                "gradient_release frees each gradient before the global norm is known: set "
                f"max_grad_norm to 0, got {self.max_grad_norm}"
            )
        return self


class EMAConfig(Config):
    """Exponential moving average of the trained weights; it is what validation and export use."""

    decay: float = Field(default=0.999, gt=0, lt=1)
    warmup: bool = True
    """Decay at step n is at most ``(1 + n) / (10 + n)``, so that short runs are not dominated by
    the starting weights."""
