"""Memory, time and money of a run before it starts.

Bytes and FLOPs are `align.ledger`'s. Rates are assumptions, taken from published figures and from
counted traffic; `ASSUMPTIONS` says them and every plan prints them. No time here was measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from align.config import DPOConfig, GRPOConfig, SFTConfig, resolve_model
from align.ledger import ModelShape, Tokens, state_bytes_per_parameter

__all__ = [
    "ASSUMPTIONS",
    "GPUS",
    "Gpu",
    "Plan",
    "Sharding",
    "Workload",
    "make_plan",
    "scaling_curve",
    "workload_of",
]

GIB = 2**30
Sharding = Literal["none", "zero2", "zero3", "fsdp2", "hsdp"]
SHARDS_WEIGHTS = ("zero3", "fsdp2", "hsdp")


@dataclass(frozen=True)
class Gpu:
    """One card and what joins it to others."""

    gib: float
    """Memory that a process can have."""
    tflops: float
    """Dense bfloat16 peak."""
    gb_per_s: float
    """Memory bandwidth."""
    bus_gb_per_s: float
    """Of collectives inside a machine, as NCCL counts it."""
    host_gb_per_s: float
    """From pinned host memory."""


GPUS = {
    "h200-141gb": Gpu(139, 989, 4800, 370, 50),
    "h100-80gb": Gpu(78, 989, 3350, 370, 50),
    "h800-80gb": Gpu(78, 989, 3350, 165, 50),
    "a100-80gb": Gpu(78, 312, 2040, 230, 25),
    "l40s-48gb": Gpu(44, 362, 864, 25, 25),
    "rtx4090-24gb": Gpu(23, 165, 1008, 20, 25),
}
GPUS_A_MACHINE = 8
MACHINE_GB_PER_S = 340.0
"""Into one machine of 8 x 400 Gbit/s."""

GEMM, ATTENTION_FORWARD, ATTENTION_BACKWARD, BANDWIDTH = 0.71, 0.64, 0.51, 0.9
"""Shares of the peaks that matrix products, attention and elementwise work reach."""
ELEMENTWISE = {"stock": (91.2, 184.4), "joint": (122.3, 215.6), "compiled": (33.7, 69.9)}
"""Forward and backward traffic for each token and block, in units of the model's width. Counted of
eager blocks (`benchmarks.cpu`); joint ones turn in real numbers, which pays when compiled."""
WORKSPACE = 3 * GIB
GATHERED = 2 * 10**9
"""ZeRO-3's gathered parameters: at most 10^9 live ones in bfloat16."""

ASSUMPTIONS = (
    f"matrix products at {GEMM:.0%} of the bf16 peak, attention at {ATTENTION_FORWARD:.0%} forward "
    f"and {ATTENTION_BACKWARD:.0%} backward (cuDNN on Hopper), elementwise traffic at "
    f"{BANDWIDTH:.0%} of the bandwidth",
    f"{WORKSPACE // GIB} GiB for the CUDA context, workspaces and fragmentation",
    "images and prompts are encoded beforehand; validation, decoding and rewards are not counted",
    "collectives overlap with computing; a step takes the longer of the two; so does a streamed "
    "reference with its copies out of host memory",
    f"between machines of {GPUS_A_MACHINE}: {MACHINE_GB_PER_S:.0f} GB/s each; hsdp shards inside a "
    "machine",
)


@dataclass(frozen=True)
class Workload:
    """What a configuration asks of the GPUs, whatever they are."""

    kind: Literal["sft", "dpo", "grpo"]
    shape: ModelShape
    tokens: Tokens
    config: SFTConfig | DPOConfig | GRPOConfig
    samples: int
    """Trained forward passes of one sample, for one optimizer step over all processes."""
    micro_samples: int | None
    """Of them in one forward pass of one process; None: all of its share."""
    drawn: int = 0
    """Forward passes of one sample without a gradient, for one optimizer step."""

    @property
    def recompute(self) -> str:
        return self.config.recompute

    @property
    def trained(self) -> int:
        lora = self.config.lora
        return self.shape.trained_parameters(None if lora is None else lora.rank)

    @property
    def element_size(self) -> int:
        """Of activations: 2 in bfloat16, by autocast or by the weights' own type."""
        config = self.config
        halves = config.mixed_precision == "bf16" or config.optimizer.weights != "float32"
        return 2 if halves or (config.lora and config.dtype == "bfloat16") else 4

    @property
    def reference(self) -> Literal["cached", "live", "streamed"]:
        """Where a reference is during the steps; ``cached``: nowhere."""
        config = self.config
        if isinstance(config, DPOConfig):
            return config.reference.mode
        is_live = isinstance(config, GRPOConfig) and config.objective.needs_reference
        return "live" if is_live else "cached"


def workload_of(
    config: SFTConfig | DPOConfig | GRPOConfig,
    text_tokens: int = 512,
    size: tuple[int, int] | None = None,
) -> Workload:
    """Read a configuration.

    Args:
        text_tokens: of a prompt; what it pads to, unless the blocks are joint.
        size: height and width in pixels where the configuration names none.

    Raises:
        ValueError: no image size is known, or the model's shape is not.
    """
    shape = ModelShape.of(resolve_model(config.model))
    micro = config.micro_batch_size
    if isinstance(config, GRPOConfig):
        rollout, updates = config.rollout, config.updates_per_rollout
        images = config.prompts_per_step * config.group_size
        drawing = float(rollout.num_steps)
        if rollout.shared_noise:  # what one image draws of the steps before the window, on average
            first, end = rollout.window_bounds
            before = first + (end - first - rollout.window) / 2
            drawing -= before * (1 - 1 / config.group_size)
        passes = drawing * (2 if rollout.guidance_scale > 1 else 1)
        objective = config.objective
        trained = rollout.window if objective.trains_steps else objective.draws
        if not objective.trains_steps or config.recompute_log_probs or rollout.guidance_scale > 1:
            passes += 0 if objective.algorithm == "online_dpo" else trained
        samples = images * trained // updates
        if objective.algorithm == "online_dpo":
            samples = 2 * config.prompts_per_step * trained
        tokens = shape.tokens(rollout.height, rollout.width, text_tokens)
        return Workload(
            "grpo", shape, tokens, config, samples, micro, drawn=round(images * passes / updates)
        )
    data = config.data
    if data.height is not None and data.width is not None:
        size = (data.height, data.width)
    if size is None:
        raise ValueError("data.height and data.width are null: give --size, in pixels")
    tokens = shape.tokens(*size, text_tokens)
    factor = 2 if isinstance(config, DPOConfig) else 1  # the two images of a pair
    return Workload(
        "dpo" if factor == 2 else "sft",
        shape,
        tokens,
        config,
        factor * config.batch_size,
        None if micro is None else factor * micro,
    )


@dataclass(frozen=True)
class Plan:
    """What a run takes. Bytes are of one GPU, seconds of one optimizer step."""

    workload: Workload
    gpu: Gpu
    count: int
    sharding: Sharding
    memory: dict[str, float]
    compute_seconds: float
    communication_seconds: float
    optimizer_seconds: float
    drawing_seconds: float
    useful_flops: float
    """Of one step on one GPU: three forward passes a trained sample, one a drawn sample."""

    @property
    def peak_bytes(self) -> float:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.gpu.gib * GIB

    @property
    def step_seconds(self) -> float:
        trained = max(self.compute_seconds, self.communication_seconds)
        return trained + self.optimizer_seconds + self.drawing_seconds

    @property
    def tokens_per_second(self) -> float:
        """Trained tokens, over all GPUs."""
        return self.workload.samples * self.workload.tokens.total / self.step_seconds

    @property
    def mfu(self) -> float:
        """Useful FLOPs over the bf16 peak."""
        return self.useful_flops / self.step_seconds / (self.gpu.tflops * 1e12)

    @property
    def gpu_hours(self) -> float:
        return self.workload.config.max_steps * self.step_seconds * self.count / 3600


def make_plan(workload: Workload, gpu: Gpu, count: int, sharding: Sharding | None = None) -> Plan:
    """The plan of one workload on ``count`` GPUs.

    Args:
        sharding: the launch's; None: ZeRO-3 where all parameters are trained on several GPUs.

    Raises:
        ValueError: the GPUs cannot share the batch, or the optimizer cannot be sharded.
    """
    if sharding is None:
        sharding = "zero3" if count > 1 and workload.config.lora is None else "none"
    share, micro = _share(workload, count, sharding)
    seconds, useful = _compute(workload, gpu, share, micro)
    drawing, drawn_useful = _drawing(workload, gpu, -(-workload.drawn // count))
    shards = _shards(count, sharding)
    moved = 2 * sum(_state(workload, sharding).values()) * workload.trained / shards
    return Plan(
        workload=workload,
        gpu=gpu,
        count=count,
        sharding=sharding,
        memory=_memory(workload, count, sharding, micro),
        compute_seconds=seconds,
        communication_seconds=_communication(workload, gpu, count, sharding, -(-share // micro)),
        optimizer_seconds=moved / (gpu.gb_per_s * 1e9 * BANDWIDTH),
        drawing_seconds=drawing,
        useful_flops=useful + drawn_useful,
    )


def scaling_curve(
    workload: Workload,
    gpu: Gpu,
    count: int,
    sharding: Sharding | None = None,
    up_to: int = 128,
) -> Iterator[Plan]:
    """Plans of 1, 2, 4 ... times ``count`` GPUs, each with as many samples a GPU."""
    times = 1
    while count * times <= up_to:
        grown = replace(workload, samples=workload.samples * times, drawn=workload.drawn * times)
        yield make_plan(grown, gpu, count * times, sharding)
        times *= 2


# Parts --------------------------------------------------------------------------------------------


def _share(workload: Workload, count: int, sharding: Sharding) -> tuple[int, int]:
    """Samples of a step on one GPU, and of one forward pass; refuses what the trainers refuse."""
    config, optimizer = workload.config, workload.config.optimizer
    if sharding != "none" and optimizer.type != "adamw":
        raise ValueError(f"optimizer.type is {optimizer.type!r}: under {sharding} it is adamw")
    if isinstance(config, GRPOConfig) and config.prompts_per_step % count:
        raise ValueError(
            f"prompts_per_step {config.prompts_per_step} cannot be shared by {count} GPUs"
        )
    unit = 2 if workload.kind == "dpo" else 1
    share, rest = divmod(workload.samples, count * unit)
    if rest or not share:
        raise ValueError(
            f"{workload.samples // unit} samples a step cannot be shared by {count} GPUs"
        )
    micro = min(workload.micro_samples or share * unit, share * unit)
    if share * unit % micro:
        raise ValueError(
            f"micro_batch_size {micro // unit} does not divide the {share} samples of each GPU"
        )
    if optimizer.gradient_release and (count > 1 or share * unit > micro):
        raise ValueError(
            "optimizer.gradient_release needs one GPU and one micro-batch a step, got "
            f"{count} and {share * unit // micro}"
        )
    return share * unit, micro


def _shards(count: int, sharding: Sharding) -> int:
    """Parts that the states are cut into."""
    if sharding == "hsdp":
        return min(count, GPUS_A_MACHINE)
    return 1 if sharding == "none" else count


def _state(workload: Workload, sharding: Sharding) -> dict[str, float]:
    """Bytes of one trained parameter by part."""
    if sharding in ("fsdp2", "hsdp"):  # float32 weights, gathered in bfloat16
        return {"weights": 4.0, "gradients": 4.0, "moments": 8.0}
    if sharding != "none":  # DeepSpeed's bf16: masters of its own
        return {"weights": 2.0, "gradients": 2.0, "master": 4.0, "moments": 8.0}
    parts = state_bytes_per_parameter(workload.config.optimizer)
    autocast = workload.config.mixed_precision == "bf16" and parts["weights"] == 4
    return parts | ({"weights in bf16 (autocast)": 2.0} if autocast else {})


def _loaded_size(workload: Workload, sharding: Sharding) -> int:
    """Bytes of a weight as a process loads it, and as its reference is."""
    config = workload.config
    if config.lora is not None or sharding in ("zero2", "zero3"):
        return 2 if config.dtype == "bfloat16" else 4
    return 4 if config.optimizer.weights == "float32" else 2


def _memory(workload: Workload, count: int, sharding: Sharding, micro: int) -> dict[str, float]:
    shape, config = workload.shape, workload.config
    frozen = shape.parameters - (workload.trained if config.lora is None else 0)
    size = 2 if config.dtype == "bfloat16" or sharding != "none" else 4
    sharded = {
        "none": (),
        "zero2": ("gradients", "master", "moments"),
        "zero3": ("weights", "gradients", "master", "moments"),
        "fsdp2": ("weights", "gradients", "moments"),
        "hsdp": ("weights", "gradients", "moments"),
    }[sharding]
    shards = _shards(count, sharding)
    parts = {
        name: each * workload.trained / (shards if name in sharded else 1)
        for name, each in _state(workload, sharding).items()
        if each
    }
    parts_of_weights = shards if sharding in SHARDS_WEIGHTS else 1
    parts["frozen weights"] = frozen * size / parts_of_weights
    if config.lora is None and workload.reference == "live":  # whole on every GPU
        parts["reference"] = _loaded_size(workload, sharding) * float(shape.parameters)
    if workload.reference == "streamed":
        here = shape.parameters - (shape.num_layers - 2) * shape.block_parameters
        parts["reference's blocks"] = _loaded_size(workload, sharding) * float(here)
    if config.ema is not None:
        parts["moving average"] = 4.0 * workload.trained / parts_of_weights
    parts["activations"] = micro * shape.peak_bytes(
        workload.tokens, workload.recompute, workload.element_size
    )
    if sharding in SHARDS_WEIGHTS:
        parts["gathered parameters"] = min(GATHERED, 2 * shape.parameters)
    parts["workspace"] = WORKSPACE
    return parts


def _seconds(gpu: Gpu, linear: float, attention: float, rate: float, traffic: float) -> float:
    peak = gpu.tflops * 1e12
    return (
        linear / (peak * GEMM)
        + attention / (peak * rate)
        + traffic / (gpu.gb_per_s * 1e9 * BANDWIDTH)
    )


def _pass_seconds(workload: Workload, gpu: Gpu) -> tuple[float, float]:
    """Of one sample: a forward and a backward pass without recomputation."""
    shape, tokens = workload.shape, workload.tokens
    kind = "compiled" if workload.config.compile else "stock"
    if workload.config.blocks == "joint" and not workload.config.compile:
        kind = "joint"
    unit = tokens.total * shape.width * workload.element_size * shape.num_layers
    there, back = (units * unit for units in ELEMENTWISE[kind])
    forward = _seconds(gpu, *shape.forward_flops(tokens), ATTENTION_FORWARD, there)
    flops = shape.backward_flops(tokens, lora=workload.config.lora is not None)
    return forward, _seconds(gpu, *flops, ATTENTION_BACKWARD, back)


def _compute(workload: Workload, gpu: Gpu, samples: int, micro: int) -> tuple[float, float]:
    """Seconds and useful FLOPs of training ``samples``, ``micro`` at a time."""
    forward, backward = _pass_seconds(workload, gpu)
    again = {"none": 0.0, "full": forward}.get(workload.recompute)
    if again is None:  # selective: elementwise work alone
        linear, attention = workload.shape.forward_flops(workload.tokens)
        again = forward - _seconds(gpu, linear, attention, ATTENTION_FORWARD, 0)
    reference = 0.0 if workload.reference == "cached" else forward
    if workload.reference == "streamed":  # once a micro-batch, beside the computing
        size = _loaded_size(workload, "none") * workload.shape.parameters
        reference = max(reference, size / (gpu.host_gb_per_s * 1e9) / micro)
    useful = 3 * sum(workload.shape.forward_flops(workload.tokens))
    return samples * (forward + backward + again + reference), samples * useful


def _drawing(workload: Workload, gpu: Gpu, passes: int) -> tuple[float, float]:
    forward, _ = _pass_seconds(workload, gpu)
    return passes * forward, passes * float(sum(workload.shape.forward_flops(workload.tokens)))


def _communication(
    workload: Workload, gpu: Gpu, count: int, sharding: Sharding, micro_batches: int
) -> float:
    """Seconds of a step's collectives: ZeRO-3 and FSDP2 gather twice and reduce once a micro-batch,
    ZeRO-2 once a step; without sharding the gradients are reduced once a step. HSDP does as FSDP2
    inside a machine, and averages each micro-batch's gradients over the machines."""
    if count == 1:
        return 0.0
    whole = 2.0 * workload.shape.parameters
    times = 3 * micro_batches if sharding in SHARDS_WEIGHTS else 2
    moved = whole if sharding != "none" else 4.0 * workload.trained
    inside = min(count, GPUS_A_MACHINE)
    machines = -(-count // GPUS_A_MACHINE)
    seconds = moved * (inside - 1) / inside / (gpu.bus_gb_per_s * 1e9)
    if sharding == "hsdp":
        averaged = 2 * whole * (machines - 1) / machines / (MACHINE_GB_PER_S * 1e9)
        return times * seconds + micro_batches * averaged
    if machines > 1:
        seconds = max(seconds, moved * (count - 1) / count / (MACHINE_GB_PER_S * 1e9))
    return times * seconds
