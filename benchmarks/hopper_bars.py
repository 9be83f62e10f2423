"""The bars of Qwen/Qwen-Image on one H200; `benchmarks.hopper` measures them."""

from __future__ import annotations

import statistics

from benchmarks.formulas import Bar, Formula, gib, rate_of, ratio_of

__all__ = ["HOPPER"]


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
