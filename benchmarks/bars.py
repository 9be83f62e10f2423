"""Every bar by its name: its unit, its meaning, what it is held against, and its formula.

A bar's formula takes the raw record of one measurement and gives the figure, so that a committed
figure can be computed again by anyone. A name keeps its meaning for good; another meaning takes
another name. The part before the first dot is the area, the file under ``results/``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Raw = Mapping[str, Any]
Formula = Callable[[Raw], float]


@dataclass(frozen=True)
class Bar:
    """One thing that is measured."""

    name: str
    unit: str
    meaning: str
    against: str
    """What the figure is held against: a limit, a prediction, another program in the same run."""
    formula: Formula
    needs: Literal["cpu", "h200"] = "cpu"
    """The least machine that can measure it."""

    @property
    def area(self) -> str:
        return self.name.partition(".")[0]


def pick(record: Raw, path: str) -> Any:
    """The value at dotted ``path`` in nested mappings."""
    value: Any = record
    for key in path.split("."):
        value = value[key]
    return value


def over_reports(combine: Callable[[list[float]], float], path: str, scale: float = 1) -> Formula:
    """``combine`` over the demo reports of several seeds, of the value at ``path``."""
    return lambda raw: scale * combine([float(pick(report, path)) for report in raw["reports"]])


def median_of(key: str) -> Formula:
    """The median of the repeated measurements under ``key``."""
    return lambda raw: float(statistics.median(raw[key]))


def percentile_of(key: str, percent: int) -> Formula:
    """The ``percent``-th percentile (nearest rank) of the measurements under ``key``."""

    def formula(raw: Raw) -> float:
        ordered = sorted(raw[key])
        rank = -(-len(ordered) * percent // 100)  # ceiling
        return float(ordered[max(rank, 1) - 1])

    return formula


def ratio_of(numerator: str, denominator: str) -> Formula:
    """Median of one list of measurements over the median of another from the same run."""
    return lambda raw: statistics.median(raw[numerator]) / statistics.median(raw[denominator])


def rate_of(count: str, seconds: str) -> Formula:
    """A count over the median of the seconds it took."""
    return lambda raw: raw[count] / statistics.median(raw[seconds])


def gib(key: str) -> Formula:
    """Bytes under ``key`` in GiB."""
    return lambda raw: raw[key] / 2**30


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
        "clean runs of 30 rollouts that the same limits stop",
        "0",
        lambda raw: float(sum(run["alarm_at"] is not None for run in raw["clean"])),
    ),
    *(bar for name in ("aesthetics", "instruction", "detail") for bar in _reward_bars(name)),
)


def _hopper(name: str, unit: str, meaning: str, against: str, formula: Formula) -> Bar:
    return Bar(f"hopper.{name}", unit, meaning, against, formula, needs="h200")


_SPEEDUP = ratio_of("baseline_ms", "ms")

HOPPER = (
    _hopper(
        "dpo_pair_speedup",
        "x",
        "DPO pair, 1024 px, 512 text tokens, full depth and parameters, cached reference",
        "diffusers eager with full checkpointing and a live reference, same run: 1.8",
        _SPEEDUP,
    ),
    _hopper(
        "dpo_pair_speedup_live_ref",
        "x",
        "the same with a live reference",
        "as above: 1.4",
        _SPEEDUP,
    ),
    _hopper(
        "useful_rate",
        "share",
        "useful matrix rate of that step",
        "the 8192-cubed bf16 matmul rate of the same run: 0.68",
        lambda raw: raw["useful_flops"] / statistics.median(raw["seconds"]) / raw["matmul_flops"],
    ),
    _hopper(
        "useful_rate_with_optimizer",
        "share",
        "the same with the optimizer step",
        "as above: 0.60",
        lambda raw: raw["useful_flops"] / statistics.median(raw["seconds"]) / raw["matmul_flops"],
    ),
    _hopper(
        "peak_gib.no_recompute",
        "GiB",
        "peak of full-parameter DPO with a real optimizer step, no matmul computed twice",
        "at most 118",
        gib("peak_bytes"),
    ),
    _hopper(
        "peak_gib.full_recompute",
        "GiB",
        "the same, all recomputed",
        "at most 86",
        gib("peak_bytes"),
    ),
    _hopper("peak_gib.adafactor", "GiB", "the same, Adafactor", "at most 48", gib("peak_bytes")),
    _hopper(
        "rollout_ips.no_cfg",
        "images/s",
        "rollout, 512 px, 10 steps, group of 16, no guidance",
        "3.2",
        rate_of("images", "seconds"),
    ),
    _hopper("rollout_ips.cfg", "images/s", "with guidance", "1.6", rate_of("images", "seconds")),
    _hopper(
        "rollout_vs_diffusers.same_batch",
        "x",
        "that rollout",
        "the diffusers loop at the same batch, same run: 1.2",
        _SPEEDUP,
    ),
    _hopper(
        "rollout_vs_diffusers.batch1",
        "x",
        "that rollout at batch 1",
        "the diffusers loop, same run: 1.8",
        _SPEEDUP,
    ),
    _hopper(
        "grpo_ips",
        "images/s",
        "full-parameter GRPO step, 512 px, 10 steps, window of 2, no guidance, one card",
        "1.0",
        rate_of("images", "seconds"),
    ),
    _hopper(
        "logprob_gap",
        "nats",
        "largest difference of a log-probability at rollout and at training",
        "0",
        lambda raw: float(raw["max_abs_difference"]),
    ),
    _hopper(
        "kernel_bandwidth_share",
        "share",
        "fused kernels' bytes per second",
        "the copy bandwidth of the same run: 0.8",
        lambda raw: raw["bytes"] / statistics.median(raw["seconds"]) / raw["copy_bytes_per_s"],
    ),
    _hopper(
        "mixed_length_speedup.1024",
        "x",
        "batch of four prompts of 64 to 1024 tokens, 1024 px",
        "the same padded with a mask, same run: 1.3",
        _SPEEDUP,
    ),
    _hopper("mixed_length_speedup.512", "x", "the same at 512 px", "as above: 1.6", _SPEEDUP),
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
    bar.name: bar for bar in (*APP, *CIRCLE, *TINY, *CLI, *CPU, *TEXT, *REWARDS, *STORE, *HOPPER)
}
