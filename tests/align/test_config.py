"""Settings in YAML: overrides, numbers, and faults that name their path and the choices."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.config import DPOConfig, SFTConfig, resolve_model
from annotate.settings import ConfigError, dump_config, flatten_config, load_config
from rewards.scorers.config import RewardMixConfig, RewardServerConfig

SFT = """\
model: tiny
output_dir: runs/sft
lora: null
data:
  path: data.jsonl
optimizer:
  lr: 1e-5
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "sft.yaml"
    path.write_text(SFT)
    return path


def test_overrides_reach_into_what_the_file_leaves_out_or_sets_to_null(path):
    config = load_config(
        SFTConfig, path, ["lora.rank=8", "ema.decay=0.5", "optimizer.betas=[0, 0.5]"]
    )
    assert config.optimizer.lr == 1e-5
    assert config.optimizer.betas == (0.0, 0.5)
    assert config.lora is not None
    assert config.lora.rank == 8
    assert config.ema is not None
    assert config.ema.decay == 0.5
    assert load_config(SFTConfig, path, ["data.min_score=null"]).data.min_score is None


def test_the_resolved_configuration_is_a_valid_input(path, tmp_path):
    config = load_config(SFTConfig, path, ["lora.rank=8"])
    (tmp_path / "resolved.yaml").write_text(dump_config(config))
    assert load_config(SFTConfig, tmp_path / "resolved.yaml") == config
    assert flatten_config(config)["lora.rank"] == 8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora=8", r"lora: must hold settings of its own: alpha, .*rank.* \(got 8\)"),
        ("lora.rnk=8", r"lora\.rnk: unknown setting; did you mean 'rank'\? valid choices: alpha, "),
        ("lora.rank=-1", r"lora\.rank: Input should be greater than 0 \(got -1\)"),
        ("optimizer.lr=.inf", r"optimizer\.lr: Input should be a finite number \(got inf\)"),
        ("optimizer.lr=yes", r"optimizer\.lr: Input should be a valid number.*\(got 'true'\)"),
        ("max_steps=on", r"max_steps: Input should be a valid integer.*\(got 'true'\)"),
        ("micro_batch_size=true", r"micro_batch_size: Input .*\(got 'true'\)"),
        ("lora.rank=1000000000000", r"lora\.rank: Input should be less than 2147483648"),
        ("optimizer.betas=[0.9, 1]", r"optimizer\.betas\.1: Input should be less than 1 \(got 1\)"),
        ("samples={prompts: p, height: 40}", r"samples\.height: .* a multiple of 16 \(got 40\)"),
        ("data.buckets=[[64, 40]]", r"data\.buckets\.0\.1: .* a multiple of 16 \(got 40\)"),
        ("data.min_score=.nan", r"data\.min_score: Input should be a finite number \(got nan\)"),
        ("optimizer.schedule=step", r"optimizer\.schedule: .*'constant', 'linear' or 'cosine'"),
        ("max_steps", "'max_steps' is not of the form"),
        ("model.name=x", "model is 'tiny', which has no keys"),
        ("data.height=128", "data: give height and width or none"),
        ("data=[", "holds invalid YAML"),
    ],
)
def test_a_fault_is_named(path, override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(SFTConfig, path, [override])


def test_a_fault_inside_a_union_has_the_path_of_the_file(tmp_path):
    path = tmp_path / "dpo.yaml"
    path.write_text("model: tiny\noutput_dir: x\ndata: {type: jsonl, path: p, polcy: win_lose}\n")
    with pytest.raises(ConfigError, match=r"  data\.polcy: unknown setting; valid choices: height"):
        load_config(DPOConfig, path)
    with pytest.raises(ConfigError, match=r"data: .*'snapshot', 'jsonl'"):
        load_config(DPOConfig, path, ["data.type=csv"])


def test_a_fault_inside_a_list_has_its_place_and_the_choices(tmp_path):
    path = tmp_path / "server.yaml"
    path.write_text("scorers:\n  - {type: text_rendering, enginee: tesseract}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(RewardServerConfig, path)
    choices = "did you mean 'engine'? valid choices: clean_face, clean_font, engine, layout"
    assert str(caught.value).splitlines()[1:] == [
        f"  scorers.0.enginee: unknown setting; {choices}, precision, type"
    ]
    path.write_text("training: [{wieght: 2, scorer: {type: preference, path: x, min_accurac: 1}}]")
    with pytest.raises(ConfigError) as caught:
        load_config(RewardMixConfig, path)
    assert "training.0.wieght: unknown setting; did you mean 'weight'?" in str(caught.value)
    assert "training.0.scorer.min_accurac: unknown setting; did you mean" in str(caught.value)
    path.write_text("scorers: []")
    with pytest.raises(ConfigError, match="scorers: Tuple should have at least 1 item"):
        load_config(RewardServerConfig, path)


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "broken.yaml"
    with pytest.raises(FileNotFoundError, match=r"broken\.yaml"):
        load_config(SFTConfig, path)
    with pytest.raises(FileNotFoundError, match=r"; did you mean configs/tiny/sft\.yaml\?"):
        load_config(SFTConfig, "configs/tiny/stf.yaml")
    for text, message in (
        ("a: [", r"broken\.yaml is not valid YAML"),
        ("- a\n", "must hold a mapping of settings, got list"),
        ("model: a\nmodel: b\n", r"key 'model' stands twice \(line 2\)"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_config(SFTConfig, path)


def test_the_word_tiny_is_the_pipeline_that_ships():
    assert Path(resolve_model("tiny")).name == "tiny"
    assert resolve_model("Qwen/Qwen-Image") == "Qwen/Qwen-Image"
