"""The preference model: criterion heads over an encoder's features, and their combination."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from rewards.models.features import FeatureBatch

__all__ = ["OVERALL", "PreferenceConfig", "PreferenceModel", "PreferenceOutput"]

OVERALL = "overall"


class PreferenceConfig(PretrainedConfig):
    """Sizes of the heads, and the identity of the encoder whose features they read."""

    model_type = "winsome-preference"

    def __init__(
        self,
        criteria: Sequence[str] = ("aesthetics", "instruction", "detail"),
        base: str = "",
        encoder: dict[str, Any] | None = None,
        encoder_fingerprint: Sequence[float] = (),
        num_image_tokens: int = 64,
        image_dim: int = 256,
        text_dim: int = 192,
        stats_dim: int = 64,
        width: int = 64,
        num_layers: int = 1,
        num_heads: int = 4,
        num_queries: int = 4,
        num_members: int = 2,
        dropout: float = 0.1,
        temperatures: dict[str, float] | None = None,
        loss: str = "plackett_luce",
        **kwargs: Any,
    ):
        self.criteria = list(criteria)
        self.base = base
        self.encoder = encoder or {}
        self.encoder_fingerprint = list(encoder_fingerprint)
        self.num_image_tokens = num_image_tokens
        self.image_dim = image_dim
        self.text_dim = text_dim
        self.stats_dim = stats_dim
        self.width = width
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.num_queries = num_queries
        self.num_members = num_members
        self.dropout = dropout
        self.temperatures = temperatures or {}
        self.loss = loss
        # TRL's RewardTrainer takes models of one label only; ours is the overall score.
        super().__init__(**{**kwargs, "num_labels": 1})

    @property
    def outputs(self) -> tuple[str, ...]:
        """The name of each column of the logits; the overall score is the last one."""
        return tuple(dict.fromkeys([*self.criteria, OVERALL]))


@dataclass
class PreferenceOutput(ModelOutput):
    logits: Tensor | None = None
    """(N, M, C) scores of N candidates by M members, columns as `PreferenceConfig.outputs`."""
    variance: Tensor | None = None
    """(N, M, C) of each score, where the loss is ``gaussian``."""
    tie_log_odds: Tensor | None = None
    """(C,) how far apart two must be for one to win, where the loss is ``rao_kupper``."""


class PreferenceModel(PreTrainedModel):
    """Scores candidates by criterion: r_k; overall: sum_k softplus(a_k) r_k.

    The combination is monotone in each criterion, and its weights are those that the picks for
    "overall" imply. The criteria enter it detached: an overall pick fits a_k and no head. Where
    picks for "overall" are all there is, it is a head of its own.

    The encoder stays outside: loading with `from_pretrained` would leave its tables on ``meta``.
    """

    config_class = PreferenceConfig
    base_model_prefix = "preference"
    main_input_name = "image"
    config: PreferenceConfig

    def __init__(self, config: PreferenceConfig):
        super().__init__(config)
        self.members = nn.ModuleList(_Member(config) for _ in range(config.num_members))
        self.image_scale = _Standardise(config.image_dim)
        self.text_scale = _Standardise(config.text_dim)
        self.stats_scale = _Standardise(config.stats_dim)
        if config.loss == "rao_kupper":
            self.tie_threshold = nn.Parameter(torch.zeros(len(config.outputs)))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Weights are initialised where they are made."""

    def standardise_by(self, batch: FeatureBatch) -> None:
        """Set each feature channel's mean and deviation from the training candidates."""
        self.image_scale.fit(batch.image.flatten(0, 1))
        self.text_scale.fit(batch.text[batch.text_mask])
        self.stats_scale.fit(batch.stats)

    def forward(
        self, image: Tensor, text: Tensor, text_mask: Tensor, stats: Tensor
    ) -> PreferenceOutput:
        """Scores of ``N`` candidates; arguments as the fields of `FeatureBatch`."""
        image, text = self.image_scale(image), self.text_scale(text)
        stats = self.stats_scale(stats)
        heads = [member(image, text, text_mask, stats) for member in self.members]
        ties, doubts = self.config.loss == "rao_kupper", self.config.loss == "gaussian"
        return PreferenceOutput(
            logits=torch.stack([scores for scores, _ in heads], dim=1),
            variance=torch.stack([v for _, v in heads], dim=1) if doubts else None,
            tie_log_odds=F.softplus(self.tie_threshold) if ties else None,
        )

    def overall_weights(self) -> dict[str, float]:
        """softplus(a_k), the mean over members; empty when "overall" is a head of its own."""
        if OVERALL in self.config.criteria:
            return {}
        members = [cast(_Member, member) for member in self.members]
        weights = torch.stack([F.softplus(m.combination) for m in members]).mean(dim=0)
        return dict(zip(self.config.criteria, weights.tolist(), strict=True))


class _Standardise(nn.Module):
    """Each channel to mean 0 and deviation 1 over the training candidates."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("deviation", torch.ones(size))

    def fit(self, values: Tensor) -> None:
        self.mean.copy_(values.mean(dim=0))
        # A channel that never varies would be divided by zero.
        self.deviation.copy_(values.std(dim=0).clamp_min(1e-4))

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.deviation


class _Member(nn.Module):
    """One head: joint attention over image and text tokens, pooled by queries per criterion."""

    def __init__(self, config: PreferenceConfig):
        super().__init__()
        width, side = config.width, round(config.num_image_tokens**0.5)
        self.criteria = tuple(config.criteria)
        self.image_in = nn.Linear(config.image_dim, width)
        self.text_in = nn.Linear(config.text_dim, width)
        self.rows = nn.Parameter(0.5 * torch.randn(side, 1, width))
        self.columns = nn.Parameter(0.5 * torch.randn(1, side, width))
        self.text_kind = nn.Parameter(0.5 * torch.randn(width))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width)
        num_queries = len(self.criteria) * config.num_queries
        self.queries = nn.Parameter(torch.randn(num_queries, width))
        self.pool = _Attention(config)
        self.dropout = nn.Dropout(config.dropout)
        pooled = config.num_queries * width + config.stats_dim
        self.scores = nn.ModuleList(
            nn.Sequential(nn.Linear(pooled, width), nn.GELU(), nn.Linear(width, 1))
            for _ in self.criteria
        )
        # softplus(a) = 1 / C: the mean of the criteria until picks say otherwise.
        start = torch.full((len(self.criteria),), 1.0 / len(self.criteria))
        self.combination = nn.Parameter(torch.log(torch.expm1(start)))
        self.variances: nn.ModuleList | None = None
        if config.loss == "gaussian":
            self.variances = nn.ModuleList(nn.Linear(pooled, 1) for _ in self.criteria)

    def forward(
        self, image: Tensor, text: Tensor, text_mask: Tensor, stats: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """(N, C) scores and their variances or None, columns as `PreferenceConfig.outputs`."""
        place = (self.rows + self.columns).flatten(0, 1)
        tokens = torch.cat([self.image_in(image) + place, self.text_in(text) + self.text_kind], 1)
        mask = torch.cat([text_mask.new_ones(image.shape[:2]), text_mask], dim=1)
        tokens = self.dropout(tokens)
        for block in self.blocks:
            tokens = block(tokens, mask)
        queries = self.queries.expand(len(tokens), -1, -1)
        pooled = self.dropout(self.pool(queries, self.norm(tokens), mask))
        inputs = [
            torch.cat([queries.flatten(1), stats], dim=1)
            for queries in pooled.chunk(len(self.criteria), dim=1)
        ]
        heads = [score(x) for score, x in zip(self.scores, inputs, strict=True)]
        criteria, variance = torch.cat(heads, dim=1), None
        if self.variances is not None:
            raw = [head(x) for head, x in zip(self.variances, inputs, strict=True)]
            # Within [e^-4, e^2], where the quadrature is exact and no score is given up.
            variance = torch.cat(raw, dim=1).clamp(-4.0, 2.0).exp()
        if OVERALL in self.criteria:
            return criteria, variance
        weights = F.softplus(self.combination)
        overall = criteria.detach() @ weights
        if variance is not None:
            whole = variance.detach() @ weights.square()
            variance = torch.cat([variance, whole[:, None]], dim=1)
        return torch.cat([criteria, overall[:, None]], dim=1), variance


class _Block(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: PreferenceConfig):
        super().__init__()
        width = config.width
        self.norm = nn.LayerNorm(width)
        self.attention = _Attention(config)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        normed = self.norm(tokens)
        tokens = tokens + self.dropout(self.attention(normed, normed, mask))
        return tokens + self.dropout(self.feed_forward(tokens))


class _Attention(nn.Module):
    def __init__(self, config: PreferenceConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.query = nn.Linear(config.width, config.width)
        self.key_value = nn.Linear(config.width, 2 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, queries: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """queries (N, Q, W) attend to tokens (N, T, W) where mask (N, T) is true."""
        q = self._split(self.query(queries))
        k, v = (self._split(part) for part in self.key_value(tokens).chunk(2, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        return self.out(attended.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
