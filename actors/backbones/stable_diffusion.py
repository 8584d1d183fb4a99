"""Stable Diffusion: any folder or hub id that diffusers' StableDiffusionPipeline loads.

Always true here: the weights are frozen; classifier-free guidance is one call of 2B rows, null rows first;
latents, predictions and features are float32 outside, whatever the network computes in; every row of a
batch is computed as if it were alone.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast, get_args

import torch
from diffusers import StableDiffusionPipeline
from torch.nn import functional
from transformers import CLIPTextModel

from actors.backbones.attention import install_attention
from actors.contracts import Conditioning, Denoised, Images, PredictionType
from actors.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PREVIEW_SIZE = 224
"""Previews are at most this many pixels a side."""
CACHED_PROMPTS = 512
_IDENTITY_BYTES = 1 << 20


class StableDiffusionBackbone:
    """A StableDiffusionPipeline as the engine sees it; implements `actors.contracts.Backbone`."""

    classifier_free = True

    def __init__(self, pipeline: Any, identity: str) -> None:
        self._unet = pipeline.unet.eval().requires_grad_(False)
        self._vae = pipeline.vae.eval().requires_grad_(False)
        self._text_encoder = pipeline.text_encoder.eval().requires_grad_(False)
        self._tokenizer = pipeline.tokenizer
        self._pixels_per_latent: int = pipeline.vae_scale_factor
        self.identity = identity
        self.device: torch.device = self._unet.device
        if self.device.type == "cpu":  # its convolutions run faster so; docs/world.md has the ratio
            self._unet.to(memory_format=torch.channels_last)
            self._vae.to(memory_format=torch.channels_last)
        prediction = pipeline.scheduler.config.prediction_type
        if prediction not in get_args(PredictionType):
            raise UserError(f"backbone {identity} predicts {prediction!r}; accepted: epsilon, v_prediction")
        self.prediction_type = cast(PredictionType, prediction)
        self.alphas_cumprod: torch.Tensor = pipeline.scheduler.alphas_cumprod.double()
        size = self._unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.latent_shape: tuple[int, int, int] = (self._unet.config.in_channels, height, width)
        self.feature_dim: int = self._unet.config.block_out_channels[-1]
        self.text_dim: int = self._text_encoder.config.hidden_size
        self._recorder = install_attention(self._unet, (height, width))
        self._mid_block_output: torch.Tensor | None = None
        self._unet.mid_block.register_forward_hook(self._keep_mid_block)
        self._rows: OrderedDict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = OrderedDict()

    @classmethod
    def from_pretrained(cls, source: str, *, dtype: str, device: str) -> StableDiffusionBackbone:
        """Load with diffusers. UserError for an unknown dtype; diffusers' own errors for the rest."""
        if dtype not in DTYPES:
            raise UserError(f"backbone.dtype is {dtype!r}; accepted: {', '.join(DTYPES)}")
        local = Path(source)
        folder = local if local.is_dir() else Path(StableDiffusionPipeline.download(source))
        text_encoder, report = CLIPTextModel.from_pretrained(
            folder, subfolder="text_encoder", dtype=DTYPES[dtype], output_loading_info=True
        )
        if report["missing_keys"]:  # transformers would go on with random weights in their place
            missing = min(report["missing_keys"])
            raise UserError(
                f"backbone is {source!r}, its text encoder lacks {missing}; accepted: all weights"
            )
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder,
            text_encoder=text_encoder,
            torch_dtype=DTYPES[dtype],
            safety_checker=None,
            requires_safety_checker=False,
        )
        return cls(pipeline.to(device), f"{local.name}@{weights_digest(folder)}")

    @torch.inference_mode()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Token embeddings, and the empty prompt's as null; prompts seen lately are not encoded again."""
        rows = dict(self._rows)
        missing = [prompt for prompt in dict.fromkeys([*prompts, ""]) if prompt not in rows]
        if missing:
            rows.update(self._encode(missing))
        for prompt in prompts:
            self._rows[prompt] = rows[prompt]
            self._rows.move_to_end(prompt)
        while len(self._rows) > CACHED_PROMPTS:
            self._rows.popitem(last=False)
        self._rows[""] = rows[""]
        text, pooled, mask = (torch.stack(part) for part in zip(*[rows[p] for p in prompts], strict=True))
        return Conditioning(text, rows[""][0].expand_as(text), pooled, mask)

    @torch.inference_mode()
    def denoise(
        self,
        latents_BCHW: torch.Tensor,
        timesteps_B: torch.Tensor,
        conditioning: Conditioning,
        guidance_scale_B: torch.Tensor,
        *,
        attention: bool = False,
    ) -> Denoised:
        """The guided prediction, with mid-block features and attention of the conditional rows."""
        null_BLD, text_BLD = conditioning.null_BLD, conditioning.text_BLD
        count = len(latents_BCHW)
        rows = 1 if null_BLD is None else 2
        record = attention and self._recorder is not None
        with self._recorder.recording(record) if self._recorder else nullcontext():
            prediction = self._unet(
                latents_BCHW.to(self._unet.dtype).repeat(rows, 1, 1, 1),
                timesteps_B.repeat(rows),
                encoder_hidden_states=text_BLD if null_BLD is None else torch.cat([null_BLD, text_BLD]),
                return_dict=False,
            )[0].float()
        null_BCHW, guided_BCHW = None, prediction[-count:]
        if null_BLD is not None:
            null_BCHW = prediction[:count]
            guided_BCHW = null_BCHW + guidance_scale_B.view(-1, 1, 1, 1) * (guided_BCHW - null_BCHW)
        assert self._mid_block_output is not None
        features_BF = self._mid_block_output[-count:].float().mean(dim=(2, 3))
        self._mid_block_output = None
        maps_BLHW = None
        if record and self._recorder is not None:
            maps_BLHW = self._recorder.maps()[-count:]
            maps_BLHW = maps_BLHW * conditioning.token_mask_BL[:, :, None, None]
        return Denoised(guided_BCHW, features_BF, maps_BLHW, null_BCHW)

    @torch.inference_mode()
    def decode(self, latents_BCHW: torch.Tensor) -> Images:
        """Images at full size, uint8 B x H x W x 3."""
        config = self._vae.config
        scaled = latents_BCHW / config.scaling_factor + (config.get("shift_factor") or 0.0)
        images_BCHW = self._vae.decode(scaled.to(self._vae.dtype), return_dict=False)[0].float()
        bytes_BCHW = ((images_BCHW / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        images: Images = bytes_BCHW.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return images

    @torch.inference_mode()
    def preview(self, latents_BCHW: torch.Tensor) -> Images:
        """Images of at most 224 pixels a side: larger latents are shrunk before they are decoded."""
        pixels = self._pixels_per_latent
        side = max(latents_BCHW.shape[2:])
        if side * pixels > PREVIEW_SIZE:
            scale = PREVIEW_SIZE // pixels / side
            size = [max(1, round(length * scale)) for length in latents_BCHW.shape[2:]]
            latents_BCHW = functional.interpolate(latents_BCHW, size, mode="bilinear", antialias=True)
        return self.decode(latents_BCHW)

    def _encode(self, prompts: Sequence[str]) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Of each prompt: token embeddings, the pooled one, and which tokens are words."""
        tokenizer = self._tokenizer
        tokens = tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_tensors="pt",
        )
        encoded = self._text_encoder(tokens.input_ids.to(self.device))
        special = torch.tensor([tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id])
        words = tokens.attention_mask.bool() & ~torch.isin(tokens.input_ids, special)
        columns = (encoded.last_hidden_state, encoded.pooler_output, words.to(self.device))
        return dict(zip(prompts, zip(*columns, strict=True), strict=True))

    def _keep_mid_block(self, module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        self._mid_block_output = output


def weights_digest(folder: Path) -> str:
    """A short hash of the networks' configs and of the beginning and size of their weight files."""
    digest = hashlib.sha256()
    for part in ("unet", "text_encoder", "vae"):
        digest.update((folder / part / "config.json").read_bytes())
        for path in sorted((folder / part).glob("*.safetensors")):
            with path.open("rb") as file:
                digest.update(file.read(_IDENTITY_BYTES))
            digest.update(f"{part}/{path.name} {path.stat().st_size}".encode())
    return digest.hexdigest()[:12]
