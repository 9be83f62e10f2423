"""The whole circle in miniature: every step runs, and the report holds what it promises."""

import json

import pytest

from align.demo.circle import MODELS, _claim, run_demo
from align.demo.config import DemoConfig
from align.demo.report import headline
from annotate.records import Question
from annotate.settings import load_config
from annotate.store import PreferenceStore
from annotate.web.samples import grid, sample_image
from rewards.lock import FolderInUseError, FolderLock

SMALL = [
    "train_prompts=12", "validation_prompts=10", "test_prompts=10", "test_images=1",
    "candidates=4", "references=40", "num_steps=4", "open_tasks=3",
    "settings={sft: [max_steps=4, validation.every=2], reward: [epochs=2], dpo: [max_steps=3],"
    " grpo: [max_steps=2, prompts_per_step=2, micro_batch_size=16, reward.min_accuracy=0]}",
]  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "run"
    config = load_config(DemoConfig, "configs/tiny/demo.yaml", [*SMALL, f"folder={folder}"])
    run_demo(config)
    return config


def test_the_report_has_every_figure(demo):
    report = json.loads((demo.folder / "report.json").read_text())
    for key in ("seconds", "cpu_seconds", "seed", "ruler_sha256", "peak_rss_gib"):
        assert report[key] is not None
    assert len(report["snapshot_digest"]) == 64
    for model in ("base", "sft", "dpo", "grpo"):
        figures = report["criteria"][model]
        assert figures["mean"] == pytest.approx(
            sum(figures[k] for k in ("aesthetics", "instruction", "detail")) / 3
        )
    better = max(report["criteria"]["sft"]["mean"], report["sft_continued"]["mean"])
    for model in ("dpo", "grpo"):
        gain = report["gain_over_sft"][model]
        assert gain["mean"] == pytest.approx(report["criteria"][model]["mean"] / better - 1)
        assert gain["ci_low"] <= gain["mean"] <= gain["ci_high"]
        assert report["headroom_closed"][model] is not None
    assert 0 <= report["win_rate"]["ci_low"] <= report["win_rate"]["ci_high"] <= 1
    assert {"accuracy", "ci_low", "ci_high", "ceiling"} <= report["reward_model"].keys()


def test_one_line_says_what_came_out():
    gain = {"mean": 0.0381, "ci_low": 0.0229, "ci_high": 0.0561}
    report = {"gain_over_sft": {"grpo": gain}, "win_rate": {"value": 0.6649}}
    assert headline(report) == (
        "the final model gains +3.8 % [+2.3, +5.6] over SFT by the ruler and wins 66 % of blind "
        "comparisons by the simulated designers"
    )


def test_the_page_stands_alone(demo):
    page = (demo.folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 32
    assert "http" not in page.replace("http-equiv", "")


def test_the_studio_has_work_for_a_person_and_the_runs(demo):
    store = PreferenceStore.open(demo.folder / "studio")
    claim = store.claim(store.user("admin").id)
    assert claim is not None
    assert claim.question == Question.OVERALL
    assert store.progress(store.user("admin").id).remaining >= 3  # and what designers skipped
    runs = {run.id.rsplit("-", 1)[-1]: run for run in store.runs()}
    assert {"sft", "sft_continued", "reward", "dpo", "grpo"} <= runs.keys()
    digest = json.loads((demo.folder / "report.json").read_text())["snapshot_digest"]
    assert runs["dpo"].snapshot_digest == runs["reward"].snapshot_digest == digest
    shown = grid(runs["dpo"])  # every model, on the held-out prompts
    assert [name.split("-")[1] for name in shown["sets"]] == ["base", *MODELS[1:]]
    assert shown["all_rows"] == 10
    assert all(None not in row["images"] for row in shown["rows"])
    first = shown["rows"][0]["images"][0]
    assert sample_image(runs["grpo"], shown["sets"][0], first).is_file()
    store.close()


def test_a_wrong_setting_is_refused_before_anything_is_moved(demo):
    before = sorted(demo.folder.rglob("*"))
    for changes, fault in (
        ({"settings": {"grpo": ("typo=1",)}}, "typo: unknown setting"),
        ({"settings": {"reward": ("epochs=0",)}}, "epochs: Input should be greater"),
        ({"model": str(demo.folder / "studio")}, "no diffusers pipeline at .*studio"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=fault):
            run_demo(demo.model_copy(update={"seed": 5, **changes}))
    other = demo.model_copy(update={"seed": 5})
    with FolderLock(demo.folder), pytest.raises(FolderInUseError, match="in use by process"):
        run_demo(other)
    assert sorted(demo.folder.rglob("*")) == before
    assert not demo.folder.with_name("run.1").exists()


def test_another_demo_is_moved_aside(demo):
    with _claim(demo.model_copy(update={"seed": 5})):
        assert sorted(path.name for path in demo.folder.iterdir()) == [".lock", "demo.yaml"]
        assert (demo.folder.with_name("run.1") / "report.json").is_file()
        with pytest.raises(FolderInUseError):
            FolderLock(demo.folder)
