"""Every bar by its name: its unit, its meaning, what it is held against, and its formula.

A bar's formula takes the raw record of one measurement and gives the figure, so that a committed
figure can be computed again by anyone. A name keeps its meaning for good; another meaning takes
another name. The part before the first dot is the area, the file under ``results/``.
"""

from __future__ import annotations

import statistics

from benchmarks.edit_bars import EDIT
from benchmarks.formulas import (
    Bar,
    Formula,
    Raw,
    median_of,
    over_reports,
    percentile_of,
    pick,
    rate_of,
    ratio_of,
)
from benchmarks.hopper_bars import HOPPER
from benchmarks.objective_bars import ALIGN

CIRCLE = (
    Bar(
        "circle.cpu_seconds",
        "CPU s",
        "`make demo` after the set-up, summed over its processes; the slowest seed",
        "at most 720",
        over_reports(max, "cpu_seconds"),
    ),
    Bar(
        "circle.peak_rss_gib",
        "GiB",
        "peak memory of `make demo`; the largest seed",
        "under 6",
        over_reports(max, "peak_rss_gib"),
    ),
    Bar(
        "circle.gain_over_sft.dpo",
        "%",
        "relative gain of the three criteria's mean by the ruler, DPO; mean over seeds",
        "the better of SFT and SFT continued for as many steps",
        over_reports(statistics.fmean, "gain_over_sft.dpo.mean", 100),
    ),
    Bar(
        "circle.gain_over_sft.grpo",
        "%",
        "the same for the final model, GRPO on top of DPO; mean over seeds",
        "the better of SFT and SFT continued; the article's 19.7",
        over_reports(statistics.fmean, "gain_over_sft.grpo.mean", 100),
    ),
    Bar(
        "circle.seeds_gained",
        "share",
        "seeds whose 95 % intervals of both gains lie above zero",
        "at least 0.8",
        lambda raw: statistics.fmean(
            pick(report, "gain_over_sft.dpo.ci_low") > 0
            and pick(report, "gain_over_sft.grpo.ci_low") > 0
            for report in raw["reports"]
        ),
    ),
    Bar(
        "circle.win_rate",
        "%",
        "blind wins of the final model by the simulated designers; mean over seeds",
        "SFT: 50 would be no difference",
        over_reports(statistics.fmean, "win_rate.value", 100),
    ),
    Bar(
        "circle.reward_accuracy",
        "%",
        "held-out accuracy of the reward model, split by prompt; mean over seeds",
        "the designers' own agreement, `circle.reward_ceiling`",
        over_reports(statistics.fmean, "reward_model.accuracy", 100),
    ),
    Bar(
        "circle.reward_ceiling",
        "%",
        "how often one designer agrees with the others on the same pairs; mean over seeds",
        "100",
        over_reports(statistics.fmean, "reward_model.ceiling", 100),
    ),
)

CLI = (
    Bar(
        "cli.help_seconds",
        "CPU s",
        "`winsome --help`, a fresh process, median",
        "1",
        median_of("seconds"),
    ),
)

TINY = (
    Bar(
        "tiny.images_per_s",
        "images/s",
        "drawing 128 px in 12 steps, batch of 16, decoding included",
        "the stock pipeline: `tiny.draw_vs_diffusers`",
        rate_of("images", "seconds"),
    ),
    Bar(
        "tiny.draw_vs_diffusers",
        "x",
        "that drawing",
        "the stock diffusers pipeline, same noise and batch, same run",
        ratio_of("stock_seconds", "seconds"),
    ),
    Bar(
        "tiny.decode_vs_diffusers",
        "x",
        "decoding one frame by two-dimensional convolutions",
        "the stock autoencoder, same batch, same run",
        ratio_of("stock_decode_seconds", "decode_seconds"),
    ),
    Bar(
        "tiny.largest_difference",
        "1/255",
        "largest difference of a pixel from what the stock pipeline draws",
        "at most 1",
        lambda raw: float(raw["max_difference"]),
    ),
)


CPU = (
    Bar(
        "cpu.saved_bytes_ratio",
        "x",
        "activations that diffusers' eager block of the 20B model keeps, over selective saving's",
        "at least 2.5",
        lambda raw: raw["stock_bytes"] / raw["selective_bytes"],
    ),
    Bar(
        "cpu.recompute_flops_ratio",
        "x",
        "FLOPs of that block's forward and backward pass under selective saving",
        "those without any recomputation: 1",
        lambda raw: raw["selective_flops"] / raw["stock_flops"],
    ),
    Bar(
        "cpu.compiled_traffic_ratio",
        "share",
        "bytes of elementwise work of a compiled joint block, forward and backward, as Inductor "
        "plans its kernels for a processor",
        "those of diffusers' eager block",
        lambda raw: (
            (raw["none_forward_bytes"] + raw["none_backward_bytes"])
            / (raw["stock_forward_bytes"] + raw["stock_backward_bytes"])
        ),
    ),
    Bar(
        "cpu.dpo_forwards_ratio",
        "x",
        "FLOPs of a DPO pair with full checkpointing and a live reference, over ours, each cached "
        "draw used once",
        "10 forward passes of an image over 8; over 6 where draws are used again and again",
        lambda raw: raw["live_flops"] / (raw["cached_flops"] + raw["reference_flops"]),
    ),
    Bar(
        "cpu.optimizer_bytes_per_param",
        "bytes",
        "weights, gradients at rest, moments: 8-bit Adam, stochastic rounding, gradients released",
        "at most 4.1; AdamW with float32 masters takes 16",
        lambda raw: raw["bytes"] / raw["parameters"],
    ),
    Bar(
        "cpu.modulation_traffic_ratio",
        "share",
        "bytes that each of two processes receives in a step under FSDP2 when the modulation "
        "layers' rows stay where they are",
        "those with all parameters gathered, same gradients: at most 0.7",
        lambda raw: raw["split_bytes"] / raw["whole_bytes"],
    ),
)


def _share_ordered(better: int, worse: int) -> Formula:
    """Share of the pairs whose value at ``better`` is above that at ``worse``."""
    return lambda raw: statistics.fmean(pair[better] > pair[worse] for pair in raw["pairs"])


TEXT = (
    Bar(
        "text.order_agreement",
        "share",
        "graded posters: pairs that the text rendering scorer puts as a person does",
        "1; the common reward: `text.order_agreement_first_quote`",
        _share_ordered(3, 4),
    ),
    Bar(
        "text.order_agreement_first_quote",
        "share",
        "the same pairs by the edit distance of the first quoted string, same readings",
        "`text.order_agreement`",
        _share_ordered(5, 6),
    ),
    *(
        Bar(
            f"text.accuracy.level{level}.{engine}",
            "share",
            f"of 1,024 characters of GB/T 2312 level {level}, read by {engine} on clean pages",
            "1",
            lambda raw: raw["right"] / raw["characters"],
        )
        for level in (1, 2)
        for engine in ("ppocr_v6", "tesseract")
    ),
)


def _reward_bars(criterion: str) -> tuple[Bar, ...]:
    """One head of the reward model on 200 test prompts that three designers judged."""

    def of(key: str, less: str | None = None) -> Formula:
        def formula(raw: Raw) -> float:
            figures = pick(raw, f"report.criteria.{criterion}")
            return float(figures[key]) - (float(figures[less]) if less else 0.0)

        return formula

    return (
        Bar(
            f"rewards.accuracy.{criterion}",
            "share",
            f"tiny world, split by prompt: pairs on {criterion} that its head orders as the pick",
            f"`rewards.ceiling.{criterion}`",
            of("accuracy"),
        ),
        Bar(
            f"rewards.ceiling.{criterion}",
            "share",
            "the same picks: pairs that one designer orders as another",
            "1",
            of("ceiling"),
        ),
        Bar(
            f"rewards.ceiling_gap_low.{criterion}",
            "share",
            "accuracy less ceiling on the pairs that two designers decided: lower end of the 95 % "
            "interval",
            "above -0.05",
            of("ceiling_gap_low"),
        ),
        Bar(
            f"rewards.ece.{criterion}",
            "share",
            "calibration error over 10 bins of equal mass, less what perfect calibration would "
            "show on as many pairs",
            "at most 0.05",
            of("ece", less="ece_expected"),
        ),
    )


REWARDS = (
    Bar(
        "rewards.hacking_caught_at_ruler_drop",
        "%",
        "simulated drift of drawn posters (saturation, contrast, 8-px grid): how far the ruler has "
        "fallen when the monitors stop the run; the latest of the three; 100 if one is missed",
        "at most 5",
        lambda raw: max(
            100.0 * run["ruler_drops"][-1] if run["alarm_at"] is not None else 100.0
            for run in raw["hacks"].values()
        ),
    ),
    Bar(
        "rewards.hacking_false_alarms",
        "of 5",
        "Flow-GRPO of the tiny pipeline on the ruler, 24 rollouts, that the same limits stop",
        "0",
        lambda raw: float(sum(run["alarm_at"] is not None for run in raw["clean"])),
    ),
    *(bar for name in ("aesthetics", "instruction", "detail") for bar in _reward_bars(name)),
)


APP = (
    Bar(
        "app.next_images_p95_ms",
        "ms",
        "from Enter to the next task's four 512-pixel images painted, Chromium and server on one "
        "machine; p95 of 59 tasks",
        "at most 150",
        percentile_of("milliseconds", 95),
    ),
    Bar(
        "app.submit_p95_ms_50_annotators",
        "ms",
        "a submit over HTTP while 50 annotators work with about 15 s for a task, SQLite; p95",
        "at most 50",
        percentile_of("milliseconds", 95),
    ),
)

_STORM = "a storm: 8 processes, 50 annotators, k = 3, every answer sent 3 times, processes killed"


def _storm(engine: str) -> tuple[Bar, ...]:
    def bar(name: str, unit: str, meaning: str, against: str, formula: Formula) -> Bar:
        return Bar(f"store.{engine}.{name}", unit, f"{meaning}; {engine}", against, formula)

    return (
        bar("picks_per_s", "picks/s", _STORM, "-", lambda raw: raw["picks"] / raw["seconds"]),
        bar("claim_p99_ms", "ms", "claim in the storm", "-", percentile_of("claim_ms", 99)),
        bar("submit_p95_ms", "ms", "submit in the storm", "-", percentile_of("submit_ms", 95)),
        bar("storm_lost", "picks", "accepted answers missing", "0", lambda raw: float(raw["lost"])),
        bar(
            "storm_duplicates",
            "picks",
            "answers beyond one of an annotator to a task",
            "0",
            lambda raw: float(raw["duplicates"]),
        ),
        bar(
            "storm_wrong_tasks",
            "tasks",
            "tasks without exactly 3 different annotators",
            "0",
            lambda raw: float(raw["wrong_tasks"]),
        ),
    )


STORE = (
    *_storm("sqlite"),
    *_storm("postgresql"),
    Bar(
        "store.claim_p95_ms_1m_tasks",
        "ms",
        "claim with 1 million tasks, 6 million candidates",
        "twice that with 10,000 tasks of the same run",
        lambda raw: percentile_of("claim_ms", 95)(raw["stores"][-1]),
    ),
)

BARS: dict[str, Bar] = {
    bar.name: bar
    for area in (APP, CIRCLE, TINY, CLI, CPU, TEXT, REWARDS, STORE, HOPPER, ALIGN, EDIT)
    for bar in area
}
