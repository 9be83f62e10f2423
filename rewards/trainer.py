"""TRL's `RewardTrainer` for images and several candidates a comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import RewardConfig, RewardTrainer

from rewards.config import Loss
from rewards.digests import write_digests
from rewards.judgements import CandidateSet, Judgement
from rewards.losses import weighted_mean
from rewards.models.features import Bank
from rewards.models.preference import PreferenceOutput
from rewards.objective import ALL_BAD, NONE, SetLoss, preference_loss

__all__ = ["CandidateTrainer", "DigestCallback", "SetCollator", "to_dataset"]


def to_dataset(sets: Iterable[CandidateSet], outputs: Sequence[str], keep_ties: bool) -> Dataset:
    """One row per candidate set: its candidates, and question, best and worst of each judgement.

    Judgements that ask for no output of the model are left out, as are sets without any. Where any
    judgement has a weight or anchors, there are columns for these too.
    """
    asked = [
        (candidates, kept)
        for candidates in sets
        if (kept := [j for j in candidates.judgements if _teaches(j, outputs, keep_ties)])
    ]
    every = [j for _, kept in asked for j in kept]
    weighted = any(j.weight != 1.0 for j in every)
    anchored = any(j.all_bad for j in every)
    rows = []
    for candidates, kept in asked:
        row: dict[str, Any] = {
            "candidate_ids": list(candidates.candidate_ids),
            "prompt": candidates.prompt.text,
            "question": [outputs.index(j.question.value) for j in kept],
            "best": [_position(j, j.best) for j in kept],
            "worst": [_position(j, j.worst) for j in kept],
        }
        if weighted:
            row["weight"] = [j.weight for j in kept]
        if anchored:
            anchors = sorted({cid for j in kept for cid in j.anchors})
            row["anchor_ids"] = anchors
            row["anchors"] = [[anchors.index(cid) for cid in j.anchors] for j in kept]
        rows.append(row)
    return Dataset.from_list(rows)


def _teaches(judgement: Judgement, outputs: Sequence[str], keep_ties: bool) -> bool:
    tie = judgement.best is None and judgement.worst is None and not judgement.all_bad
    return judgement.question.value in outputs and (keep_ties or not tie)


def _position(judgement: Judgement, place: int | None) -> int:
    if judgement.all_bad:
        return ALL_BAD
    return NONE if place is None else place


class SetCollator:
    """Rows of `to_dataset` to a batch: each candidate's features once, judgements pointing at them.

    ``N`` candidates, ``P`` judgements of up to ``K``::

        candidates       what the encoder's ``collate`` makes of the candidates' inputs
        members (P, K)   rows of the candidates, 0 where padded;  mask (P, K)
        question (P,)    column of the logits
        best, worst (P,) positions in 0 .. K - 1, both -1 for "all equal", both -2 for "all bad"
        weight (P,)      where the rows have weights
        anchors (P, A)   rows of the anchors of "all bad", 0 where padded;  anchor_mask (P, A)
    """

    def __init__(self, bank: Bank, collate: Callable[[list[Any]], dict[str, Tensor]]):
        self._bank = bank
        self._collate = collate

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        ids = [[*row["candidate_ids"], *row.get("anchor_ids", ())] for row in rows]
        keys = [(cid, row["prompt"]) for row, of in zip(rows, ids, strict=True) for cid in of]
        starts = _starts(ids)
        judgements = [
            (start, len(row["candidate_ids"]), *judgement)
            for start, row in zip(starts, rows, strict=True)
            for judgement in zip(row["question"], row["best"], row["worst"], strict=True)
        ]
        start, count, question, best, worst = torch.tensor(judgements).unbind(dim=1)
        position = torch.arange(int(count.max()))[None]
        mask = position < count[:, None]
        batch: dict[str, Any] = {
            "candidates": self._collate([self._bank[key] for key in keys]),
            "members": torch.where(mask, start[:, None] + position, 0),
            "mask": mask,
            "question": question,
            "best": best,
            "worst": worst,
        }
        if "weight" in rows[0]:
            batch["weight"] = torch.tensor([w for row in rows for w in row["weight"]])
        if "anchors" in rows[0]:
            batch |= _anchors(rows, starts)
        return batch


def _starts(ids: Sequence[Sequence[str]]) -> list[int]:
    starts = [0]
    for row in ids[:-1]:
        starts.append(starts[-1] + len(row))
    return starts


def _anchors(rows: Sequence[Mapping[str, Any]], starts: Sequence[int]) -> dict[str, Tensor]:
    """Rows of the features that hold each judgement's anchors."""
    places = [
        [start + len(row["candidate_ids"]) + place for place in anchors]
        for start, row in zip(starts, rows, strict=True)
        for anchors in row["anchors"]
    ]
    width = max(1, *(len(of) for of in places))
    padded = [of + [0] * (width - len(of)) for of in places]
    counts = torch.tensor([len(of) for of in places])
    return {
        "anchors": torch.tensor(padded),
        "anchor_mask": torch.arange(width)[None] < counts[:, None],
    }


class DigestCallback(TrainerCallback):
    """Writes the digests of each checkpoint's files when all of them are there."""

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        # Other processes may still be writing their part.
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            write_digests(Path(cast(str, args.output_dir)) / f"checkpoint-{state.global_step}")


class CandidateTrainer(RewardTrainer):
    """`RewardTrainer` whose rows are candidate sets and whose loss is `preference_loss`.

    ``args.center_rewards_coefficient`` weighs the centring. Logs TRL's metric names. Several
    processes take the step that one would take on all their rows.

    Args:
        encoder_rate: learning rate of the model's ``network``, where it has one.
    """

    def __init__(
        self,
        *args: Any,
        loss: Loss = "plackett_luce",
        encoder_rate: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self._loss: Loss = loss
        self._encoder_rate = encoder_rate
        # It was needed for TRL's checks alone; checkpoints hold no tokenizer.
        self.processing_class = None

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Any:
        return dataset  # there is nothing to tokenize

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = [
                "candidate_ids", "prompt", "question", "best", "worst", "weight",
                "anchor_ids", "anchors",
            ]  # fmt: skip

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW, with the encoder's weights in groups of their own rate."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        trained: Any = self.model if model is None else model
        network = trained.network
        if fresh and network is not None:
            own = {id(parameter) for parameter in network.parameters()}
            for group in list(optimizer.param_groups):
                moved = [p for p in group["params"] if id(p) in own]
                group["params"] = [p for p in group["params"] if id(p) not in own]
                if moved:
                    optimizer.add_param_group({**group, "params": moved, "lr": self._encoder_rate})
        return optimizer

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean over the judgements of all processes' batches, by weight; see `preference_loss`."""
        outputs: PreferenceOutput = model(**inputs["candidates"])
        assert outputs.logits is not None
        result = preference_loss(outputs, inputs, self._loss)
        args = cast(RewardConfig, self.args)
        count = torch.tensor(float(result.nll.shape[1]), device=result.nll.device)
        if "weight" in inputs:
            weights = inputs["weight"]
            nll = weighted_mean(result.nll.mean(dim=0), weights) * self._share(weights.sum())
        else:
            nll = result.nll.mean() * self._share(count)
        centring = result.centring.mean() * self._share(count)
        loss = nll + (args.center_rewards_coefficient or 0.0) * centring
        self._record("train" if model.training else "eval", outputs.logits.detach(), result)
        return (loss, outputs) if return_outputs else loss

    def _share(self, weight: Tensor) -> Tensor | float:
        """What makes the mean over processes of their own means one over all their judgements."""
        if self.accelerator.num_processes == 1:
            return 1.0
        total = cast(Tensor, self.accelerator.reduce(weight, "sum"))
        return weight * self.accelerator.num_processes / total

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
