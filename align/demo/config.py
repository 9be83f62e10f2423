"""Settings of ``winsome demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from annotate.settings import Config

Part = Literal["sft", "reward", "dpo", "grpo"]


class DemoConfig(Config):
    """The circle's sizes; how each part trains is in the files of configs/tiny."""

    folder: Path = Path("runs/demo")
    """Receives everything: studio, snapshot, runs and report."""
    model: str = "tiny"
    """The base: a pipeline folder that draws posters, or ``tiny``."""
    seed: int = Field(default=0, ge=0)
    """Of specifications, noise, designers and training."""
    train_prompts: int = Field(ge=10)
    validation_prompts: int = Field(ge=10)
    """Prompts of the reward model's held-out accuracy; settings may be chosen on them."""
    test_prompts: int = Field(ge=10)
    """Prompts of the final evaluation; drawn from specifications that nothing else sees."""
    test_images: int = Field(ge=1)
    """Images of each test prompt and model, on the same noise for every model."""
    candidates: int = Field(ge=2, le=9)
    """Images that a designer chooses among."""
    references: int = Field(ge=20)
    """Reference posters for SFT, drawn at all qualities; those scored 4.8 and more are used."""
    threads: int = Field(default=1, ge=1)
    """Of torch. A second one shortens the demo and costs more CPU time."""
    open_tasks: int = Field(ge=0)
    """Tasks left for a person to label."""
    num_steps: int = Field(ge=1)
    """Sampling steps of candidates and of the evaluation."""
    settings: dict[Part, tuple[str, ...]] = Field(default_factory=dict)
    """Overrides ``dotted.key=value`` of the files in configs/tiny that each part trains by."""
