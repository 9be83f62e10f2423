"""TRL's `RewardTrainer` for images and several candidates a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from datasets import Dataset
from torch import Tensor
from trl import RewardConfig, RewardTrainer

from rewards.judgements import CandidateSet
from rewards.losses import all_equal, best_then_worst, centring
from rewards.models.features import Features, collate
from rewards.models.preference import PreferenceOutput

__all__ = ["CandidateTrainer", "SetCollator", "SetLoss", "preference_loss", "to_dataset"]

_TIE = -1


def to_dataset(sets: Iterable[CandidateSet], outputs: Sequence[str], keep_ties: bool) -> Dataset:
    """One row per candidate set: its candidates, and question, best and worst of each judgement.

    Judgements that ask for no output of the model are left out, as are sets without any.
    """
    rows = []
    for candidates in sets:
        judgements = [
            (
                outputs.index(j.question.value),
                _TIE if j.best is None else j.best,
                _TIE if j.worst is None else j.worst,
            )
            for j in candidates.judgements
            if j.question.value in outputs and (keep_ties or j.best is not None)
        ]
        if judgements:
            questions, best, worst = map(list, zip(*judgements, strict=True))
            rows.append(
                {
                    "candidate_ids": list(candidates.candidate_ids),
                    "question": questions,
                    "best": best,
                    "worst": worst,
                }
            )
    return Dataset.from_list(rows)


class SetCollator:
    """Rows of `to_dataset` to a batch: each candidate's features once, judgements pointing at them.

    ``N`` candidates, ``P`` judgements of up to ``K`` of them::

        image, text, text_mask, stats   as in `FeatureBatch`
        members (P, K)   rows of the candidates, 0 where padded;  mask (P, K)
        question (P,)    column of the logits
        best, worst (P,) positions in 0 .. K - 1, both -1 for "all equal"
    """

    def __init__(self, bank: Mapping[str, Features]):
        self._bank = bank

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        ids = [candidate_id for row in rows for candidate_id in row["candidate_ids"]]
        judgements = [
            (start, len(row["candidate_ids"]), *judgement)
            for start, row in zip(_starts(rows), rows, strict=True)
            for judgement in zip(row["question"], row["best"], row["worst"], strict=True)
        ]
        start, count, question, best, worst = torch.tensor(judgements).unbind(dim=1)
        position = torch.arange(int(count.max()))[None]
        mask = position < count[:, None]
        return {
            **collate([self._bank[candidate_id] for candidate_id in ids]).as_dict(),
            "members": torch.where(mask, start[:, None] + position, 0),
            "mask": mask,
            "question": question,
            "best": best,
            "worst": worst,
        }


def _starts(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    starts = [0]
    for row in rows[:-1]:
        starts.append(starts[-1] + len(row["candidate_ids"]))
    return starts


@dataclass(frozen=True, slots=True)
class SetLoss:
    loss: Tensor
    """Scalar: mean negative log likelihood plus centring."""
    nll: Tensor
    """(M, P) per member and judgement, in nats."""
    correct: Tensor
    """(P,) whether the members' mean score ranks best over worst; NaN for "all equal"."""


def preference_loss(logits: Tensor, batch: Mapping[str, Tensor], centring_weight: float) -> SetLoss:
    """Each judgement's likelihood, in the column of the question that it answers.

    Args:
        logits: (N, M, C) of `PreferenceModel`.
        batch: of `SetCollator`.
    """
    column = batch["question"][:, None, None, None]
    scores = logits[batch["members"]]  # (P, K, M, C)
    scores = scores.gather(3, column.expand(*scores.shape[:3], 1)).squeeze(3).permute(2, 0, 1)
    num_members, mask = len(scores), batch["mask"]
    picked = batch["best"] >= 0
    best, worst = batch["best"][picked], batch["worst"][picked]

    def of_members(values: Tensor) -> Tensor:
        return values.repeat(num_members, *[1] * (values.ndim - 1))

    # Picks and ties are computed apart: a masked-out branch would still send NaN backwards.
    nll = scores.new_zeros(num_members, len(picked))
    if picked.any():
        of_picks = best_then_worst(
            scores[:, picked].flatten(0, 1),
            of_members(mask[picked]),
            of_members(best),
            of_members(worst),
        )
        nll[:, picked] = of_picks.unflatten(0, (num_members, -1))
    if not picked.all():
        of_ties = all_equal(scores[:, ~picked].flatten(0, 1), of_members(mask[~picked]))
        nll[:, ~picked] = of_ties.unflatten(0, (num_members, -1))
    centre = centring(scores.flatten(0, 1), of_members(mask)).mean()
    correct = torch.full_like(nll[0], float("nan"))
    mean = scores.detach().mean(dim=0)[picked]
    margin = mean.gather(1, best[:, None]) - mean.gather(1, worst[:, None])
    correct[picked] = 0.5 + 0.5 * margin.squeeze(1).sign()
    return SetLoss(nll.mean() + centring_weight * centre, nll, correct)


class CandidateTrainer(RewardTrainer):
    """`RewardTrainer` whose rows are candidate sets and whose loss is `preference_loss`.

    ``args.center_rewards_coefficient`` weighs the centring. Logs TRL's metric names.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # It was needed for TRL's checks alone; checkpoints hold no tokenizer.
        self.processing_class = None

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Any:
        return dataset  # there is nothing to tokenize

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = ["candidate_ids", "question", "best", "worst"]

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean over the batch's judgements; see `preference_loss`."""
        features = ("image", "text", "text_mask", "stats")
        outputs: PreferenceOutput = model(**{name: inputs[name] for name in features})
        assert outputs.logits is not None
        args = cast(RewardConfig, self.args)
        result = preference_loss(outputs.logits, inputs, args.center_rewards_coefficient or 0.0)
        self._record("train" if model.training else "eval", outputs.logits.detach(), result)
        return (result.loss, outputs) if return_outputs else result.loss

    def _record(self, mode: str, logits: Tensor, result: SetLoss) -> None:
        metrics = self._metrics[mode]
        own = [result.nll.detach().mean(), result.correct.nanmean()]
        own += [logits.min(), logits.mean(), logits.max()]
        gathered = cast(Tensor, self.accelerator.gather(torch.stack(own)[None]))
        names = ("nll", "accuracy", "min_reward", "mean_reward", "max_reward")
        for name, value in zip(names, gathered.nanmean(dim=0).tolist(), strict=True):
            if value == value:
                metrics[name].append(value)
