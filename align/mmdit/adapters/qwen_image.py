"""Qwen-Image (text to image): `QwenImagePipeline` taken apart, number for number."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from PIL import Image
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from align.mmdit import flow
from align.mmdit.adapters.base import PARTS, SOURCE_AREA, Conditioning
from align.mmdit.blocks import BlockSettings, has_joint_blocks, install_blocks
from align.mmdit.pipeline_folder import folder_sha256, load_structure, write_pipeline
from align.mmdit.source_sizes import check_count
from align.mmdit.sources import source_pixels
from align.mmdit.tokens import num_tokens, pack, unpack
from align.mmdit.vae import decode_images, encode_mode

logger = logging.getLogger(__name__)

PROMPT_TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, "
    "quantity, text, spatial relationships of the objects and background:<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
NUM_TEMPLATE_TOKENS = 34
"""Leading tokens of the template, dropped after encoding."""
TOKENIZER_MAX_LENGTH = 1024
MAX_SEQUENCE_LENGTH = 512
"""Text tokens that reach the transformer at most: the pipeline's default."""

_UNSUPPORTED_SCHEDULER = {
    "invert_sigmas": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
}


class QwenImageAdapter:
    """`ModelAdapter` for Qwen-Image, of any size.

    A part that was not loaded is None, and what needs it says so.
    """

    lora_targets = (
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
        "img_mlp.net.0.proj",
        "img_mlp.net.2",
        "img_mod.1",
        "txt_mlp.net.0.proj",
        "txt_mlp.net.2",
        "txt_mod.1",
    )
    max_sources: int | None = 0
    text_parts = ("text_encoder", "tokenizer")
    """Folders of a pipeline that an encoded prompt depends on."""

    def __init__(
        self,
        *,
        scheduler_config: Mapping[str, Any],
        transformer: QwenImageTransformer2DModel | None = None,
        vae: AutoencoderKLQwenImage | None = None,
        text_encoder: Qwen2_5_VLForConditionalGeneration | None = None,
        tokenizer: Qwen2Tokenizer | None = None,
        vae_config: Mapping[str, Any] | None = None,
        folder: Path | None = None,
    ) -> None:
        """``vae_config`` gives the latents' shape when the autoencoder itself is not loaded."""
        for key, supported in _UNSUPPORTED_SCHEDULER.items():
            if scheduler_config.get(key, supported) != supported:
                raise ValueError(
                    f"scheduler config has {key}={scheduler_config[key]!r}; "
                    f"only {supported!r} is supported"
                )
        self.scheduler_config = scheduler_config
        self.transformer = transformer
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.folder = folder
        if vae is None and vae_config is None:
            raise ValueError("either vae or vae_config is needed: it gives the latents' shape")
        self._vae_config = vae_config or {}

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        parts: Sequence[str] = PARTS,
        reads_weights: bool = True,
    ) -> QwenImageAdapter:
        """Load ``parts`` of a pipeline folder, or of a hub id, frozen and in eval mode.

        Without ``reads_weights`` the transformer's are left unset, in memory that nothing has
        touched and that therefore takes no room: for who gets them from another process.
        """
        unknown = sorted(set(parts) - set(PARTS))
        if unknown:
            raise ValueError(f"parts has {unknown}; choices: {', '.join(PARTS)}")
        folder = Path(path_or_id)
        if not folder.is_dir():
            folder = Path(DiffusionPipeline.download(str(path_or_id)))
        classes: dict[str, Any] = {
            "transformer": QwenImageTransformer2DModel,
            "vae": AutoencoderKLQwenImage,
            "text_encoder": Qwen2_5_VLForConditionalGeneration,
        }
        modules: dict[str, Any] = {}
        for part in parts:
            if part == "transformer" and not reads_weights:
                module = load_structure(classes[part], folder / part, dtype)
            else:
                module = classes[part].from_pretrained(folder / part, dtype=dtype)
            modules[part] = module.to(device).eval().requires_grad_(False)
        tokenizer = None
        if "text_encoder" in parts:
            tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
        scheduler: Any = FlowMatchEulerDiscreteScheduler
        return cls(
            scheduler_config=scheduler.load_config(folder / "scheduler"),
            vae_config=classes["vae"].load_config(folder / "vae"),
            tokenizer=tokenizer,
            folder=folder,
            **modules,
        )

    # Text ----------------------------------------------------------------------------------------

    @cached_property
    def _special_tokens(self) -> tuple[str, ...]:
        tokens = self._need("tokenizer").added_tokens_decoder.values()
        return tuple(sorted(token.content for token in tokens if token.special))

    def clean_prompt(self, prompt: str) -> str:
        """``prompt`` without control tokens, which would break out of the template."""
        while any(token in prompt for token in self._special_tokens):
            for token in self._special_tokens:
                prompt = prompt.replace(token, "")
        return prompt

    def encode_prompts(
        self,
        prompts: Sequence[str],
        sources: Sequence[Sequence[Image.Image]] = (),
        source_area: int = SOURCE_AREA,
    ) -> Conditioning:
        """Last hidden states of the text encoder inside the template, ``(B, L, D)``.

        Differentiable; callers that do not train the text encoder wrap it in ``torch.no_grad``.
        Of a longer prompt than the pipeline reads the start is taken, with a warning.
        """
        if not prompts:
            raise ValueError("encode_prompts got no prompts; at least one is needed")
        self.check_sources(max(map(len, sources), default=0))
        tokens = self._need("tokenizer")(
            [PROMPT_TEMPLATE.format(self.clean_prompt(prompt)) for prompt in prompts],
            max_length=TOKENIZER_MAX_LENGTH + NUM_TEMPLATE_TOKENS,
            padding=True,
            truncation=True,
            return_tensors="pt",
        )
        rows = self._hidden_rows(tokens, NUM_TEMPLATE_TOKENS)
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) > MAX_SEQUENCE_LENGTH:
                logger.warning(
                    "the prompt %r... has more than %d tokens; the rest is not read",
                    prompt[:60],
                    MAX_SEQUENCE_LENGTH,
                )
        return Conditioning.cat([Conditioning(row[None, :MAX_SEQUENCE_LENGTH]) for row in rows])

    def _hidden_rows(self, tokens: Any, num_dropped: int, **pictures: Tensor) -> list[Tensor]:
        """Last hidden states ``(L, D)`` of each row, without padding and its first tokens."""
        text_encoder = self._need("text_encoder")
        device = text_encoder.device
        # The inner model: the language head's logits over the vocabulary are not wanted.
        hidden = text_encoder.model(
            input_ids=tokens.input_ids.to(device),
            attention_mask=tokens.attention_mask.to(device),
            use_cache=False,
            **{name: value.to(device) for name, value in pictures.items()},
        ).last_hidden_state
        masks = tokens.attention_mask.bool()
        return [row[real][num_dropped:] for row, real in zip(hidden, masks, strict=True)]

    def check_sources(self, count: int) -> None:
        """Raises `ValueError` if a prompt must not have so many source images."""
        check_count(count, self.max_sources)

    def encode_source(self, source: Image.Image, source_area: int = SOURCE_AREA) -> Tensor:
        """Normalised latents ``(C, h, w)``, as the editing pipelines encode a source image."""
        self.check_sources(1)
        return self.encode_images(source_pixels(source, source_area))[0]

    # Images --------------------------------------------------------------------------------------

    def encode_images(self, images: Tensor) -> Tensor:
        """Normalised latents (the posterior's mode) of ``images (B, 3, H, W)`` in [-1, 1]."""
        vae = self._need("vae")
        self.latent_shape(*images.shape[-2:])
        return self.normalize(encode_mode(vae, images.to(vae.device, vae.dtype)))

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` in [0, 1], in the autoencoder's dtype."""
        vae = self._need("vae")
        images = decode_images(vae, self.denormalize(latents.to(vae.device, vae.dtype)))
        return (images * 0.5 + 0.5).clamp(0, 1)

    def normalize(self, latents: Tensor) -> Tensor:
        """The autoencoder's latents to those that flow matching works on."""
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    def denormalize(self, latents: Tensor) -> Tensor:
        """Inverse of `normalize`, in the pipeline's order of rounding: it matters in bfloat16."""
        mean, std = self._statistics(latents)
        return latents / (1.0 / std) + mean

    @property
    def vae_config(self) -> Mapping[str, Any]:
        return self._vae_config if self.vae is None else cast(Any, self.vae.config)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.tensor(self.vae_config["latents_mean"]).to(like).view(1, -1, 1, 1)
        std = torch.tensor(self.vae_config["latents_std"]).to(like).view(1, -1, 1, 1)
        return mean, std

    @property
    def scale_factor(self) -> int:
        return 2 ** len(self.vae_config["temperal_downsample"])

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """``(C, h, w)``; sides must be multiples of the autoencoder's factor times the patch, 2."""
        factor = self.scale_factor
        multiple = 2 * factor
        if height < 1 or width < 1 or height % multiple or width % multiple:
            raise ValueError(
                f"image size is {height} x {width}; both sides must be multiples of {multiple}"
            )
        return int(self.vae_config["z_dim"]), height // factor, width // factor

    # Flow ----------------------------------------------------------------------------------------

    def mu(self, height: int, width: int) -> float:
        _, h, w = self.latent_shape(height, width)
        return flow.shift_mu((h // 2) * (w // 2), self.scheduler_config)

    def sigmas(self, num_steps: int, height: int, width: int) -> Tensor:
        terminal = self.scheduler_config.get("shift_terminal")
        return flow.sampling_sigmas(num_steps, self.mu(height, width), terminal)

    def velocity(
        self, transformer: nn.Module, x_t: Tensor, sigma: Tensor, cond: Conditioning
    ) -> Tensor:
        """Predicted ``noise - x_0`` at ``x_t (B, C, h, w)``, ``sigma (B,)``; without guidance.

        Inputs are cast to the parameters' dtype. The time embedding sees sigma rounded to the
        compute dtype (1/256 near 1 in bfloat16), in training as in the stock pipeline.
        """
        inputs = self._inputs(transformer, x_t, sigma, cond, has_joint_blocks(transformer))
        packed = transformer(**inputs, return_dict=False)[0]
        return unpack(packed[:, : num_tokens(x_t)], x_t.shape[-2:])

    def guide(self, velocity: Tensor, negative_velocity: Tensor, scale: float) -> Tensor:
        """True classifier-free guidance, each token rescaled to its conditional norm."""
        cond, negative = pack(velocity), pack(negative_velocity)
        combined = negative + scale * (cond - negative)
        cond_norm, combined_norm = (torch.norm(v, dim=-1, keepdim=True) for v in (cond, combined))
        return unpack(combined * (cond_norm / combined_norm), velocity.shape[-2:])

    def features(
        self,
        transformer: nn.Module,
        x_t: Tensor,
        sigma: Tensor,
        cond: Conditioning,
        num_blocks: int,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Hidden states after the first ``num_blocks`` blocks; later blocks do not run.

        Returns image tokens ``(B, h w / 4, D)``, text tokens ``(B, L, D)`` and the text mask
        ``(B, L)``, None when nothing is padded. ``transformer`` must be the bare module with stock
        blocks.
        """
        model = cast(QwenImageTransformer2DModel, transformer)
        if getattr(model, "zero_cond_t", False):
            raise ValueError("this transformer has zero_cond_t, whose features are not computed")
        if not 0 < num_blocks <= len(model.transformer_blocks):
            raise ValueError(
                f"num_blocks is {num_blocks}; this transformer has 1 to "
                f"{len(model.transformer_blocks)}"
            )
        inputs = self._inputs(model, x_t, sigma, cond, unpad=False)
        image = model.img_in(inputs["hidden_states"])
        text = model.txt_in(model.txt_norm(inputs["encoder_hidden_states"]))
        mask = inputs["encoder_hidden_states_mask"]
        temb = model.time_text_embed(inputs["timestep"].to(image.dtype), image)
        rope = model.pos_embed(
            inputs["img_shapes"], max_txt_seq_len=text.shape[1], device=image.device
        )
        for block in model.transformer_blocks[:num_blocks]:
            text, image = block(
                hidden_states=image,
                encoder_hidden_states=text,
                encoder_hidden_states_mask=mask,
                temb=temb,
                image_rotary_emb=rope,
            )
        return image[:, : num_tokens(x_t)], text, mask

    def _inputs(
        self,
        transformer: nn.Module,
        x_t: Tensor,
        sigma: Tensor,
        cond: Conditioning,
        unpad: bool,
    ) -> dict[str, Any]:
        first = next(transformer.parameters())
        device, dtype = x_t.device, first.dtype
        batch, frames = len(x_t), (x_t, *cond.sources)
        self.check_sources(len(cond.sources))
        if len(sigma) != batch or len(cond) != batch:
            raise ValueError(
                f"batch sizes differ: x_t {batch}, sigma {len(sigma)}, cond {len(cond)}"
            )
        # The pipeline passes (1000 sigma) / 1000, which is not sigma in floating point.
        num_timesteps = self.scheduler_config.get("num_train_timesteps", 1000)
        timestep = (sigma.to(device, torch.float32) * num_timesteps).to(dtype) / 1000
        embeds, mask = cond.prompt_embeds.to(device, dtype), cond.mask
        extra: dict[str, Any] = {}
        if mask is not None and unpad:
            # One row of real tokens alone: padding costs FLOPs, and a mask the fast kernels.
            extra["attention_kwargs"] = {"text_lengths": tuple(mask.sum(1).tolist())}
            embeds, mask = embeds[mask.to(device)][None], None
        return extra | {
            "hidden_states": torch.cat([pack(frame).to(device, dtype) for frame in frames], 1),
            "timestep": timestep,
            "encoder_hidden_states": embeds,
            "encoder_hidden_states_mask": None if mask is None else mask.to(device),
            "img_shapes": [[(1, f.shape[-2] // 2, f.shape[-1] // 2) for f in frames]] * batch,
        }

    # Saving and identity -------------------------------------------------------------------------

    def save_lora(
        self, folder: Path, layers: Mapping[str, Tensor], metadata: Mapping[str, Any]
    ) -> None:
        QwenImagePipeline.save_lora_weights(
            folder,
            transformer_lora_layers=dict(layers),
            transformer_lora_adapter_metadata=dict(metadata),
        )

    def save_pipeline(
        self, folder: Path, transformer: nn.Module, state_dict: Mapping[str, Tensor]
    ) -> None:
        """Parts other than the transformer are copied from the folder that was loaded."""
        if self.folder is None:
            raise ValueError("this adapter was built in memory: it has no pipeline to save into")
        write_pipeline(self.folder, folder, transformer, state_dict)

    def install_blocks(
        self,
        transformer: nn.Module,
        settings: BlockSettings,
        device: torch.device | None = None,
    ) -> str:
        return install_blocks(transformer, settings, device)

    def dead_modules(self, transformer: nn.Module) -> tuple[str, ...]:
        """The last block's text output is discarded, so what only feeds it cannot learn.

        Left trainable, such parameters get no gradient, on which data-parallel training fails.
        """
        last = len(cast(Any, transformer).transformer_blocks) - 1
        parts = ("attn.add_q_proj", "attn.norm_added_q", "attn.to_add_out", "txt_mlp")
        return tuple(f"transformer_blocks.{last}.{part}" for part in parts)

    def model_sha256(self) -> str:
        """Digest over the files of weights and configs of all three parts.

        Of the files, not of tensors in memory: the same model loaded in another dtype, or with
        fewer parts, keeps its name.
        """
        if self.folder is None:
            raise ValueError("this adapter was built in memory; save the pipeline and load it")
        return folder_sha256(self.folder)

    def _need(self, part: str) -> Any:
        module = getattr(self, part)
        if module is None:
            raise ValueError(
                f"the {part} was not loaded; pass parts=(..., "
                f"{part if part in PARTS else 'text_encoder'!r}) to from_pretrained"
            )
        return module
