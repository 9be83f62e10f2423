"""Scorers: one module each. `load_scorer` opens a trained preference model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from align.mmdit.adapters.base import ModelAdapter
    from rewards.scorers.preference import PreferenceScorer

__all__ = ["load_scorer"]


def load_scorer(
    folder: str | Path,
    *,
    adapter: ModelAdapter | None = None,
    base: str | Path | None = None,
    device: str = "cpu",
) -> PreferenceScorer:
    """The scorer in a folder that ``winsome reward train`` wrote.

    Args:
        adapter: the frozen diffusion base that the reward model was trained on, when it is loaded
            already; its first blocks are copied, so that it may be trained afterwards. Encoders of
            other types load their own base.
        base: else the base's folder or hub id. When both are None, the base named at training.
        device: where the heads run, and the base when it is loaded here.

    Raises:
        FileNotFoundError: the folder holds no reward model.
        ValueError: the base is not the one the reward model was trained on.
    """
    from rewards.scorers.preference import PreferenceScorer

    return PreferenceScorer.from_pretrained(folder, adapter=adapter, base=base, device=device)
