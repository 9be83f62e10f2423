"""Which scorers make a reward, and which are served; free of torch, as every configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, model_validator

from annotate.settings import Config

__all__ = [
    "AestheticScorerConfig",
    "ClipScoreConfig",
    "GateConfig",
    "HPSConfig",
    "JudgeScorerConfig",
    "MonitorConfig",
    "PartConfig",
    "PickScoreConfig",
    "PreferenceScorerConfig",
    "RemoteScorerConfig",
    "RewardMixConfig",
    "RewardServerConfig",
    "RubricConfig",
    "ScorerConfig",
    "TextScorerConfig",
]

Statistic = Literal[
    "saturation", "contrast", "edge_density", "colour_entropy", "grid_8", "grid_16", "repetition"
]
"""What `rewards.monitors.MAX_DRIFT` limits."""


class PreferenceScorerConfig(Config):
    """A reward model that ``winsome reward train`` wrote."""

    type: Literal["preference"]
    path: Path
    """Its folder."""
    base: str | None = None
    """Pipeline whose first blocks it reads; null: as named when it was trained."""
    device: str = "cpu"
    min_accuracy: float = Field(default=0.6, ge=0, le=1)
    """It is refused if its report's held-out accuracy is lower."""


class TextScorerConfig(Config):
    """Whether the image shows the texts asked for; see docs/rewards.md."""

    type: Literal["text_rendering"]
    engine: Literal["ppocr_v6", "tesseract"] = "ppocr_v6"
    """What reads the image. Train on one, evaluate with the other."""
    precision: float = Field(default=0.5, ge=0, le=1)
    """What an image loses at most for text that nobody asked for."""
    layout: float = Field(default=0.5, ge=0, le=1)
    """What it loses at most for order, uprightness, legibility, clipping and unevenness."""
    clean_font: str | None = "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc"
    """Font of the clean renderings that tell what the engine can read; null: it reads all."""
    clean_face: int = Field(default=2, ge=0)
    """Face in that file."""


class _ClipConfig(Config):
    """What the published scorers on CLIP share."""

    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the towers; the score itself is made in float32."""
    batch_size: int = Field(default=32, ge=1)
    """Images per forward pass."""


class PickScoreConfig(_ClipConfig):
    """PickScore v1."""

    type: Literal["pickscore"]
    path: str | None = None
    """Folder of a ``CLIPModel``, or a hub id; null: ``yuvalkirstain/PickScore_v1``."""
    tokenizer: str | None = None
    """Folder or hub id; null: ``laion/CLIP-ViT-H-14-laion2B-s32B-b79K``."""


class HPSConfig(_ClipConfig):
    """HPSv2.1."""

    type: Literal["hpsv2"]
    path: str | None = None
    """``HPS_v2.1_compressed.pt`` or its folder; null: from ``xswu/HPSv2`` on the hub."""
    tokenizer: str | None = None
    """Folder or hub id; null: ``laion/CLIP-ViT-H-14-laion2B-s32B-b79K``."""
    vision_head: int = Field(default=80, ge=1)
    """Width of an attention head of the image tower, which the file does not tell."""
    text_head: int = Field(default=64, ge=1)
    """Of the text tower."""


class ClipScoreConfig(_ClipConfig):
    """CLIPScore."""

    type: Literal["clip_score"]
    path: str | None = None
    """Folder of a ``CLIPModel``, or a hub id; null: ``openai/clip-vit-base-patch32``."""
    tokenizer: str | None = None
    """Folder or hub id; null: that of the model."""
    prefix: str = "A photo depicts "
    """Put before each prompt, as the paper does."""


class AestheticScorerConfig(_ClipConfig):
    """LAION's aesthetic predictor."""

    type: Literal["laion_aesthetic"]
    path: str | None = None
    """Folder of a ``CLIPModel``, or a hub id; null: ``openai/clip-vit-large-patch14``."""
    head: str | None = None
    """File of the predictor's weights, such as ``sac+logos+ava1-l14-linearMSE.pth``; null:
    ``aesthetic-model.pth`` of ``trl-lib/ddpo-aesthetic-predictor`` on the hub."""


class RemoteScorerConfig(Config):
    """A scorer behind ``winsome reward serve``, perhaps in another environment."""

    type: Literal["remote"]
    url: str
    """E.g. ``http://127.0.0.1:8100``."""
    scorer: str | None = None
    """Its name there; null: the only one."""
    token_file: Path | None = None
    """File that holds the token; null: none is sent."""
    deadline: float = Field(default=180.0, gt=0)
    """Seconds for a batch with all its attempts."""
    attempts: int = Field(default=4, ge=1)
    backoff: float = Field(default=0.5, gt=0)
    """Seconds before the second attempt, doubled for each further one."""
    batch_size: int = Field(default=8, ge=1)
    """Images per request."""
    concurrency: int = Field(default=4, ge=1)
    """Requests under way at a time."""
    cache: Path | None = None
    """SQLite file of scores that are known already; null: they are kept in memory."""


class RubricConfig(Config):
    """What one criterion asks for, as the judge is told."""

    en: str
    zh: str
    edit_en: str = ""
    """Instead of ``en`` where the brief edits pictures; empty: ``en`` holds there too."""
    edit_zh: str = ""
    """The same of ``zh``."""


class JudgeScorerConfig(Config):
    """A vision-language model behind OpenAI's protocol, asked by a rubric for each criterion."""

    type: Literal["judge"]
    url: str
    """Of the API, e.g. ``http://127.0.0.1:8000/v1``."""
    model: str
    """As the server names it."""
    name: str = "judge"
    """Of the scorer, where a mix has several."""
    mode: Literal["pointwise", "pairwise"] = "pointwise"
    """``pointwise``: the expected rating. ``pairwise``: the mean probability of beating another
    image of the group, each pair in both orders; n images take n (n - 1) requests a criterion."""
    criteria: tuple[str, ...] = Field(default=("aesthetics", "instruction", "detail"), min_length=1)
    rubrics: dict[str, RubricConfig] = Field(default_factory=dict)
    """By criterion; beside, or instead of, those that ship."""
    language: Literal["prompt", "en", "zh"] = "prompt"
    """Of the rubric; ``prompt``: Chinese where the prompt is."""
    scale: int = Field(default=5, ge=2, le=9)
    """Ratings are 1 to this."""
    min_mass: float = Field(default=0.5, gt=0, le=1)
    """Probability that must lie on answers of the asked form; below it there is no score."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further fields of each request, e.g. ``{chat_template_kwargs: {enable_thinking: false}}``."""
    token_file: Path | None = None
    """File that holds the API key; null: none is sent."""
    deadline: float = Field(default=60.0, gt=0)
    """Seconds for a question with all its attempts."""
    attempts: int = Field(default=4, ge=1)
    backoff: float = Field(default=0.5, gt=0)
    """Seconds before the second attempt, doubled for each further one."""
    concurrency: int = Field(default=8, ge=1)
    """Questions under way at a time."""
    cache: Path | None = None
    """SQLite file of answers that are known already; null: they are kept in memory."""


ScorerConfig = Annotated[
    PreferenceScorerConfig
    | TextScorerConfig
    | PickScoreConfig
    | HPSConfig
    | ClipScoreConfig
    | AestheticScorerConfig
    | JudgeScorerConfig
    | RemoteScorerConfig,
    Field(discriminator="type"),
]


class PartConfig(Config):
    """One scorer of a mix."""

    scorer: ScorerConfig
    calibration: Path
    """Its scale, written by ``winsome reward calibrate``; a path relative to the mix's file."""
    weight: float = Field(default=1.0, ge=0)
    category_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Weight by the prompt's ``category``, e.g. ``{poster: 2, icon: 0}``; else ``weight``."""


class GateConfig(Config):
    """Where a scorer is below ``minimum``, the reward is at most ``cap``."""

    scorer: str
    """Name of a scorer of the mix."""
    minimum: float
    """On the scorer's own scale."""
    cap: float = -3.0
    """In standard deviations of the calibration set."""
    component: str | None = None
    """Read this component instead of the scorer's value."""


class MonitorConfig(Config):
    """What stops a run whose policy drifts towards what no designer asks for."""

    baseline: int = Field(default=4, ge=1)
    """Rollouts at the start that say what the base policy draws; best one pass over the prompts."""
    window: int = Field(default=3, ge=1)
    """Most rollouts that are judged together; drifts are judged over each number up to it: a grave
    one shows in one rollout, a slow one adds up."""
    num_errors: float = Field(default=3.0, ge=0)
    """Standard errors by which a drift must be beyond its limit: of few images, means differ by
    chance."""
    max_drift: dict[Statistic, PositiveFloat] = Field(default_factory=dict)
    """Of an image statistic, in standard deviations between baseline images; those not named keep
    their default."""
    max_gold_drop: float = Field(default=0.25, gt=0)
    """Of the gold scorer (the first of ``evaluation``) while the reward has risen, likewise."""
    min_prompts: int = Field(default=4, ge=1)
    """Prompts that the baseline had too, for a drift to be judged by these alone; with fewer, the
    mean of all prompts is judged."""
    min_diversity: float = Field(default=0.5, ge=0)
    """Of the distance between images of one prompt, as a share of the baseline's."""
    max_equal_groups: float = Field(default=0.9, ge=0, le=1)
    """Share of groups whose rewards are all equal."""
    max_sigma: float = Field(default=2.0, gt=0)
    """Of the scorer's own deviation, as a multiple of the baseline's."""
    stop: bool = True
    """Stop the run at an alarm; otherwise only report."""


class RewardMixConfig(Config):
    """Several scorers as one reward: what ``reward.path`` of ``winsome grpo`` may name."""

    training: tuple[PartConfig, ...] = Field(min_length=1)
    """What the policy is rewarded for."""
    evaluation: tuple[ScorerConfig, ...] = ()
    """What it is measured by and never learns from; a backbone shared with ``training`` is warned
    of."""
    rule: Literal["weighted_sum", "min", "gdpo"] = "weighted_sum"
    """How calibrated scores are made one; see `rewards.composition.CompositeScorer`."""
    gates: tuple[GateConfig, ...] = ()
    on_failure: Literal["raise", "drop_sample", "drop_group"] = "raise"
    """What is done about a sample that could not be scored."""
    max_failure_rate: float = Field(default=0.02, ge=0, lt=1)
    """Share of failed samples beyond which a run that drops them stops."""
    monitor: MonitorConfig | None = None
    """null: nothing is watched. The monitor needs images, so latents are decoded for it."""


class RewardServerConfig(Config):
    """``winsome reward serve``."""

    scorers: tuple[ScorerConfig, ...] = Field(min_length=1)
    host: str = "127.0.0.1"
    """Another address than the loopback's requires ``token_file``."""
    port: int = Field(default=8100, ge=0, le=65535)
    """0 takes any free port."""
    token_file: Path | None = None
    """File that holds the token that clients must send; null: none is asked for."""
    max_queue: int = Field(default=16, ge=1)
    """Requests that wait; further ones are answered 429."""
    max_body_mib: float = Field(default=256.0, gt=0)
    request_timeout: float = Field(default=120.0, gt=0)
    """Seconds that a request may wait and be scored; below the clients' deadline."""

    @model_validator(mode="after")
    def _check_token(self) -> RewardServerConfig:
        if self.host not in ("127.0.0.1", "::1", "localhost") and self.token_file is None:
            raise ValueError(
                f"host {self.host!r} can be reached from other machines: token_file is required"
            )
        return self
