"""Memory, time and money of a run before it starts.

Bytes and FLOPs are `align.ledger`'s. Rates are assumptions, taken from published figures and from
counted traffic; `ASSUMPTIONS` says them and every plan prints them. No time here was measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from align.config import GRPOConfig
from align.ledger import state_bytes_per_parameter
from align.workload import Workload, workload_of

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


class Elementwise(NamedTuple):
    """Traffic for each token and block, in units of the model's width."""

    forward: float
    backward: float
    selective_again: float
    """What selective recomputation adds to the backward pass."""
    full_again: float


ELEMENTWISE = {
    "stock": Elementwise(91.2, 184.4, 91.2, 91.2),
    "joint": Elementwise(122.3, 215.6, 122.3, 122.3),
    "compiled": Elementwise(35.0, 70.5, 24.0, 29.1),
}
"""Counted (`benchmarks.cpu`): joint blocks turn in real numbers, which pays when compiled; of
compiled ones, what Inductor generates for a processor."""
WIDENING = {"fp8": 19.0, "nf4": 22.5}
"""Bytes moved for each weight that is widened from its code in eager torch (counted)."""
WORKSPACE = 3 * GIB
REWARD_BLOCKS = 12
"""Blocks that a reward model reads, as in configs/rewards/qwen_image.yaml."""
GATHERED = 2 * 10**9
"""ZeRO-3's gathered parameters: at most 10^9 live ones in bfloat16."""

ASSUMPTIONS = (
    f"matrix products at {GEMM:.0%} of the bf16 peak, attention at {ATTENTION_FORWARD:.0%} forward "
    f"and {ATTENTION_BACKWARD:.0%} backward (cuDNN on Hopper), elementwise traffic at "
    f"{BANDWIDTH:.0%} of the bandwidth",
    f"{WORKSPACE // GIB} GiB for the CUDA context, workspaces and fragmentation",
    "images and prompts are encoded beforehand; validation, decoding and the time of rewards are "
    f"not counted; a reward model has {REWARD_BLOCKS} blocks in bfloat16",
    "collectives overlap with computing; a step takes the longer of the two; so does a streamed "
    "reference with its copies out of host memory",
    f"between machines of {GPUS_A_MACHINE}: {MACHINE_GB_PER_S:.0f} GB/s each; hsdp shards inside a "
    "machine",
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
    def host_bytes(self) -> float:
        """Of one machine while its processes load: each has the whole model, and the copy that it
        streams. Under FSDP2 one process of all reads it and sends it to the others, unless a
        reference or rows of modulation layers are taken from the whole."""
        work = self.workload
        size = _loaded_size(work, self.sharding) * float(work.shape.parameters)
        has_copy = work.config.lora is None and work.reference != "cached"
        if self.sharding in ("fsdp2", "hsdp") and not (has_copy or work.config.shard_modulation):
            return size
        copies = 2 if work.reference == "streamed" else 1
        return min(self.count, GPUS_A_MACHINE) * copies * size

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
    if config.quantize is not None and sharding != "none":
        raise ValueError(f"quantize {config.quantize!r} is not sharded, got {sharding}")
    if config.shard_modulation and sharding != "fsdp2":
        raise ValueError(f"shard_modulation goes with fsdp2, got {sharding}")
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
    if config.quantize is not None:
        parts["frozen weights"] = shape.frozen_bytes(size, config.quantize)
    if config.lora is None and workload.reference == "live":  # whole on every GPU
        parts["reference"] = _loaded_size(workload, sharding) * float(shape.parameters)
    if workload.reference == "streamed":
        here = shape.parameters - (shape.num_layers - 2) * shape.block_parameters
        parts["reference's blocks"] = _loaded_size(workload, sharding) * float(here)
    if config.ema is not None:
        parts["moving average"] = 4.0 * workload.trained / parts_of_weights
    if isinstance(config, GRPOConfig) and config.reward is not None:
        blocks = min(REWARD_BLOCKS, shape.num_layers) - shape.num_layers
        parts["reward model"] = 2.0 * (shape.parameters + blocks * shape.block_parameters)
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
    moved, unit = _elementwise(workload)
    forward = _seconds(gpu, *shape.forward_flops(tokens), ATTENTION_FORWARD, moved.forward * unit)
    flops = shape.backward_flops(tokens, lora=workload.config.lora is not None)
    return forward, _seconds(gpu, *flops, ATTENTION_BACKWARD, moved.backward * unit)


def _elementwise(workload: Workload) -> tuple[Elementwise, int]:
    """Traffic of one sample, and the bytes of its unit."""
    kind = "compiled" if workload.config.compile else "stock"
    if workload.config.blocks == "joint" and not workload.config.compile:
        kind = "joint"
    shape = workload.shape
    unit = workload.tokens.total * shape.width * workload.element_size * shape.num_layers
    return ELEMENTWISE[kind], unit


def _compute(workload: Workload, gpu: Gpu, samples: int, micro: int) -> tuple[float, float]:
    """Seconds and useful FLOPs of training ``samples``, ``micro`` at a time."""
    forward, backward = _pass_seconds(workload, gpu)
    moved, unit = _elementwise(workload)
    again = 0.0
    if workload.recompute == "selective":
        again = _seconds(gpu, 0, 0, 1.0, moved.selective_again * unit)
    elif workload.recompute == "full":
        flops = workload.shape.forward_flops(workload.tokens)
        again = _seconds(gpu, *flops, ATTENTION_FORWARD, moved.full_again * unit)
    reference = 0.0 if workload.reference == "cached" else forward
    if workload.reference == "streamed":  # once a micro-batch, beside the computing
        size = _loaded_size(workload, "none") * workload.shape.parameters
        reference = max(reference, size / (gpu.host_gb_per_s * 1e9) / micro)
    useful = 3 * sum(workload.shape.forward_flops(workload.tokens))
    times = 2 + (workload.recompute != "none") + (workload.reference == "live")
    widening = times * samples / micro * _widening_seconds(workload, gpu)
    return samples * (forward + backward + again + reference) + widening, samples * useful


def _widening_seconds(workload: Workload, gpu: Gpu) -> float:
    """Of a quantised base's weights, once: what a pass of any number of samples adds."""
    moved = WIDENING.get(workload.config.quantize or "", 0.0) * workload.shape.linear_weights
    return moved / (gpu.gb_per_s * 1e9 * BANDWIDTH)


def _drawing(workload: Workload, gpu: Gpu, passes: int) -> tuple[float, float]:
    forward, _ = _pass_seconds(workload, gpu)
    if isinstance(workload.config, GRPOConfig):
        forward += _widening_seconds(workload, gpu) / workload.config.rollout.batch_size
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
    if workload.config.shard_modulation:  # what moves instead is 6 widths a sample and layer
        whole -= 2.0 * workload.shape.modulation_parameters
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
