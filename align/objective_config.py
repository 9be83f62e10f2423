"""Settings of the objectives: what is drawn, and which loss is made of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from align.data_config import NonNegative, Positive, Side, SourceConfig
from annotate.settings import Config

__all__ = [
    "AutoBetaConfig",
    "DPOObjectiveConfig",
    "GRPOObjectiveConfig",
    "ReferenceConfig",
    "RolloutConfig",
    "TimestepConfig",
]


class TimestepConfig(Config):
    """How noise levels are drawn: logit-normal, then shifted for the image's size."""

    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)
    shift: bool = True
    """Apply the scheduler's resolution-dependent shift."""


class ReferenceConfig(Config):
    """Where the reference model's errors come from."""

    mode: Literal["cached", "live", "streamed"] = "cached"
    """``cached``: drawn up front as two numbers a pair and draw, so that no reference stays in
    memory. ``live``: computed at each step (adapters off, or a frozen copy). ``streamed``: so too,
    by a copy in host memory whose blocks pass over the card one after the other."""
    draws: Positive = 4
    """Cached mode: (noise level, noise) draws for each pair, used in turn by its epochs."""
    tolerance: float = Field(default=0.5, ge=0)
    """Preflight of cached mode: bound on an implicit reward before the first step, in nats; 0 is
    right, and rounding in bfloat16 times a large beta comes to tenths."""


class AutoBetaConfig(Config):
    """A beta that follows the margins; see `align.objectives.feedback`."""

    target: float = Field(default=0.2, gt=0, lt=0.5)
    """Wanted factor of the gradient: 1/2 where nothing is learnt, 0 where all is."""
    lowest: float = Field(default=100.0, gt=0)
    """Bounds on beta, on the mean scale."""
    highest: float = Field(default=20000.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> AutoBetaConfig:
        if self.lowest > self.highest:
            raise ValueError(f"lowest {self.lowest} is above highest {self.highest}")
        return self


class DPOObjectiveConfig(Config):
    """Diffusion-DPO and its relatives; see docs/objectives.md."""

    loss_type: Literal["sigmoid", "hinge", "ipo", "plackett_luce", "kto"] = "sigmoid"
    """``sigmoid``, ``hinge`` and ``ipo`` learn from pairs, ``plackett_luce`` from all candidates
    of a pick, ``kto`` from single images: the best, the worst, and all of "all bad"."""
    beta: float | None = Field(default=None, gt=0)
    """Strength, for errors averaged over the latent; null: 2000, or from ``beta_sum``."""
    beta_sum: float | None = Field(default=None, gt=0)
    """The same for errors summed over the elements; instead of ``beta``."""
    auto_beta: AutoBetaConfig | None = None
    """Adapt beta to the margins, from ``beta`` on; null: it stays."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Part of the pairs taken to be labelled the wrong way round (cDPO)."""
    tie_threshold: float = Field(default=0.0, ge=0)
    """Learn from "all equal" too: half the width, in nats, of the margins that count as equal. 0:
    such picks are left out."""
    rejected_weight: float = Field(default=1.0, gt=0, le=1)
    """Weight of the rejected image's reward in the margin; below 1 the chosen counts for more."""
    anchor_weight: float = Field(default=0.0, ge=0)
    """Weight of the hinge that keeps the chosen image as likely as under the reference; 0: none."""
    anchor_tolerance: float = Field(default=0.0, ge=0)
    """Nats that the chosen's implicit reward may fall before the hinge pulls. Every run starts at
    its corner: with stored reference errors, rounding alone would switch it on for half the pairs.
    0: from the reference on, where its gradient is 0."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Weight of the chosen image's own flow-matching error; 0: none."""
    desirable_weight: float = Field(default=1.0, gt=0)
    """KTO: weight of liked images."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """KTO: weight of disliked images."""
    chosen_alarm: float = Field(default=0.05, ge=0)
    """Warn, and say so in run.json, when the chosen images' error has risen by this part of the
    reference's, as a running mean; 0: no alarm."""

    @model_validator(mode="after")
    def _one_beta(self) -> DPOObjectiveConfig:
        if self.beta is not None and self.beta_sum is not None:
            raise ValueError(f"give beta or beta_sum, got {self.beta} and {self.beta_sum}")
        return self

    @model_validator(mode="after")
    def _settings_fit_the_loss(self) -> DPOObjectiveConfig:
        read = _READ_BY_LOSS[self.loss_type]
        for name in sorted(set().union(*_READ_BY_LOSS.values()) - read):
            if getattr(self, name) != type(self).model_fields[name].default:
                losses = [loss for loss, names in _READ_BY_LOSS.items() if name in names]
                raise ValueError(
                    f"{name} is {getattr(self, name)} but loss_type {self.loss_type!r} does not "
                    f"read it; {', '.join(losses)} do"
                )
        return self


_PAIR_SETTINGS = {
    "auto_beta",
    "label_smoothing",
    "rejected_weight",
    "anchor_weight",
    "anchor_tolerance",
    "sft_weight",
}


_READ_BY_LOSS: dict[str, set[str]] = {
    "sigmoid": {*_PAIR_SETTINGS, "tie_threshold"},
    "hinge": _PAIR_SETTINGS,
    "ipo": _PAIR_SETTINGS,
    "plackett_luce": {"auto_beta", "anchor_weight", "anchor_tolerance", "sft_weight"},
    "kto": {"desirable_weight", "undesirable_weight"},
}
"""Settings that some losses have no use for: a setting that would do nothing is refused."""


class RolloutConfig(SourceConfig):
    """How images are drawn during GRPO."""

    height: Side = 128
    width: Side = 128
    num_steps: Positive = 10
    """Sampling steps."""
    window: Positive = 2
    """Consecutive stochastic steps, which are the trained ones; the other steps are an ODE."""
    window_range: tuple[NonNegative, NonNegative] | None = None
    """First and past-the-last step among which the window moves; null: the first half. A window of
    all steps, in the range of all, trains the full trajectory."""
    window_order: Literal["random", "progressive"] = "random"
    """``random``: a new place for each rollout. ``progressive``: from noise towards the image, and
    again from the start (MixGRPO)."""
    window_rollouts: Positive = 4
    """Progressive order: rollouts for which the window stays before it moves on by one step."""
    sde: Literal["flow", "cps", "dance"] = "flow"
    """How the stochastic steps draw; see `align.sde`."""
    noise_level: float = Field(default=0.7, gt=0)
    """flow: ``a`` in the standard deviation ``a * sqrt(sigma / (1 - sigma))`` of the stochastic
    steps; dance: the deviation itself; cps: ``a`` in ``sigma_next * sin(a * pi / 2)``."""
    guidance_scale: float = Field(default=1.0, ge=1)
    """Classifier-free guidance while drawing; the policy trains without. 1: none."""
    guidance_in_one_pass: bool = False
    """Compute the two conditionings of guidance as one batch of twice the size, not one after the
    other: faster where a card waits for launches, at twice the activations."""
    shared_noise: bool = False
    """All images of a group begin from one noise, and differ by the window's steps alone: the steps
    before the window are computed once for the group. Cheaper, at less variety within a group."""
    modulation_tables: bool = False
    """Compute a step's shift, scale and gate once for all batches of a rollout and both passes of
    guidance, to the same bits: a third of the weights is then read once a step. Not with compiled
    blocks; of algorithms that train steps."""
    replica: bool = False
    """Under ZeRO-3 and FSDP2: gather the weights once a rollout, in the dtype that computes, and
    draw with them whole; they must fit beside the shards. false: each forward pass gathers them."""
    batch_size: Positive = 64
    """Images drawn at once by one process."""

    @model_validator(mode="after")
    def _window_fits(self) -> RolloutConfig:
        first, end = self.window_bounds
        if not first < end <= self.num_steps or end - first < self.window:
            raise ValueError(
                f"a window of {self.window} steps does not fit into steps {first} to {end} of "
                f"{self.num_steps}"
            )
        if self.sde == "cps" and self.noise_level > 1:
            raise ValueError(f"noise_level of cps must be at most 1, got {self.noise_level}")
        if self.sde == "cps" and end == self.num_steps:
            raise ValueError(
                f"the last step of cps draws nothing and cannot be trained: window_range must end "
                f"at {self.num_steps - 1}, got {end}"
            )
        return self

    @property
    def window_bounds(self) -> tuple[int, int]:
        """First and past-the-last step that may be stochastic."""
        return self.window_range or (0, max(self.window, self.num_steps // 2))


class GRPOObjectiveConfig(Config):
    """Flow-GRPO and its siblings; see docs/objectives.md. Nats are of one sampling step of an
    image."""

    algorithm: Literal["flow_grpo", "grpo_guard", "flow_dppo", "nft", "awm", "online_dpo"] = (
        "flow_grpo"
    )
    """The first three train the window's stochastic steps; ``nft`` and ``awm`` train on the drawn
    images, ``online_dpo`` on the best and the worst of each group, and none of them needs an
    SDE."""
    clip_range: float = Field(default=1.0, gt=0)
    """Bound on a step's log-ratio, in nats; flow_dppo: on its divergence."""
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL to the reference, per nat; nft and awm: of the squared distance to its
    velocity; 0: none, and no reference is needed. online_dpo: not read."""
    advantage_clip: float = Field(default=5.0, gt=0)
    """Bound on an advantage, in standard deviations of its group."""
    advantage: Literal["prompt", "global", "gdpo"] = "prompt"
    """What rewards are divided by, once their group's mean is off: the group's deviation, that of
    the whole step, or for each of ``reward.weights`` its own group's deviation (GDPO)."""
    min_reward_std: float = Field(default=1e-4, gt=0)
    """Groups whose rewards deviate less are dropped, in units of the reward."""
    min_reward_range: float = Field(default=0.0, ge=0)
    """Groups whose best and worst lie closer are dropped, in units of the reward; 0: none."""
    draws: Positive = 2
    """nft, awm, online_dpo: noises and noise levels for each image or pair of a rollout."""
    strength: float = Field(default=1.0, gt=0)
    """nft: how far its two policies lie from the one that drew."""
    old_policy: Literal["current", "average"] = "current"
    """nft, awm: who draws: the weights as they are, or the moving average ``ema``."""
    weighting: Literal["uniform", "sigma"] = "uniform"
    """awm: weight of a noise level in the log-likelihood."""
    dpo: DPOObjectiveConfig = DPOObjectiveConfig()
    """online_dpo: the loss of its pairs."""

    @property
    def trains_steps(self) -> bool:
        """Whether the stochastic steps are trained, and not the drawn images."""
        return self.algorithm in ("flow_grpo", "grpo_guard", "flow_dppo")

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0 or self.algorithm == "online_dpo"

    @model_validator(mode="after")
    def _pairs(self) -> GRPOObjectiveConfig:
        if self.dpo.loss_type in ("kto", "plackett_luce") or self.dpo.auto_beta is not None:
            raise ValueError("dpo of online_dpo takes a loss of pairs with a fixed beta")
        if self.dpo.tie_threshold:
            raise ValueError(
                f"dpo.tie_threshold is {self.dpo.tie_threshold}, and online_dpo has no ties: "
                "groups of equal rewards are dropped (min_reward_std)"
            )
        return self
