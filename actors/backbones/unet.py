"""A UNet as the engine asks it: guidance, mid-block features and cross-attention from one call.

Always true here: classifier-free guidance is one call of 2B rows, null rows first; without null rows the
network is asked once a row. Prediction, features and attention are float32 outside, whatever the network
computes in; every row of a batch is computed as if it were alone.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding

from actors.backbones.attention import install_attention
from actors.backbones.rowwise import make_rowwise
from actors.contracts import Conditioning, Denoised


class GuidedUNet:
    """A frozen UNet2DConditionModel.

    latent_size: height and width that attention maps are recorded for.
    """

    def __init__(
        self, unet: UNet2DConditionModel, latent_size: tuple[int, int], *, compiled: bool = False
    ) -> None:
        self._unet = unet.eval().requires_grad_(False)
        if unet.device.type == "cpu":  # its convolutions run faster so; docs/world.md has the ratio
            unet.to(memory_format=torch.channels_last)
            make_rowwise(unet)
        self.feature_dim: int = unet.config.block_out_channels[-1]
        self.guidance_dim: int | None = unet.config.time_cond_proj_dim
        """Width of the embedded guidance scale that a guidance-distilled network (LCM) takes as an input."""
        self._recorder = install_attention(unet, latent_size)
        self._mid_block_output: torch.Tensor | None = None
        unet.mid_block.register_forward_hook(self._keep_mid_block)
        if compiled:
            unet.compile()

    def __call__(
        self,
        latents_BCHW: torch.Tensor,
        timesteps_B: torch.Tensor,
        conditioning: Conditioning,
        guidance_scale_B: torch.Tensor,
        *,
        added: dict[str, torch.Tensor] | None = None,
        attention: bool = False,
    ) -> Denoised:
        """The guided prediction, with mid-block features and attention of the conditional rows.

        added: diffusers' `added_cond_kwargs`, one row for each of the network's.
        """
        null_BLD, text_BLD = conditioning.null_BLD, conditioning.text_BLD
        count = len(latents_BCHW)
        rows = 1 if null_BLD is None else 2
        record = attention and self._recorder is not None
        with self._recorder.recording(record) if self._recorder else nullcontext():
            prediction = self._unet(
                latents_BCHW.to(self._unet.dtype).repeat(rows, 1, 1, 1),
                timesteps_B.repeat(rows),
                encoder_hidden_states=text_BLD if null_BLD is None else torch.cat([null_BLD, text_BLD]),
                timestep_cond=self._embedded_guidance(guidance_scale_B.repeat(rows)),
                added_cond_kwargs=added,
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

    def _embedded_guidance(self, guidance_scale_B: torch.Tensor) -> torch.Tensor | None:
        """w - 1 in sines and cosines, as Latent Consistency Models take it (Luo et al. 2023)."""
        if self.guidance_dim is None:
            return None
        return get_timestep_embedding(
            (guidance_scale_B.float() - 1) * 1000, self.guidance_dim, downscale_freq_shift=1
        ).to(self._unet.dtype)

    def _keep_mid_block(self, module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        self._mid_block_output = output
