"""Heads: one vector for each criterion to its score, and the combination of the scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from rewards.models.preference import PreferenceConfig

__all__ = ["HEADS", "OVERALL", "Head"]

OVERALL = "overall"


class Head(nn.Module):
    """One member of a preference model. A subclass says which vector each criterion is read from,
    and calls `_add_scores` with its size."""

    standardised: ClassVar[tuple[str, ...]]
    """The arguments of ``forward`` that are standardised over the training candidates."""

    def __init__(self, config: PreferenceConfig):
        super().__init__()
        self.criteria = tuple(config.criteria)

    def _add_scores(self, config: PreferenceConfig, size: int) -> None:
        width = config.width
        self.scores = nn.ModuleList(
            nn.Sequential(nn.Linear(size, width), nn.GELU(), nn.Linear(width, 1))
            for _ in self.criteria
        )
        # softplus(a) = 1 / C: the mean of the criteria until picks say otherwise.
        start = torch.full((len(self.criteria),), 1.0 / len(self.criteria))
        self.combination = nn.Parameter(torch.log(torch.expm1(start)))
        self.variances: nn.ModuleList | None = None
        if config.loss == "gaussian":
            self.variances = nn.ModuleList(nn.Linear(size, 1) for _ in self.criteria)

    def _score(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """(N, C) scores and their variances or None, columns as `PreferenceConfig.outputs`.

        Args:
            inputs: (N, size) for each criterion.
        """
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


class _TokensHead(Head):
    """Joint attention over image and text tokens, pooled by queries per criterion."""

    standardised = ("image", "text", "stats")

    def __init__(self, config: PreferenceConfig):
        super().__init__(config)
        width, side = config.width, round(config.num_image_tokens**0.5)
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
        self._add_scores(config, config.num_queries * width + config.stats_dim)

    def forward(
        self, image: Tensor, text: Tensor, text_mask: Tensor, stats: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """See `_score`; arguments as the fields of `rewards.models.features.FeatureBatch`."""
        place = (self.rows + self.columns).flatten(0, 1)
        tokens = torch.cat([self.image_in(image) + place, self.text_in(text) + self.text_kind], 1)
        mask = torch.cat([text_mask.new_ones(image.shape[:2]), text_mask], dim=1)
        tokens = self.dropout(tokens)
        for block in self.blocks:
            tokens = block(tokens, mask)
        queries = self.queries.expand(len(tokens), -1, -1)
        pooled = self.dropout(self.pool(queries, self.norm(tokens), mask))
        return self._score(
            [
                torch.cat([queries.flatten(1), stats], dim=1)
                for queries in pooled.chunk(len(self.criteria), dim=1)
            ]
        )


class _StatesHead(Head):
    """Reads each criterion from the hidden state of its own token."""

    standardised = ()

    def __init__(self, config: PreferenceConfig):
        super().__init__(config)
        self.norm = nn.LayerNorm(config.states_dim)
        self.dropout = nn.Dropout(config.dropout)
        self._add_scores(config, config.states_dim)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `_score`; states (N, C, D), float32."""
        return self._score(self.dropout(self.norm(states)).unbind(dim=1))


HEADS: dict[str, type[Head]] = {"tokens": _TokensHead, "states": _StatesHead}
"""What an encoder gives to the heads that read it."""


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
