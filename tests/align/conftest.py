"""Real models, small: the shipped tiny pipeline, or an untrained one of the same classes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import align
from align.mmdit.adapters.base import Conditioning
from align.mmdit.adapters.qwen_image import QwenImageAdapter
from align.mmdit.flow import seeded_noise_batch


@pytest.fixture(autouse=True)
def seed() -> None:
    """Random numbers of a test do not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers pipeline folder; read only."""
    folder = align.tiny_pipeline()
    if (folder / "model_index.json").exists():
        return folder
    from align.tiny_model import build_random_pipeline

    return build_random_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def untrained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same classes with random weights, for trainers that must have something to learn."""
    from align.tiny_model import build_random_pipeline

    return build_random_pipeline(tmp_path_factory.mktemp("untrained") / "pipeline")


@pytest.fixture(scope="session")
def edit_folder(untrained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An editing pipeline of the untrained one's parts."""
    from align.tiny_edit import build_edit_pipeline

    return build_edit_pipeline(untrained_folder, tmp_path_factory.mktemp("edit") / "pipeline")


@pytest.fixture(scope="session")
def adapter(tiny_folder: Path) -> QwenImageAdapter:
    """The pipeline in float32; shared, so tests train copies of its transformer."""
    return QwenImageAdapter.from_pretrained(tiny_folder)


@pytest.fixture
def transformer(adapter: QwenImageAdapter) -> torch.nn.Module:
    """A copy of the transformer that a test may change."""
    return copy.deepcopy(adapter.transformer)


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    """Of different lengths, in both languages."""
    return [
        "a red circle on a blue background",
        "a green square at the left, a yellow button and the headline SALE at the top",
        "红色背景，绿色圆形",
    ]


@pytest.fixture(scope="session")
def cond(adapter: QwenImageAdapter, prompts: list[str]) -> Conditioning:
    """The three prompts, padded to one length."""
    with torch.no_grad():
        return adapter.encode_prompts(prompts)


@pytest.fixture(scope="session")
def noise(adapter: QwenImageAdapter) -> torch.Tensor:
    """Noise for three images of 64 x 64 pixels."""
    return seeded_noise_batch(0, ["a", "b", "c"], [0] * 3, adapter.latent_shape(64, 64))


@pytest.fixture
def nudge() -> Callable[[list[torch.nn.Parameter], float], None]:
    """Moves parameters a little: the policy after some training."""

    def apply(parameters: list[torch.nn.Parameter], scale: float) -> None:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in parameters:
                parameter += scale * torch.randn(parameter.shape, generator=generator)

    return apply
