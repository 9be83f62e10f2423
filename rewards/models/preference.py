"""The preference model: members of criterion heads over an encoder, frozen or trained with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from rewards.folder import WEIGHTS_FILE
from rewards.models.heads import HEADS, OVERALL, Head

__all__ = ["OVERALL", "PreferenceConfig", "PreferenceModel", "PreferenceOutput"]


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
        head: str = "tokens",
        states_dim: int = 0,
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
        self.head = head
        self.states_dim = states_dim
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

    A frozen encoder stays outside. One that trains is ``network``; `open` loads such a model:
    `from_pretrained` would leave the network's tables on ``meta``.
    """

    config_class = PreferenceConfig
    base_model_prefix = "preference"
    main_input_name = "image"
    # The Trainer would take `**inputs` for a sign that the loss is scaled already.
    accepts_loss_kwargs = False
    config: PreferenceConfig

    def __init__(self, config: PreferenceConfig, network: nn.Module | None = None):
        super().__init__(config)
        head = HEADS[config.head]
        self.members = nn.ModuleList(head(config) for _ in range(config.num_members))
        self._standardised = head.standardised
        for name in self._standardised:
            self.add_module(f"{name}_scale", _Standardise(getattr(config, f"{name}_dim")))
        if config.loss == "rao_kupper":
            self.tie_threshold = nn.Parameter(torch.zeros(len(config.outputs)))
        self.post_init()
        self.network = network
        # The base is named by its hash and not copied; checkpoints hold what was trained.
        self._keys_to_ignore_on_save = _untrained(network)

    @classmethod
    def open(cls, folder: Path, network: nn.Module | None = None) -> PreferenceModel:
        """The model that `save_pretrained` wrote, its heads in float32.

        Args:
            network: of its encoder, as loaded; takes on the weights that were trained.

        Raises:
            ValueError: the file lacks weights, or has some that the model does not; names one.
        """
        model = cls(PreferenceConfig.from_pretrained(folder), network)
        path = folder / WEIGHTS_FILE
        found = model.load_state_dict(load_file(path), strict=False)
        missing = sorted(set(found.missing_keys) - set(model._keys_to_ignore_on_save or ()))
        if faulty := [*missing, *found.unexpected_keys]:
            raise ValueError(f"{path} is not of the model that config.json describes: {faulty[0]}")
        return model

    def _init_weights(self, module: nn.Module) -> None:
        """Weights are initialised where they are made."""

    def _scale(self, name: str) -> _Standardise:
        return getattr(self, f"{name}_scale")

    def standardise_by(self, features: Mapping[str, Tensor]) -> None:
        """Set each feature channel's mean and deviation from training candidates.

        Args:
            features: arguments of the heads; those that none standardises are left alone.
        """
        for name in self._standardised:
            values = features[name]
            if name == "text":
                values = values[features["text_mask"]]
            self._scale(name).fit(values.reshape(-1, values.shape[-1]))

    def forward(self, **inputs: Tensor) -> PreferenceOutput:
        """Scores of ``N`` candidates, of what the encoder's ``collate`` makes of them."""
        features = inputs if self.network is None else self.network(**inputs)
        scaled = {name: self._scale(name)(features[name]) for name in self._standardised}
        heads = [member(**{**features, **scaled}) for member in self.members]
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
        members = [cast(Head, member) for member in self.members]
        weights = torch.stack([F.softplus(m.combination) for m in members]).mean(dim=0)
        return dict(zip(self.config.criteria, weights.tolist(), strict=True))


def _untrained(network: nn.Module | None) -> set[str]:
    """Names in the model's state of the network's weights that stay as they are, and its tables."""
    if network is None:
        return set()
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    return {f"network.{name}" for name in network.state_dict() if name not in trained}


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
