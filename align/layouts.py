"""How weights and optimizer states lie on the processes of a launch, and how a checkpoint holds
them.

| launch             | weights         | gradients, optimizer states | states of                 |
|--------------------|-----------------|-----------------------------|---------------------------|
| one process or DDP | whole           | whole                       | any optimizer of the kit  |
| DeepSpeed ZeRO-2   | whole           | a part on each process      | AdamW, float32 masters    |
| DeepSpeed ZeRO-3   | a part          | a part                      | AdamW, float32 masters    |
| FSDP2              | a part (DTensor)| a part                      | AdamW on float32 weights  |
| HSDP               | the same, the parts lie on each group of processes (a machine) once more  |

The launcher chooses (`configs/accelerate/`); accelerate wraps the module; what is left to know is
here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator, DistributedType
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from align.mmdit.modulation import shard_modulation
from align.optim_config import OptimizerConfig

__all__ = [
    "DeepSpeed",
    "FullySharded",
    "Replicated",
    "announce_fsdp",
    "choose_layout",
    "load_models_whole",
]

Named = dict[str, nn.Parameter]


class Replicated:
    """Whole weights and states on every process; the checkpoint is the main one's."""

    shards_weights = False
    """Whether a process has only a part of each weight between steps."""
    has_graph_of_parameters = True
    """Whether `torch.autograd.grad` may run outside the backward pass of the launch."""
    loads_on_cpu = False
    """Whether the module is moved to its device while it is wrapped."""
    keeps_masters = False
    """Whether float32 masters are kept beside weights of any dtype."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.model: nn.Module
        self.named: Named

    @property
    def name(self) -> str:
        """Names the layout in a checkpoint: another one cannot read it."""
        return "replicated"

    def check(self, config: OptimizerConfig) -> None:
        """Raises `ValueError` for an optimizer whose states this layout cannot keep."""

    def shard_modulation(self, module: nn.Module) -> None:
        """Leave each process its own rows of the modulation layers, before a module is wrapped.

        Raises:
            ValueError: this layout cannot.
        """
        raise ValueError(
            f"shard_modulation goes with a launch under FSDP2 (configs/accelerate/fsdp2*.yaml); "
            f"this one is {self.name}"
        )

    def reads_weights(self, needs_whole: bool) -> bool:
        """Whether this process must read the weights; where not, the main one sends them while the
        module is wrapped. To be asked before it is loaded.

        Args:
            needs_whole: something is taken from whole weights before.
        """
        return True

    def configure(self, config: OptimizerConfig, accumulation: int, micro_batch_size: int) -> None:
        """Settings to make before the module is wrapped."""

    def take(self, model: nn.Module, optimizer: Any, named: Named) -> Named:
        """The wrapped module and its optimizer; returns the trained parameters by their names."""
        self.model, self.optimizer, self.named = model, optimizer, named
        self.accelerator.register_save_state_pre_hook(self._save_trainable)
        self.accelerator.register_load_state_pre_hook(self._load_trainable)
        return self.named

    def clip(self, max_norm: float) -> Any:
        """Clip the gradient's global norm; returns it as it was before. 0: no clipping."""
        return self.accelerator.clip_grad_norm_(self.named.values(), max_norm or math.inf)

    def refresh(self) -> None:
        """Forget copies of weights that were gathered before the parts were changed."""

    def state_dict(self, trained_only: bool) -> Mapping[str, Tensor]:
        """Whole weights on the main process, by their names in the bare module."""
        return cast(nn.Module, self.accelerator.unwrap_model(self.model)).state_dict()

    def save(self, folder: Path) -> None:
        self.accelerator.save_state(str(folder))

    def load(self, folder: Path) -> None:
        self.accelerator.load_state(str(folder))

    def _save_trainable(self, models: list[nn.Module], weights: list[Any], folder: str) -> None:
        """Of the weights, keep those that were trained: frozen ones are in the base model."""
        weights.clear()
        if self.accelerator.is_main_process:
            state = {n: p.detach().contiguous() for n, p in self.named.items()}
            save_file(state, Path(folder) / "trainable.safetensors")

    def _load_trainable(self, models: list[nn.Module], folder: str) -> None:
        models.clear()
        state = load_file(Path(folder) / "trainable.safetensors")
        if state.keys() != self.named.keys():
            different = sorted(state.keys() ^ self.named.keys())[:3]
            raise ValueError(f"{folder} holds other parameters than the model: {different}")
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(state[name])


class DeepSpeed(Replicated):
    """ZeRO-2 or ZeRO-3."""

    has_graph_of_parameters = False
    loads_on_cpu = True
    keeps_masters = True

    @property
    def stage(self) -> int:
        return self._settings["zero_optimization"]["stage"]

    @property
    def shards_weights(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.stage == 3

    @property
    def name(self) -> str:
        return f"deepspeed-zero{self.stage}-{self.accelerator.num_processes}"

    @property
    def _settings(self) -> dict[str, Any]:
        plugin = self.accelerator.state.deepspeed_plugin
        assert plugin is not None
        return plugin.deepspeed_config

    def check(self, config: OptimizerConfig) -> None:
        _only_adamw(config, "DeepSpeed")

    def configure(self, config: OptimizerConfig, accumulation: int, micro_batch_size: int) -> None:
        self._settings.update(
            gradient_accumulation_steps=accumulation,
            train_micro_batch_size_per_gpu=micro_batch_size,
            gradient_clipping=config.max_grad_norm,
        )

    def take(self, model: nn.Module, optimizer: Any, named: Named) -> Named:
        load_models_whole()
        self.model, self.optimizer, self.named = model, optimizer, named
        return named

    def refresh(self) -> None:
        """ZeRO-3 keeps small parameters gathered; fetch them again from the changed shards."""
        persistent = getattr(getattr(self.model, "optimizer", None), "persistent_parameters", None)
        if persistent:
            persistent[0].partition(persistent)
            persistent[0].all_gather(persistent)

    def state_dict(self, trained_only: bool) -> Mapping[str, Tensor]:
        if self.stage != 3:
            return super().state_dict(trained_only)
        gathered = cast(Any, self.model)._zero3_consolidated_16bit_state_dict(
            exclude_frozen_parameters=trained_only
        )
        return gathered or {}

    def save(self, folder: Path) -> None:
        self.accelerator.save_state(str(folder), exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        self.accelerator.load_state(str(folder), load_module_strict=False)


class FullySharded(Replicated):
    """FSDP2: every parameter is a `DTensor` of which a process holds some rows.

    The weights are float32, and so are AdamW's moments; with ``mixed_precision: bf16`` they are
    gathered, and computed with, in bfloat16. Checkpoints are those of torch.distributed.checkpoint.

    A launch with ``dp_replicate_size`` above 1 is hybrid (HSDP): the parts are spread over
    ``dp_shard_size`` processes, which gather among themselves, and gradients are averaged over the
    groups.
    """

    shards_weights = True
    has_graph_of_parameters = False
    loads_on_cpu = True

    @property
    def name(self) -> str:
        sizes = self.accelerator.parallelism_config
        if sizes is not None and sizes.dp_replicate_enabled:
            return f"hsdp-{sizes.dp_replicate_size}x{sizes.dp_shard_size}"
        return f"fsdp2-{self.accelerator.num_processes}"

    def check(self, config: OptimizerConfig) -> None:
        _only_adamw(config, "FSDP2")

    def shard_modulation(self, module: nn.Module) -> None:
        if self.accelerator.parallelism_config is not None:  # a mesh of its own, as HSDP's
            super().shard_modulation(module)
        mesh = init_device_mesh(self.accelerator.device.type, (self.accelerator.num_processes,))
        plugin = self.accelerator.state.fsdp_plugin
        assert plugin is not None
        plugin.ignored_modules = shard_modulation(module, mesh)

    def reads_weights(self, needs_whole: bool) -> bool:
        plugin = self.accelerator.state.fsdp_plugin
        assert plugin is not None
        # Not by the launcher's setting of the same name: transformers heeds that one too, and would
        # leave the weights of text encoders unset.
        plugin.cpu_ram_efficient_loading = not needs_whole
        return needs_whole or self.accelerator.is_main_process

    def configure(self, config: OptimizerConfig, accumulation: int, micro_batch_size: int) -> None:
        """Every micro-batch adds to sharded gradients: whole ones, kept until the step, would take
        as much memory on each process as the model itself."""
        self.accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = True

    def take(self, model: nn.Module, optimizer: Any, named: Named) -> Named:
        sharded = {n: p for n, p in model.named_parameters() if n in named}
        assert sharded.keys() == named.keys()
        assert all(isinstance(p, DTensor) for p in sharded.values())
        self.model, self.optimizer, self.named = model, optimizer, sharded
        return sharded

    def clip(self, max_norm: float) -> Any:
        norm = torch.nn.utils.clip_grad_norm_(self.named.values(), max_norm or math.inf)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def refresh(self) -> None:
        """The outermost parameters stay gathered after a forward pass without a backward one."""
        from torch.distributed.fsdp import FSDPModule

        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def state_dict(self, trained_only: bool) -> Mapping[str, Tensor]:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(
            full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained_only
        )
        return cast(dict[str, Tensor], get_model_state_dict(self.model, options=options))

    def save(self, folder: Path) -> None:
        from torch.distributed import checkpoint

        checkpoint.save(self._state(), checkpoint_id=str(folder / "shards"))

    def load(self, folder: Path) -> None:
        from torch.distributed import checkpoint
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

        state = self._state()
        checkpoint.load(state, checkpoint_id=str(folder / "shards"))
        set_state_dict(
            self.model,
            self.optimizer.optimizer,
            model_state_dict=state["weights"],
            optim_state_dict=state["optimizer"],
            options=StateDictOptions(strict=False),
        )
        self.refresh()

    def _state(self) -> dict[str, Any]:
        """The trained weights and the optimizer's states; loading fills these very tensors."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        options = StateDictOptions(ignore_frozen_params=True)
        weights, states = get_state_dict(self.model, self.optimizer.optimizer, options=options)
        return {"weights": weights, "optimizer": states}


def choose_layout(accelerator: Accelerator) -> Replicated:
    """The layout of the launch that this process belongs to.

    Raises:
        ValueError: the launch is one that no layout serves.
    """
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        layout = DeepSpeed(accelerator)
        if layout.stage not in (2, 3):
            raise ValueError(f"the launch asks for DeepSpeed ZeRO-{layout.stage}; choices: 2, 3")
        return layout
    if kind == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        assert plugin is not None
        if plugin.fsdp_version != 2:
            raise ValueError(f"the launch asks for FSDP {plugin.fsdp_version}; set fsdp_version: 2")
        return FullySharded(accelerator)
    return Replicated(accelerator)


def announce_fsdp(mixed_precision: str) -> None:
    """Let accelerate know of the launch's FSDP where it does not see it by itself: on a CPU, and in
    the second run of a process. Before the `Accelerator` is made, which lays out HSDP's mesh."""
    from accelerate import PartialState
    from accelerate.parallelism_config import ParallelismConfig
    from accelerate.state import AcceleratorState
    from accelerate.utils import FullyShardedDataParallelPlugin, TorchDynamoPlugin

    plugin = FullyShardedDataParallelPlugin()
    sizes = None
    if os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG") == "true":
        sizes = ParallelismConfig()
    state = AcceleratorState(
        mixed_precision=mixed_precision,
        dynamo_plugin=TorchDynamoPlugin(),
        fsdp_plugin=plugin,
        parallelism_config=sizes,
        _from_accelerator=True,
    )
    if getattr(state, "fsdp_plugin", None) is not None:
        return
    if mixed_precision != "no":
        plugin.set_mixed_precision(mixed_precision)
    state.fsdp_plugin = plugin
    for shared in (AcceleratorState, PartialState):
        shared._shared_state["distributed_type"] = DistributedType.FSDP


def load_models_whole() -> None:
    """Keep transformers from sharding what it loads: encoders run outside the DeepSpeed engine.

    accelerate announces ZeRO-3 to transformers also with ``zero3_init_flag: false``.
    """
    from transformers.integrations import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def _only_adamw(config: OptimizerConfig, launch: str) -> None:
    if config.type != "adamw":
        raise ValueError(
            f"optimizer.type is {config.type!r}: under {launch} it is adamw, whose states "
            f"{launch} keeps"
        )
