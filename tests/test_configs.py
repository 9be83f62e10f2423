"""Every file under ``configs/`` parses, and what is wrong with one is said by path and choices."""

from __future__ import annotations

import json
import re

import pytest

from align.config import DPOConfig, EvalConfig, GenerateConfig, GRPOConfig, SFTConfig
from align.demo.config import DemoConfig
from align.pretrain.config import PretrainConfig
from annotate.settings import (
    Config,
    ConfigError,
    configs_folder,
    dump_config,
    find_config,
    load_config,
)
from annotate.web.config import ServeConfig
from rewards.config import RewardTrainConfig
from rewards.scorers.config import RewardMixConfig, RewardServerConfig

CONFIGS = configs_folder()
KINDS: dict[str, type[Config]] = {
    "annotate": ServeConfig,
    "rewards": RewardTrainConfig,
    "reward": RewardTrainConfig,
    "reward_mix": RewardMixConfig,
    "reward_server": RewardServerConfig,
    "pretrain": PretrainConfig,
    "demo": DemoConfig,
    "generate": GenerateConfig,
    "eval": EvalConfig,
    "sft": SFTConfig,
    "dpo": DPOConfig,
    "grpo": GRPOConfig,
}
"""What a YAML configures: the name of its folder, or in ``tiny/`` the start of its own name."""

LAUNCHERS = ("accelerate", "deepspeed", "compose")
"""Folders of other programs' files."""
YAML_FILES = sorted(
    path for path in CONFIGS.rglob("*.yaml") if path.parent.name not in LAUNCHERS
)  # fmt: skip


def kind_of(path) -> type[Config]:
    folder = path.parent.name
    return KINDS[re.split(r"[-_.]", path.name)[0] if folder == "tiny" else folder]


def named(paths):
    return [pytest.param(path, id=path.relative_to(CONFIGS).as_posix()) for path in paths]


def test_every_kind_of_run_has_a_file_and_every_folder_a_kind():
    assert {kind_of(path) for path in YAML_FILES} == set(KINDS.values())
    folders = {path.name for path in CONFIGS.iterdir() if path.is_dir() and any(path.iterdir())}
    assert folders <= {*KINDS, *LAUNCHERS, "tiny"}


@pytest.mark.parametrize("path", named(YAML_FILES))
def test_each_file_parses_and_is_written_back_unchanged(path, tmp_path):
    config = load_config(kind_of(path), path)
    (tmp_path / "resolved.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(kind_of(path), tmp_path / "resolved.yaml") == config


@pytest.mark.parametrize("path", named(YAML_FILES))
def test_a_typo_names_its_path_and_the_choices(path):
    cls = kind_of(path)
    field = sorted(cls.model_fields)[0]
    with pytest.raises(ConfigError) as caught:
        load_config(cls, path, [f"{field}x=1"])
    message = str(caught.value)
    assert str(path) in message
    assert f"{field}x: unknown setting; did you mean '{field}'?" in message
    assert all(name in message for name in cls.model_fields)


def test_a_typo_deep_in_a_file_names_the_whole_path():
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate: unknown setting; .*\blr\b"):
        load_config(SFTConfig, CONFIGS / "tiny/sft.yaml", ["optimizer.learning_rate=1"])


@pytest.mark.parametrize("path", named(sorted(CONFIGS.glob("accelerate/*.yaml"))))
def test_each_launcher_file_is_one_that_accelerate_takes(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    own_file = (config.deepspeed_config or {}).get("deepspeed_config_file")
    if own_file:  # accelerate then takes the precision from that file and refuses one of its own
        assert find_config(own_file).is_file()
    assert config.mixed_precision in ((None,) if own_file else ("no", "bf16"))
    assert config.num_processes >= 1
    if config.distributed_type == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2


@pytest.mark.parametrize("path", named(sorted(CONFIGS.glob("deepspeed/*.json"))))
def test_each_deepspeed_file_is_one_that_deepspeed_takes(path):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    tree = json.loads(path.read_text(encoding="utf-8"))
    assert DeepSpeedZeroConfig(**tree["zero_optimization"]).stage in (2, 3)
