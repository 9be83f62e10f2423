"""Flow-GRPO: rollouts, rewards, and what it refuses to start on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from run_data import FirstChannel, dpo_config, grpo_config, losses, write_data

import align.objectives.flow_grpo as flow_grpo
import align.rollout
from align.checkpoint import read_json
from align.commands.contact import send_sheets
from align.config import RolloutConfig
from align.mmdit.adapters import image_to_uint8, load_adapter
from align.mmdit.adapters.qwen_image import QwenImageAdapter
from align.online import train_grpo
from align.plan import workload_of
from align.preflight import PreflightError
from align.rollout import window_start
from annotate.settings import ConfigError
from annotate.store import PreferenceStore
from rewards.base import Score, ScorerSpec, ScoringError
from rewards.contact_sheets import read_sheets
from rewards.models import open_encoder
from rewards.models.preference import PreferenceConfig, PreferenceModel
from rewards.scorers.preference import PreferenceScorer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data")


class Scorer:
    """A scorer made of one function of the item and its number."""

    def __init__(self, score, needs=("latents",)) -> None:
        self.spec = ScorerSpec("test", "1", (), frozenset(needs))
        self._score = score
        self.items: list = []

    def score(self, items):
        self.items.extend(items)
        return [self._score(i, item) for i, item in enumerate(items)]


def test_the_reward_rises_and_the_first_ratio_is_one(data, untrained_folder, tmp_path):
    config = grpo_config(
        data,
        untrained_folder,
        tmp_path / "run",
        lora=None,
        optimizer={"lr": 3e-4},
        group_size=8,
        max_steps=12,
        save_every=0,
    )
    result = train_grpo(config, FirstChannel())
    rows = losses(result.folder)
    rewards = [rows[step]["reward"] for step in sorted(rows)]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.05
    # 16 images are drawn at once and 32 steps trained at once: shapes that some processors sum in
    # another order. With equal shapes it is exactly 1, see below.
    assert [row["ratio_mean"] for row in rows.values()] == [pytest.approx(1.0, abs=1e-5)] * 12
    assert all(row["reward"] == pytest.approx(row["reward/mean"]) for row in rows.values())
    preflight = read_json(result.folder / "run.json")["preflight"]
    assert preflight["log_ratio_max"] < 1e-4
    assert preflight["kl_gradient_norm"] > 0
    assert preflight["reward_std"] > 0
    assert preflight.keys() == {
        "accumulated", "batch_difference", "frac_reward_zero_std", "groups", "kl_gradient_norm",
        "log_ratio_alone", "log_ratio_by_sigma", "log_ratio_max", "reward", "reward_std",
        "weights_move_output",
    }  # fmt: skip
    assert (result.export / "model_index.json").is_file()


def test_several_updates_on_a_rollout_and_guidance_stay_on_policy(data, untrained_folder, tmp_path):
    config = grpo_config(
        data,
        untrained_folder,
        tmp_path / "run",
        rollout={"height": 32, "width": 32, "num_steps": 4, "window": 2, "guidance_scale": 2.0},
        updates_per_rollout=2,
        max_steps=4,
        save_every=0,
        micro_batch_size=2,
        contact_sheet_every=2,
        contact_sheet_prompts=1,
    )
    train_grpo(config, FirstChannel())
    rows = losses(config.output_dir)
    assert [step for step, row in rows.items() if "reward" in row] == [1, 3]
    assert rows[1]["log_ratio_abs"] == 0
    assert rows[2]["log_ratio_abs"] > 0
    # The second rollout's best paid prompt; the scorer saw latents, people see images.
    ((folder, sheet),) = read_sheets(config.output_dir).items()
    assert (folder.name, sheet.rollout, sheet.reason) == ("rollout-000002-0", 2, "")
    (task,) = sheet.tasks
    assert list(task.rewards.values()) == sorted(task.rewards.values(), reverse=True)
    assert len(task.rewards) == len(list((folder / "images").iterdir())) == 4
    with PreferenceStore.open(tmp_path / "studio") as store:
        assert [found.tasks for found in send_sheets(store, config.output_dir, 1)] == [1]
        assert store.tasks(kind="contact-sheet")[0].prompt_id == task.prompt_id


def test_a_group_of_one_noise_draws_its_first_steps_once(data, untrained_folder, tmp_path):
    """Two groups of four, a window of the last two of four steps: 2 rows twice, then 8 twice."""
    rollout = {"height": 32, "width": 32, "num_steps": 4, "window": 2, "window_range": (2, 4)}
    rollout |= {"shared_noise": True, "modulation_tables": True}
    settings = {"rollout": rollout, "max_steps": 1, "save_every": 0}
    rows = []

    def note(module, args, output):
        if isinstance(module, QwenImageTransformer2DModel):
            rows.append(len(output[0]))

    config = grpo_config(data, untrained_folder, tmp_path / "run", **settings)
    hook = torch.nn.modules.module.register_module_forward_hook(note)
    train_grpo(config, FirstChannel())
    hook.remove()
    assert rows[:4] == [2, 2, 8, 8]
    # A table's rows come from a product of another shape than the training forward's, which some
    # processors sum in another order.
    assert losses(config.output_dir)[1]["ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    drawn = workload_of(config).drawn
    unshared = workload_of(
        grpo_config(
            data,
            untrained_folder,
            tmp_path,
            **settings | {"rollout": {**rollout, "shared_noise": False}},
        )
    ).drawn
    assert (drawn, unshared) == (2 * 2 + 8 * 2, 8 * 4)
    with pytest.raises(ConfigError, match="not compiled and an algorithm that trains steps"):
        grpo_config(data, untrained_folder, tmp_path, **settings, blocks="joint", compile=True)
    settings["rollout"] = rollout | {"modulation_tables": False}
    with pytest.raises(ConfigError, match="shared_noise makes the images of a group alike"):
        grpo_config(data, untrained_folder, tmp_path, **settings, objective={"algorithm": "nft"})


@pytest.mark.parametrize("blocks", ["stock", "joint"])
def test_a_batch_that_trains_is_a_batch_that_was_drawn(data, untrained_folder, tmp_path, blocks):
    """Prompts of different lengths, a group a batch: the ratio is exactly 1, in bfloat16 too."""
    rollout = {"height": 32, "width": 32, "num_steps": 4, "window": 2, "batch_size": 4}
    config = grpo_config(
        data,
        untrained_folder,
        tmp_path,
        rollout=rollout,
        max_steps=1,
        save_every=0,
        micro_batch_size=4,
        ratio_tolerance=0,
        dtype="bfloat16",
        blocks=blocks,
        gradient_checkpointing=True,
    )
    train_grpo(config, FirstChannel())
    assert losses(tmp_path)[1]["log_ratio_abs"] == 0


def test_a_batch_is_decoded_before_the_next_is_drawn(data, untrained_folder, tmp_path, monkeypatch):
    """A group a batch, in order, and the images that decoding afterwards gives."""
    order, whole = [], []
    decode, sample = QwenImageAdapter.decode_latents, align.rollout.sample_sde

    def note_decode(self, latents):
        order.append(("decode", len(latents)))
        return decode(self, latents)

    def note_sample(*args, **settings):
        order.append(("draw", len(args[3])))
        drawn = sample(*args, **settings)
        whole.append(drawn.latents)
        return drawn

    monkeypatch.setattr(QwenImageAdapter, "decode_latents", note_decode)
    monkeypatch.setattr(align.rollout, "sample_sde", note_sample)
    scorer = Scorer(lambda i, item: Score(float(i)), needs=("image",))
    rollout = {"height": 32, "width": 32, "num_steps": 4, "window": 2, "batch_size": 4}
    config = grpo_config(
        data, untrained_folder, tmp_path, rollout=rollout, max_steps=1, save_every=0
    )
    train_grpo(config, scorer)
    assert order == [("draw", 4), ("decode", 4)] * 2
    adapter = load_adapter(untrained_folder, parts=("vae",))
    with torch.no_grad():
        pixels = torch.cat([image_to_uint8(decode(adapter, latents)) for latents in whole])
    assert [np.asarray(item.image).tolist() for item in scorer.items] == pixels.tolist()


def test_a_scorer_of_images_gets_images_and_its_prompt(data, untrained_folder, tmp_path):
    scorer = Scorer(lambda i, item: Score(float(i)), needs=("image",))
    config = grpo_config(data, untrained_folder, tmp_path / "run", max_steps=1, save_every=0)
    train_grpo(config, scorer)
    assert len(scorer.items) == 8
    assert len({item.sample_id for item in scorer.items}) == 8
    assert len({item.group_id for item in scorer.items}) == 2
    for item in scorer.items:
        assert item.image.size == (32, 32)
        assert item.latents is None
        assert item.metadata["category"] == ""  # what a mix weighs by
        assert item.prompt in (data / "prompts.txt").read_text()


def test_a_reward_model_that_reads_pixels_is_a_reward(data, untrained_folder, tmp_path):
    torch.manual_seed(0)
    encoder = open_encoder({"type": "pixels", "width": 8})
    sizes = {"image_dim": 8, "text_dim": 8, "stats_dim": 13, "width": 16}
    model = PreferenceModel(PreferenceConfig(["overall"], **sizes), encoder.network)
    scorer = PreferenceScorer(model, encoder, "1")
    config = grpo_config(data, untrained_folder, tmp_path / "run", max_steps=1, save_every=0)
    train_grpo(config, scorer)
    (row,) = losses(config.output_dir).values()
    assert row["reward_std"] > 0
    assert row["grad_norm"] > 0


def test_a_reward_on_latents_can_be_shown_the_images(data, untrained_folder, tmp_path):
    seen = Scorer(lambda i, item: Score(float(i)), needs=("latents",))
    config = grpo_config(
        data,
        untrained_folder,
        tmp_path / "run",
        reward={"path": tmp_path, "sees": "images"},
        max_steps=1,
        save_every=0,
    )
    train_grpo(config, seen)
    assert {item.image.size for item in seen.items} == {(32, 32)}
    assert {item.latents for item in seen.items} == {None}


@pytest.mark.parametrize(
    ("score", "error", "message"),
    [
        (lambda i, item: Score(1.0), PreflightError, "do not vary within any group"),
        (
            lambda i, item: Score(None, error="out of memory") if i == 5 else Score(float(i)),
            ScoringError,
            r"failed on sample '0/\w+/1': out of memory",
        ),
        (
            lambda i, item: Score(None) if i == 2 else Score(float(i)),
            ScoringError,
            r"does not apply to sample '0/\w+/2'",
        ),
    ],
)
def test_rewards_that_teach_nothing_stop_the_run(
    data, untrained_folder, tmp_path, score, error, message
):
    config = grpo_config(data, untrained_folder, tmp_path / "run")
    with pytest.raises(error, match=message):
        train_grpo(config, Scorer(score))
    assert losses(config.output_dir) == {}
    assert not (config.output_dir / "final").exists()


def test_rewards_that_differ_little_for_their_size_are_not_equal(data, untrained_folder, tmp_path):
    config = grpo_config(data, untrained_folder, tmp_path / "run", max_steps=1, save_every=0)
    metrics = train_grpo(config, Scorer(lambda i, item: Score(1e8 + i % 4))).metrics
    assert metrics["frac_reward_zero_std"] == 0
    assert metrics["reward_std"] == pytest.approx(1.25**0.5)


def test_a_replay_that_differs_stops_the_run(data, untrained_folder, tmp_path, monkeypatch):
    """As if the weights that draw were not the weights that train."""
    import align.online

    draw = align.online.draw_rollout

    def draw_then_change(policy, *args):
        rollout = draw(policy, *args)
        for parameter in policy.trainable_parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        return rollout

    monkeypatch.setattr(align.online, "draw_rollout", draw_then_change)
    with pytest.raises(PreflightError, match=r"log-ratios up to [\d.]+ nats where 0\.0001"):
        train_grpo(grpo_config(data, untrained_folder, tmp_path / "run"), FirstChannel())


def test_a_kl_without_gradient_stops_the_run(data, untrained_folder, tmp_path, monkeypatch):
    """The KL of the very loss that trains, as if it, or the whole loss, were under ``no_grad``."""
    without = (flow_grpo, "gaussian_kl"), (flow_grpo.FlowGRPO, "loss")
    for place, (owner, name) in enumerate(without):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, torch.no_grad()(getattr(owner, name)))
            config = grpo_config(data, untrained_folder, tmp_path / f"run-{place}")
            with pytest.raises(PreflightError, match="the reference has a gradient of norm 0"):
                train_grpo(config, FirstChannel())


def test_a_reward_model_below_its_gate_is_refused(data, untrained_folder, tmp_path):
    from rewards.folder import REPORT_FILE, WEIGHTS_FILE, file_sha256

    folder = tmp_path / "reward"
    folder.mkdir()
    (folder / WEIGHTS_FILE).write_bytes(b"weights")
    report = {"accuracy": 0.55, "model_sha256": file_sha256(folder / WEIGHTS_FILE)}
    report |= {"ci_low": 0.5, "ci_high": 0.6, "ceiling": 0.8}
    (folder / REPORT_FILE).write_text(json.dumps(report))
    config = grpo_config(
        data, untrained_folder, tmp_path / "run", reward={"path": folder, "min_accuracy": 0.6}
    )
    with pytest.raises(ValueError, match=r"refused: held-out accuracy is 0\.550"):
        train_grpo(config)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="GRPO needs a reward"):
        train_grpo(grpo_config(data, untrained_folder, tmp_path / "run"))


def test_settings_that_cannot_work_are_refused(data, untrained_folder, tmp_path):
    for changes, message in (
        ({"updates_per_rollout": 4}, "max_steps must be a multiple of updates_per_rollout 4"),
        ({"lora": {"dropout": 0.1}}, r"lora\.dropout must be 0 in GRPO"),
        ({"rollout": {"num_steps": 2, "window": 3}}, "window of 3 steps does not fit"),
    ):
        with pytest.raises(ConfigError, match=message):
            grpo_config(data, untrained_folder, tmp_path, **changes)
    with pytest.raises(ConfigError, match="give beta or beta_sum"):
        dpo_config(data, untrained_folder, tmp_path, objective={"beta": 1, "beta_sum": 1})


def test_the_window_stays_in_its_range_and_moves():
    config = RolloutConfig(num_steps=10, window=2, window_range=(1, 6))
    starts = {window_start(config, seed=0, iteration=i) for i in range(100)}
    assert starts == {1, 2, 3, 4}
    assert RolloutConfig(num_steps=10, window=2).window_bounds == (0, 5)


@pytest.mark.parametrize(
    ("algorithm", "objective", "rollout", "changes"),
    [
        ("nft", {"old_policy": "average"}, {}, {"lora": None, "ema": {"decay": 0.5}}),
        ("awm", {"advantage": "global", "weighting": "sigma"}, {}, {"micro_batch_size": 4}),
        ("online_dpo", {"draws": 1, "dpo": {"beta": 500, "anchor_weight": 1.0}}, {}, {}),
        ("grpo_guard", {}, {"sde": "cps", "window_order": "progressive"}, {}),
        ("flow_dppo", {"min_reward_range": 1e-3}, {"sde": "dance"}, {"updates_per_rollout": 2}),
    ],
    ids=["nft", "awm", "online_dpo", "grpo_guard", "flow_dppo"],
)
def test_each_algorithm_starts_on_policy_and_moves(
    data, untrained_folder, tmp_path, algorithm, objective, rollout, changes
):
    config = grpo_config(
        data,
        untrained_folder,
        tmp_path / "run",
        objective={"algorithm": algorithm, "beta": 0.01} | objective,
        rollout={"height": 32, "width": 32, "num_steps": 4, "window": 1} | rollout,
        max_steps=2,
        save_every=0,
        **changes,
    )
    train_grpo(config, FirstChannel())
    rows = losses(config.output_dir)
    assert all(row["grad_norm"] > 0 for row in rows.values())
    preflight = read_json(config.output_dir / "run.json")["preflight"]
    assert preflight["weights_move_output"] > 0
    assert preflight["batch_difference"] < 1e-4
    assert not any(name.endswith("/share") for name in rows[1])
    if algorithm == "nft":
        assert rows[1]["velocity_moved"] == 0
    elif algorithm == "online_dpo":
        assert rows[1]["rewards/margins"] == 0
    elif algorithm == "flow_dppo":  # 8 images are drawn at once and half of them trained at once
        assert rows[1]["log_ratio_abs"] < 1e-4 < rows[2]["log_ratio_abs"]
    else:
        assert rows[1]["log_ratio_abs"] == 0


def test_a_progressive_window_moves_towards_the_image_and_starts_again():
    config = RolloutConfig(
        num_steps=10, window=2, window_range=(0, 4), window_order="progressive", window_rollouts=3
    )
    starts = [window_start(config, 0, iteration) for iteration in range(1, 13)]
    assert starts == [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0]
    whole = RolloutConfig(num_steps=10, window=10, window_range=(0, 10))
    assert {window_start(whole, 0, iteration) for iteration in range(20)} == {0}


def test_settings_of_the_siblings_that_cannot_work_are_refused(data, untrained_folder, tmp_path):
    for changes, message in (
        ({"objective": {"algorithm": "nft", "old_policy": "average"}}, "'average' needs ema"),
        ({"objective": {"advantage": "gdpo"}}, r"'gdpo' needs reward\.weights"),
        ({"rollout": {"sde": "cps", "num_steps": 4, "window": 4}}, "last step of cps draws"),
        ({"rollout": {"sde": "cps", "noise_level": 1.2}}, "noise_level of cps must be"),
        (
            {"objective": {"algorithm": "online_dpo", "dpo": {"tie_threshold": 0.1}}},
            r"tie_threshold is 0\.1, and online_dpo has no ties",
        ),
        (
            {"objective": {"algorithm": "online_dpo"}, "updates_per_rollout": 2, "save_every": 0},
            "takes one update a rollout",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            grpo_config(data, untrained_folder, tmp_path / "run", **changes)
