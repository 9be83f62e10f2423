"""Published CLIP weights by their real class, from a folder or from the hub; nothing is made up.

A weight that the file does not have would be drawn at random, and its scores would look like any
others: whatever is missing, left over or of another shape is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

__all__ = [
    "aesthetic_head",
    "find_file",
    "from_open_clip",
    "load_clip",
    "load_tokenizer",
    "read_checkpoint",
    "weights_digest",
]


def load_clip(name: str, source: str) -> CLIPModel:
    """A CLIP of transformers.

    Args:
        name: of the scorer, for the message.
        source: a folder with its weights, or a hub id.

    Raises:
        FileNotFoundError: it is neither on disk nor to be had from the hub.
        ValueError: the file lacks weights, or has some of another shape.
    """
    try:
        loaded: Any = CLIPModel.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True
        )
    except OSError as error:
        raise _missing(name, source, source) from error
    model, found = loaded
    if faulty := sorted([*found["missing_keys"], *map(str, found["mismatched_keys"])]):
        raise ValueError(f"{name}: {source} is no CLIP of its configuration: it lacks {faulty[0]}")
    return model


def load_tokenizer(name: str, source: str) -> CLIPTokenizer:
    """Likewise its tokenizer."""
    try:
        return CLIPTokenizer.from_pretrained(source)
    except OSError as error:
        raise _missing(f"{name} (tokenizer)", source, source) from error


def find_file(name: str, path: str | None, hub_id: str, file: str) -> Path:
    """A published file: ``path``, or ``path/file``, or from the hub where ``path`` is None.

    Raises:
        FileNotFoundError: it is in neither place.
    """
    if path is not None:
        place = Path(path)
        found = place / file if place.is_dir() else place
        if not found.is_file():
            raise _missing(name, str(found), hub_id, file)
        return found
    try:
        return Path(hf_hub_download(hub_id, file))
    except OSError as error:
        raise _missing(name, hub_id, hub_id, file) from error


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.pt`` file, read without unpickling code.

    Raises:
        ValueError: it holds something else.
    """
    tree = torch.load(path, map_location="cpu", weights_only=True)
    tree = tree.get("state_dict", tree) if isinstance(tree, Mapping) else tree
    if not isinstance(tree, Mapping) or not all(isinstance(v, Tensor) for v in tree.values()):
        raise ValueError(f"{path} holds no weights by name")
    return dict(tree)


def from_open_clip(
    state: Mapping[str, Tensor], vision_head: int = 80, text_head: int = 64
) -> CLIPModel:
    """A ViT CLIP of open_clip as transformers' class, which computes the same.

    Args:
        state: open_clip's names. Sizes are read off the weights.
        vision_head, text_head: width of an attention head, which the weights do not tell; the
            defaults are those of ViT-H-14.

    Raises:
        ValueError: a weight is missing or nobody's.
    """
    state = {k: v.float() for k, v in state.items() if not k.endswith(("attn_mask", "logit_bias"))}
    try:
        config = _config_of(state, vision_head, text_head)
        renamed = {
            "logit_scale": state.pop("logit_scale"),
            "text_projection.weight": state.pop("text_projection").T,
            "visual_projection.weight": state.pop("visual.proj").T,
        }
        renamed |= _towers(state)
    except KeyError as error:
        raise ValueError(f"no open_clip weights of a ViT: {error} is missing") from None
    model = CLIPModel(config)
    found = model.load_state_dict(renamed, strict=False)
    if faulty := sorted([*found.missing_keys, *found.unexpected_keys]):
        raise ValueError(f"these open_clip weights do not make a CLIPModel: {', '.join(faulty)}")
    return model


def _config_of(state: Mapping[str, Tensor], vision_head: int, text_head: int) -> CLIPConfig:
    patches, text = state["visual.conv1.weight"], state["token_embedding.weight"]
    positions = state["visual.positional_embedding"].shape[0] - 1
    common = {"hidden_act": "gelu", "projection_dim": state["text_projection"].shape[1]}
    tower = {
        "hidden_size": patches.shape[0],
        "intermediate_size": state["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": _depth(state, "visual.transformer.resblocks."),
        "num_attention_heads": patches.shape[0] // vision_head,
        "patch_size": patches.shape[-1],
        "image_size": round(positions**0.5) * patches.shape[-1],
    }
    words = {
        "vocab_size": text.shape[0],
        "hidden_size": text.shape[1],
        "intermediate_size": state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": _depth(state, "transformer.resblocks."),
        "num_attention_heads": text.shape[1] // text_head,
        "max_position_embeddings": state["positional_embedding"].shape[0],
        # The end of text is the last entry of the vocabulary.
        "eos_token_id": text.shape[0] - 1,
        "bos_token_id": text.shape[0] - 2,
    }
    return CLIPConfig(
        vision_config={**common, **tower},
        text_config={**common, **words},
        projection_dim=common["projection_dim"],
    )


_TOWER = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
}
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def _towers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Everything but the projections, under transformers' names; what has none keeps its own."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        tower, _, block = key.partition("transformer.resblocks.")
        if not block:
            stem, _, leaf = key.rpartition(".")
            renamed[_TOWER.get(key) or f"{_TOWER.get(stem, stem)}.{leaf}"] = value
            continue
        index, _, rest = block.partition(".")
        layer = f"{'vision' if tower else 'text'}_model.encoder.layers.{index}"
        if rest.startswith("attn.in_proj_"):
            kind = rest.removeprefix("attn.in_proj_")
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{layer}.self_attn.{part}_proj.{kind}"] = rows
        else:
            stem, _, leaf = rest.rpartition(".")
            renamed[f"{layer}.{_BLOCK.get(stem, stem)}.{leaf}"] = value
    return renamed


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({k.removeprefix(prefix).split(".")[0] for k in state if k.startswith(prefix)})


def aesthetic_head(state: Mapping[str, Tensor]) -> nn.Sequential:
    """LAION's predictor: five linear layers on a CLIP embedding, with nothing between them (the
    dropout of its training is off).

    Args:
        state: names ``layers.0`` to ``layers.7`` as published; the input's width is read off them.

    Raises:
        ValueError: these are other weights.
    """
    names = ("0", "2", "4", "6", "7")
    expected = {f"layers.{name}.{kind}" for name in names for kind in ("weight", "bias")}
    if set(state) != expected:
        raise ValueError(
            f"the aesthetic head has the weights {sorted(state)}, expected {sorted(expected)}"
        )
    sizes = [state[f"layers.{name}.weight"].shape for name in names]
    head = nn.Sequential(*(nn.Linear(size[1], size[0]) for size in sizes))
    head.load_state_dict(
        {
            f"{place}.{kind}": state[f"layers.{name}.{kind}"].float()
            for place, name in enumerate(names)
            for kind in ("weight", "bias")
        }
    )
    return head


def weights_digest(settings: Any, *modules: nn.Module, tokenizer: CLIPTokenizer | None) -> str:
    """Names weights, tokenizer and settings, whatever file they were read from."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.detach().float().contiguous().cpu().numpy().data)
    if tokenizer is not None:
        digest.update(tokenizer.backend_tokenizer.to_str().encode())
    return digest.hexdigest()[:16]


def _missing(name: str, place: str, hub_id: str, file: str = "") -> FileNotFoundError:
    wanted = f"{hub_id} {file}".strip()
    return FileNotFoundError(
        f"{name}: no weights at {place!r}, neither as a path on this machine nor from the hub; "
        f"`hf download {wanted} --local-dir FOLDER` fetches what is published, then name FOLDER in "
        "the settings"
    )
