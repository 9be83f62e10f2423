"""CLIPs of the real class with random weights, as files: 32 px, patches of 8, 24 tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, SiglipConfig, SiglipModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

SIDE, PATCH, ROOM, WIDTH, HEADS, LAYERS, EMBED = 32, 8, 24, 32, 2, 2, 16
TOWER = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}


def tokenizer() -> CLIPTokenizer:
    """Of bytes: a letter is a token."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    special = ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={w: i for i, w in enumerate([*words, *special])}, merges=[])


def save_clip(folder: Path, seed: int = 0) -> Path:
    """As published CLIPs are: the model, its tokenizer and image processor in one folder."""
    torch.manual_seed(seed)
    names = tokenizer()
    eos = names.eos_token_id
    words = {"vocab_size": eos + 1, "eos_token_id": eos, "max_position_embeddings": ROOM}
    config = CLIPConfig(
        text_config={**TOWER, **words},
        vision_config={**TOWER, "image_size": SIDE, "patch_size": PATCH},
        projection_dim=EMBED,
    )
    model = CLIPModel(config)
    shake(model)
    model.save_pretrained(folder)
    names.save_pretrained(folder)
    sides = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=sides).save_pretrained(folder)
    return folder


def save_siglip(folder: Path, seed: int = 0) -> Path:
    """As `save_clip`."""
    torch.manual_seed(seed)
    names = tokenizer()
    words = {"vocab_size": names.eos_token_id + 1, "max_position_embeddings": ROOM}
    config = SiglipConfig(
        text_config={**TOWER, **words, "projection_size": WIDTH},
        vision_config={**TOWER, "image_size": SIDE, "patch_size": PATCH},
    )
    model = SiglipModel(config)
    shake(model)
    model.save_pretrained(folder)
    names.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def shake(module: nn.Module) -> None:
    """Weights under which pictures and prompts differ, biases and norms included."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            if name != "logit_scale":
                value += 0.3 * torch.randn_like(value)


class OpenClip(nn.Module):
    """open_clip's ViT CLIP by its published definition: names, order and shapes of its weights."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.visual = nn.Module()
        self.visual.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.visual.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.visual.positional_embedding = nn.Parameter(
            torch.randn((SIDE // PATCH) ** 2 + 1, WIDTH)
        )
        self.visual.ln_pre, self.visual.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.visual.transformer = _blocks()
        self.visual.proj = nn.Parameter(torch.randn(WIDTH, EMBED))
        self.token_embedding = nn.Embedding(vocabulary, WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(ROOM, WIDTH))
        self.transformer = _blocks()
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.randn(WIDTH, EMBED))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))

    def encode_image(self, pixels):
        x = self.visual.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.visual.class_embedding.expand(len(x), 1, -1)
        x = self.visual.ln_pre(torch.cat([first, x], dim=1) + self.visual.positional_embedding)
        for block in self.visual.transformer.resblocks:
            x = block(x, None)
        return self.visual.ln_post(x[:, 0]) @ self.visual.proj

    def encode_text(self, ids):
        x = self.token_embedding(ids) + self.positional_embedding
        mask = torch.full((ROOM, ROOM), float("-inf")).triu(1)
        for block in self.transformer.resblocks:
            x = block(x, mask)
        x = self.ln_final(x)
        return x[torch.arange(len(x)), ids.argmax(dim=1)] @ self.text_projection


class _Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(WIDTH, 4 * WIDTH))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


def _blocks() -> nn.Module:
    module = nn.Module()
    module.resblocks = nn.ModuleList(_Block() for _ in range(LAYERS))
    return module


def save_open_clip(path: Path) -> OpenClip:
    """A checkpoint as HPSv2 publishes its own; returns the network that it is of."""
    torch.manual_seed(1)
    model = OpenClip(len(tokenizer())).eval()
    shake(model)
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, path)
    return model


def save_aesthetic_head(path: Path) -> nn.Sequential:
    """As ``sac+logos+ava1-l14-linearMSE.pth``, for embeddings of width `EMBED`; in training mode's
    layers, with their dropout."""
    torch.manual_seed(2)
    sizes = (1024, 128, 64, 16)
    layers: list[nn.Module] = []
    for place, (wide, narrow) in enumerate(zip((EMBED, *sizes), (*sizes, 1), strict=True)):
        layers.append(nn.Linear(wide, narrow))
        if place < 3:
            layers.append(nn.Dropout(0.2))
    head = nn.Sequential(*layers).eval()
    torch.save({f"layers.{name}": value for name, value in head.state_dict().items()}, path)
    return head
