"""Settings of reward model training; free of torch, so that a typo answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from annotate.records import Split
from annotate.settings import Config
from rewards.encoder_config import DiffusionEncoderConfig, EncoderConfig

__all__ = ["DiffusionEncoderConfig", "HeadConfig", "Loss", "RewardTrainConfig"]

Loss = Literal["plackett_luce", "bradley_terry", "rao_kupper", "gaussian"]


class HeadConfig(Config):
    """The heads: per criterion, attention pooling over image and text tokens. Of an encoder that
    has a token for each criterion they read that token alone: ``num_layers``, ``num_heads`` and
    ``num_queries`` are then without effect."""

    width: int = Field(default=64, ge=8)
    """Token width after projection; a multiple of ``num_heads``."""
    num_layers: int = Field(default=1, ge=0)
    """Transformer layers over image and text tokens together, before the pooling."""
    num_heads: int = Field(default=4, ge=1)
    num_queries: int = Field(default=4, ge=1)
    """Learned queries per criterion."""
    num_members: int = Field(default=2, ge=1)
    """Independently initialised heads whose scores are averaged; their spread is the score's
    sigma."""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _check_width(self) -> HeadConfig:
        if self.width % self.num_heads:
            raise ValueError(
                f"width must be a multiple of num_heads, got {self.width} and {self.num_heads}"
            )
        return self


class RewardTrainConfig(Config):
    """One run of ``winsome reward train``."""

    snapshot: Path
    """Folder of a snapshot."""
    images: str | None = None
    """Folder or fsspec URL of the images, for a snapshot that was cut without them."""
    base: str | None = None
    """What the encoder is made of, a folder or a hub id: for ``diffusion`` a diffusers pipeline, or
    ``tiny``, the one that ships; for ``qwen_vl`` a Qwen2.5-VL, or a pipeline whose text encoder is
    one; for ``clip`` a CLIP or SigLIP; for ``pixels`` nothing."""
    output_dir: Path
    """Run folder: the model, ``report.json``, this configuration, checkpoints."""
    cache_dir: Path | None = None
    """Folder of the feature cache, which runs may share; None keeps it in the run folder."""
    device: str = "cpu"
    """Where the base and the heads run, e.g. ``cuda:0``. Each process of a launch has its own."""

    encoder: EncoderConfig = DiffusionEncoderConfig()
    head: HeadConfig = HeadConfig()

    held_out: Split = Split.TEST
    """The split on which the report measures. Training never sees it; neither does the choice of
    the epoch nor the temperature, which use the validation split, or ``development_fraction`` of
    the training prompts when the validation split is itself held out."""
    older: Path | None = None
    """Folder of an older snapshot of the same studio: split by time. Learned from are its picks
    alone, held out is what came later; see `rewards.by_time`."""
    development_fraction: float = Field(default=0.15, gt=0.0, lt=1.0)
    """Share of the training prompts set aside when ``held_out`` is ``validation``."""
    ties: Literal["uniform", "drop"] = "uniform"
    """What an "all equal" teaches: equal scores, or nothing."""

    train_share: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of the training prompts that are learned from, for a learning curve: a smaller share
    lies within each larger one."""
    leave_out: tuple[str, ...] = ()
    """Annotators, by pseudonym, whose picks are not learned from; the report measures each
    designer's picks by themselves."""
    check_alike: Literal["text", "text_and_images", "off"] = "text"
    """Refuse splits that cut prompts alike by text, or by text and images; ``off`` refuses equal
    prompts alone. Prompts made from a specification are alike where that is the same."""

    loss: Loss = "plackett_luce"
    """The likelihood of a pick. ``plackett_luce``: best among all, then worst among the others.
    The rest are means over the pairs that a pick implies: ``bradley_terry``; ``rao_kupper``, whose
    ties have a threshold learned for each question; ``gaussian``, where every score has a variance
    of its own."""
    reasons: bool = False
    """Let the reasons of a pick for "overall" teach the criteria that they name: "won by detail"
    is a best on detail, "lost by detail" a worst."""
    all_bad: Literal["ignore", "anchor"] = "ignore"
    """What an "all bad" teaches: nothing, or that all its candidates stand below what was picked as
    best on that question in the prompt's other tasks, or below 0 where nothing was."""
    annotator_weights: Literal["equal", "reliability"] = "equal"
    """Weight of a pick: 1, or its annotator's precision in choosing (1 / the temperature that the
    training picks of several annotators imply), over the mean of all picks."""

    epochs: int = Field(default=30, ge=1)
    """At most; training stops ``patience`` epochs after the best negative log likelihood."""
    patience: int = Field(default=5, ge=1)
    """In epochs."""
    batch_size: int = Field(default=8, ge=1)
    """Candidate sets per step, over all processes; one set brings all picks of its tasks."""
    learning_rate: float = Field(default=1e-3, gt=0.0)
    weight_decay: float = Field(default=0.05, ge=0.0)
    warmup_fraction: float = Field(default=0.05, ge=0.0, lt=1.0)
    """Share of all steps with a rising learning rate; a cosine to zero follows."""
    centring: float = Field(default=0.01, ge=0.0)
    """Weight of the squared mean score of a comparison; 0 leaves the zero of scores free."""
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check_base(self) -> RewardTrainConfig:
        if self.encoder.needs_base != (self.base is not None):
            expected = "a folder or a hub id" if self.encoder.needs_base else "none"
            raise ValueError(
                f"base is {self.base!r}, but encoder type {self.encoder.type!r} needs {expected}"
            )
        return self

    @model_validator(mode="after")
    def _check_held_out(self) -> RewardTrainConfig:
        if self.held_out == Split.TRAIN:
            raise ValueError("held_out must be 'validation' or 'test', got 'train'")
        if self.older is not None and self.held_out != Split.TEST:
            raise ValueError(
                f"with older, held_out must be 'test': what came later; got {self.held_out.value!r}"
            )
        if self.loss == "rao_kupper" and self.ties == "drop":
            raise ValueError("loss 'rao_kupper' learns from ties, but ties is 'drop'")
        return self
