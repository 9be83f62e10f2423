"""Settings of every alignment run. Torch-free, so that ``--help`` and a typo answer at once.

Units: steps are optimizer steps; batch sizes count samples (DPO: pairs) over all processes; paths
are relative to the working directory. A field's text says what 0 or null means.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from align.data_config import (
    Fraction,
    JsonlPairsConfig,
    NonNegative,
    PairsConfig,
    Positive,
    ResolutionConfig,
    SFTDataConfig,
    Side,
    SnapshotPairsConfig,
    SourceConfig,
)
from align.objective_config import (
    AutoBetaConfig,
    DPOObjectiveConfig,
    GRPOObjectiveConfig,
    ReferenceConfig,
    RolloutConfig,
    TimestepConfig,
)
from align.optim_config import EMAConfig, OptimizerConfig, Precision
from align.watch_config import DivergenceConfig, SamplesConfig, ValidationConfig
from annotate.records import Split
from annotate.settings import Config, ConfigError, dump_config, flatten_config, load_config
from rewards.scorers.config import ScorerConfig

__all__ = [
    "AutoBetaConfig",
    "Config",
    "ConfigError",
    "DPOConfig",
    "DPOObjectiveConfig",
    "DrawConfig",
    "EvalConfig",
    "EvaluatedModelConfig",
    "GRPOConfig",
    "GRPOObjectiveConfig",
    "GenerateConfig",
    "JsonlPairsConfig",
    "OptimizerConfig",
    "PairsConfig",
    "ReferenceConfig",
    "ResolutionConfig",
    "RolloutConfig",
    "SFTConfig",
    "SFTDataConfig",
    "SnapshotPairsConfig",
    "TimestepConfig",
    "TrainConfig",
    "dump_config",
    "flatten_config",
    "load_config",
    "resolve_model",
]


def resolve_model(model: str) -> str:
    """A pipeline folder or Hub id to load; the word ``tiny`` is the pipeline that ships."""
    if model != "tiny":
        return model
    from align import tiny_pipeline

    return str(tiny_pipeline())


class LoraConfig(Config):
    """Low-rank adapters on the transformer's linear layers (peft)."""

    rank: Positive = 16
    alpha: float | None = Field(default=None, gt=0)
    """Scale is ``alpha / rank``; null: alpha equals rank."""
    dropout: Fraction = 0.0
    target_modules: tuple[str, ...] = ()
    """Names of linear layers; empty: the adapter's own list."""


class TrainConfig(Config):
    """What the three trainers share."""

    model: str
    """Diffusers pipeline folder, Hub id, or ``tiny``: the pipeline that ships with Winsome."""
    output_dir: Path
    """The run folder: configuration, run.json, metrics, checkpoints and ``final/``."""
    seed: NonNegative = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Storage type of frozen weights; ``optimizer.weights``, or DeepSpeed, says that of others."""
    mixed_precision: Precision = "no"
    """``bf16``: matrix products in bfloat16 (autocast), on CPU and GPU."""
    lora: LoraConfig | None = None
    """null: all parameters of the transformer are trained."""
    quantize: Literal["fp8", "nf4"] | None = None
    """Linear layers of a LoRA's frozen base in 8 or 4 bits; null: in ``dtype``."""
    gradient_checkpointing: Literal["selective"] | bool = False
    """What the backward pass computes again. true: whole blocks, a third more FLOPs; ``selective``:
    all but matrix products and attention, at no extra FLOPs and 0.4 of the memory of false."""
    blocks: Literal["stock", "joint", "fused"] = "stock"
    """``joint``: real-valued rotary embedding and no padding; the same numbers within rounding.
    ``fused``: the same in Triton kernels. ``stock``: diffusers' own."""
    compile: bool = False
    """``torch.compile`` each of the joint blocks."""
    shard_modulation: bool = False
    """Under FSDP2, leave each process its own rows of the modulation layers, a third of the model,
    and exchange their inputs and outputs instead of gathering weights. All parameters trained."""
    attention: str | None = None
    """A backend of diffusers' dispatcher for joint blocks; null: what ``winsome doctor`` tells."""
    deterministic: bool = False
    """Use only deterministic kernels, so that a resumed run is exact on a GPU too. A CPU with fixed
    threads is exact without it."""
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EMAConfig | None = None
    max_steps: Positive = 100
    micro_batch_size: Positive | None = None
    """Samples (DPO: pairs; GRPO: trained sampling steps of an image) in one forward pass of one
    process; the rest of a step accumulates. null: all of its share at once."""
    save_every: NonNegative = 50
    """Steps between checkpoints; 0: none."""
    keep_checkpoints: Positive = 2
    """How many of the newest checkpoints stay."""
    divergence: DivergenceConfig = DivergenceConfig()
    """When gradients that have grown stop the run."""
    samples: SamplesConfig | None = None
    """What is drawn while the run trains, and what stops it early; null: nothing."""
    batch_tolerance: float = Field(default=0.02, ge=0)
    """Preflight: bound on the change of a sample's velocity with its batch, as a part of its size;
    bfloat16 kernels give about a hundredth."""
    cache_dir: Path | None = None
    """Encoded images and prompts, shared between runs; null: ``cache/`` in the run folder."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Trackers known to accelerate, beside the metrics.jsonl that is always written."""
    progress: bool = True
    """Show a progress bar where standard error is a terminal."""

    @property
    def recompute(self) -> Literal["none", "selective", "full"]:
        """What `align.mmdit.activations` calls the choice of ``gradient_checkpointing``."""
        if self.gradient_checkpointing == "selective":
            return "selective"
        return "full" if self.gradient_checkpointing else "none"

    @model_validator(mode="after")
    def _joint_where_asked(self) -> TrainConfig:
        if self.blocks == "stock" and (self.compile or self.attention):
            raise ValueError(
                f"compile {self.compile} and attention {self.attention!r} are for joint blocks: "
                "set blocks to joint"
            )
        return self

    @model_validator(mode="after")
    def _fits_the_lora(self) -> TrainConfig:
        if self.lora is None and self.quantize is not None:
            raise ValueError(
                f"quantize {self.quantize!r} is for the frozen base of a LoRA, and lora is null"
            )
        if self.shard_modulation and (self.lora is not None or self.compile):
            raise ValueError(
                "shard_modulation goes with all parameters trained and blocks that are not "
                f"compiled, got lora {self.lora} and compile {self.compile}"
            )
        if self.lora is not None and self.optimizer.weights != "float32":
            raise ValueError(
                f"a LoRA's weights are float32: optimizer.weights is {self.optimizer.weights!r}"
            )
        return self


class OfflineConfig(TrainConfig):
    """What trainers on stored data share."""

    batch_size: Positive = 32
    """Samples (DPO: pairs) in one optimizer step over all processes."""


class SFTConfig(OfflineConfig):
    """``winsome sft``: flow matching on good images."""

    data: SFTDataConfig
    timesteps: TimestepConfig = TimestepConfig()
    validation: ValidationConfig = ValidationConfig()


class DPOConfig(OfflineConfig):
    """``winsome dpo``: Diffusion-DPO on pairs of images."""

    data: PairsConfig
    objective: DPOObjectiveConfig = DPOObjectiveConfig()
    reference: ReferenceConfig = ReferenceConfig()
    noise: Literal["fresh", "prior"] = "fresh"
    """``fresh``: a noise drawn for each pair, shared by its images. ``prior``: the noise that each
    image was generated from, which its record names (PNAPO, arXiv 2605.09433)."""
    timesteps: TimestepConfig = TimestepConfig()
    validation: ValidationConfig = ValidationConfig(every=0)

    @model_validator(mode="after")
    def _settings_fit_the_data_and_model(self) -> DPOConfig:
        if self.reference.mode == "streamed" and self.lora is not None:
            raise ValueError(
                "reference.mode 'streamed' is for whole models: a LoRA's reference is its own base "
                "with the adapter off; choose 'cached' or 'live'"
            )
        if self.noise == "prior" and self.objective.loss_type in ("kto", "plackett_luce"):
            raise ValueError(
                f"noise 'prior' goes with pairs, got loss_type {self.objective.loss_type!r}"
            )
        return self


class RewardModelConfig(Config):
    """A preference model trained by ``winsome reward train``, behind its gate."""

    type: Literal["reward_model"] = "reward_model"
    path: Path
    """Folder of the reward model, with its report.json; or a YAML file of a reward mix, which has
    its own gates and weights (docs/rewards.md)."""
    base: str | None = None
    """What the reward model was made of, e.g. a pipeline; null: as named in training."""
    min_accuracy: float = Field(default=0.6, ge=0, le=1)
    """The run is refused if the report's held-out accuracy is lower."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Weight of each criterion, e.g. ``{aesthetics: 1, detail: 2}``; empty: the overall score."""
    sees: Literal["latents", "images"] = "latents"
    """What the reward model is given. Latents spare the decoder; but a policy can learn to put into
    them what the decoder drops, which no annotator saw. Images are decoded and encoded anew."""


class GRPOConfig(TrainConfig):
    """``winsome grpo``: Flow-GRPO against a reward."""

    prompts: Path
    """Prompts: text lines, or JSONL of `annotate.records.Prompt`, or a snapshot folder."""
    splits: tuple[Split, ...] = (Split.TRAIN,)
    """Only prompts of these splits, where the file names them."""
    reward: RewardModelConfig | None = None
    """null where a scorer is passed in Python."""
    rollout: RolloutConfig = RolloutConfig()
    objective: GRPOObjectiveConfig = GRPOObjectiveConfig()
    timesteps: TimestepConfig = TimestepConfig()
    """Noise levels of nft, awm and online_dpo."""
    group_size: Annotated[int, Field(ge=2)] = 8
    """Images of one prompt, whose rewards are compared."""
    prompts_per_step: Positive = 8
    """Prompts of one rollout."""
    updates_per_rollout: Positive = 1
    """Optimizer steps on one rollout; ``max_steps`` counts optimizer steps."""
    recompute_log_probs: bool = False
    """Compute the old log-probabilities in the batches that train, at one more forward pass, where
    a batch of another size gives other numbers (some GPU kernels). Always so with guidance."""
    contact_sheet_every: Annotated[int, Field(ge=0)] = 0
    """Rollouts between contact sheets for ``winsome contact``; 0: only when a monitor's alarm stops
    the run, of all its prompts."""
    contact_sheet_prompts: Positive = 8
    """Prompts of a sheet that is due: those with the highest rewards."""
    ratio_tolerance: float = Field(default=1e-4, ge=0)
    """Preflight: bound on the log-ratio of a replayed step, in nats; 0: exactly the same number,
    which it is on a CPU in batches of the same size."""

    @model_validator(mode="after")
    def _whole_rollouts(self) -> GRPOConfig:
        updates = self.updates_per_rollout
        for name in ("max_steps", "save_every"):
            if getattr(self, name) % updates:
                raise ValueError(
                    f"{name} must be a multiple of updates_per_rollout {updates}, "
                    f"got {getattr(self, name)}"
                )
        if self.group_size % updates:
            raise ValueError(
                f"group_size must be a multiple of updates_per_rollout {updates}, "
                f"got {self.group_size}"
            )
        if self.lora is not None and self.lora.dropout:
            raise ValueError(
                f"lora.dropout must be 0 in GRPO, got {self.lora.dropout}: a replayed step would "
                "not have the probability it was drawn with"
            )
        return self

    @model_validator(mode="after")
    def _settings_fit_the_algorithm(self) -> GRPOConfig:
        objective = self.objective
        if objective.old_policy == "average" and (self.ema is None or objective.trains_steps):
            raise ValueError(
                f"old_policy 'average' needs ema and nft or awm, got ema {self.ema} and "
                f"{objective.algorithm}: a step's probability is that of the weights that train"
            )
        if objective.advantage == "gdpo" and not (self.reward and self.reward.weights):
            raise ValueError("advantage 'gdpo' needs reward.weights, which name its rewards")
        if self.rollout.modulation_tables and (self.compile or not objective.trains_steps):
            raise ValueError(
                "rollout.modulation_tables goes with blocks that are not compiled and an algorithm "
                f"that trains steps, got compile {self.compile} and {objective.algorithm}"
            )
        if self.rollout.shared_noise and not objective.trains_steps:
            raise ValueError(
                "rollout.shared_noise makes the images of a group alike where "
                f"{objective.algorithm} draws without stochastic steps: set it to false"
            )
        if objective.algorithm == "online_dpo" and self.updates_per_rollout > 1:
            raise ValueError(
                "online_dpo has one pair a group and takes one update a rollout, got "
                f"updates_per_rollout {self.updates_per_rollout}"
            )
        return self


class DrawConfig(SourceConfig):
    """How images are drawn for prompts."""

    prompts: Path
    """Text lines, or JSONL of `annotate.records.Prompt`, or a snapshot folder."""
    splits: tuple[Split, ...] = tuple(Split)
    output_dir: Path
    """Receives images/, prompts.jsonl and candidates.jsonl."""
    candidates: Positive = 5
    """Images for each prompt."""
    seed: NonNegative = 0
    height: Side = 128
    width: Side = 128
    num_steps: Positive = 20
    guidance_scale: float = Field(default=1.0, ge=1)
    """True classifier-free guidance; 1: none, at half the cost."""
    negative_prompt: str = " "
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_size: Positive = 32
    """Images drawn at once by one process. Another size changes an image by rounding alone: by
    1/255 in a few pixels at most."""
    processes: Positive = 1
    """Worker processes on this machine, when not under ``accelerate launch``."""
    progress: bool = True


class GenerateConfig(DrawConfig):
    """``winsome generate``: candidates for prompts."""

    model: str = "tiny"
    """Diffusers pipeline folder, Hub id, or ``tiny``."""
    lora: Path | None = None
    """Folder of a LoRA exported by a run."""


class EvaluatedModelConfig(Config):
    """One of the models that ``winsome eval`` puts side by side."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Its name in the report, and of its folder."""
    model: str = "tiny"
    """Diffusers pipeline folder, Hub id, or ``tiny``."""
    lora: Path | None = None
    """Folder of a LoRA exported by a run."""


class EvalConfig(DrawConfig):
    """``winsome eval``: models side by side on the same prompts and noise."""

    models: tuple[EvaluatedModelConfig, ...] = Field(min_length=1)
    """The first is what the others are compared with."""
    scorers: tuple[ScorerConfig, ...] = ()
    """What measures the images."""
    mix: Path | None = None
    """A reward mix: its ``evaluation`` scorers measure too, and the reward itself is told beside
    them, as what models may have been trained on."""
    shown: Positive = 12
    """Prompts on the page, one row each."""

    @model_validator(mode="after")
    def _something_to_compare(self) -> EvalConfig:
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise ValueError(f"the names of models must differ, got {names}")
        if not self.scorers and self.mix is None:
            raise ValueError("give scorers or mix: nothing would be measured")
        return self
