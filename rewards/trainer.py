"""TRL's `RewardTrainer` for images and several candidates a comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from datasets import Dataset
from torch import Tensor
from trl import RewardConfig, RewardTrainer

from rewards.judgements import CandidateSet
from rewards.losses import all_equal, best_then_worst, centring
from rewards.models.features import Bank, collate
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
                    "prompt": candidates.prompt.text,
                    "question": questions,
                    "best": best,
                    "worst": worst,
                }
            )
    return Dataset.from_list(rows)


class SetCollator:
    """Rows of `to_dataset` to a batch: each candidate's features once, judgements pointing at them.

    ``N`` candidates, ``P`` judgements of up to ``K``::

        image, text, text_mask, stats   as in `FeatureBatch`
        members (P, K)   rows of the candidates, 0 where padded;  mask (P, K)
        question (P,)    column of the logits
        best, worst (P,) positions in 0 .. K - 1, both -1 for "all equal"
    """

    def __init__(self, bank: Bank):
        self._bank = bank

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        keys = [(cid, row["prompt"]) for row in rows for cid in row["candidate_ids"]]
        judgements = [
            (start, len(row["candidate_ids"]), *judgement)
            for start, row in zip(_starts(rows), rows, strict=True)
            for judgement in zip(row["question"], row["best"], row["worst"], strict=True)
        ]
        start, count, question, best, worst = torch.tensor(judgements).unbind(dim=1)
        position = torch.arange(int(count.max()))[None]
        mask = position < count[:, None]
        return {
            **collate([self._bank[key] for key in keys]).as_dict(),
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
    nll: Tensor
    """(M, P) per member and judgement, in nats."""
    centring: Tensor
    """(M, P) squared mean scores."""
    correct: Tensor
    """(P,) whether the members' mean score ranks best over worst; NaN for "all equal"."""


def preference_loss(logits: Tensor, batch: Mapping[str, Tensor]) -> SetLoss:
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

    def per_member(losses: Tensor) -> Tensor:
        return losses.unflatten(0, (num_members, -1))

    # Picks and ties are computed apart: a masked-out branch would still send NaN backwards.
    nll = scores.new_zeros(num_members, len(picked))
    if picked.any():
        arguments = [of_members(values) for values in (mask[picked], best, worst)]
        nll[:, picked] = per_member(best_then_worst(scores[:, picked].flatten(0, 1), *arguments))
    if not picked.all():
        ties = scores[:, ~picked].flatten(0, 1)
        nll[:, ~picked] = per_member(all_equal(ties, of_members(mask[~picked])))
    correct = torch.full_like(nll[0], float("nan"))
    mean = scores.detach().mean(dim=0)[picked]
    margin = mean.gather(1, best[:, None]) - mean.gather(1, worst[:, None])
    correct[picked] = 0.5 + 0.5 * margin.squeeze(1).sign()
    return SetLoss(
        nll=nll,
        centring=per_member(centring(scores.flatten(0, 1), of_members(mask))),
        correct=correct,
    )


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
            self._signature_columns = [
                "candidate_ids", "prompt", "question", "best", "worst",
            ]  # fmt: skip

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
        result = preference_loss(outputs.logits, inputs)
        args = cast(RewardConfig, self.args)
        loss = result.nll.mean()
        loss = loss + (args.center_rewards_coefficient or 0.0) * result.centring.mean()
        self._record("train" if model.training else "eval", outputs.logits.detach(), result)
        return (loss, outputs) if return_outputs else loss

    def _record(self, mode: str, logits: Tensor, result: SetLoss) -> None:
        """Add this batch to the means that `RewardTrainer.log` writes."""
        own = {
            "nll": result.nll.detach().mean(),
            "accuracy": result.correct.nanmean(),
            "min_reward": logits.min(),
            "mean_reward": logits.mean(),
            "max_reward": logits.max(),
        }
        gathered = cast(Tensor, self.accelerator.gather(torch.stack(list(own.values()))[None]))
        for name, value in zip(own, gathered.nanmean(dim=0).tolist(), strict=True):
            # NaN where a batch has only ties.
            if not math.isnan(value):
                self._metrics[mode][name].append(value)
