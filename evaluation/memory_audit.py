"""How much memory an env runner and a reward replica take, calculated before anything is loaded (gate G0).

Always true here: weights are counted network by network in the type they are loaded in; activations are
those of the largest single call, followed on torch's meta device; what cannot be known (a kernel's
workspace, an allocator's fragments) is the margin, which is stated and never hidden in another number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor

from actors.backbones.attention import RecordingProcessor
from actors.backbones.config import BackboneConfig
from actors.backbones.loading import LoadedBackbone
from actors.conditioning import conditioning_row
from actors.engine import EngineConfig
from evaluation.peak_memory import peak_bytes
from evaluation.scorer_sizes import scorer_activations, scorer_weights
from evaluation.weightless import weightless_backbone
from learner.resources import ResourcesConfig
from rewards_service.scorers_config import ScorersConfig

GIB = 2**30
MARGIN = 0.1
"""Of weights and activations: workspaces, fragments, cached prompts."""
CONTEXT_GIB = 0.5
"""A process's CUDA context and its libraries' handles; an assumption, 0.3 to 0.6 by card and driver."""
PROCESS_GIB = {"env runner": 1.0, "reward replica": 0.6}
"""Without a GPU: interpreter and libraries, as docs/doctor.md measured them."""
KEPT_LATENTS = 6
"""Tensors of the latents' size in float32 that an episode holds: present, clean, history, the best."""
TRACED = (1, 2)
"""Episodes in the two calls that are followed; between them all is linear."""


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes of one process. weights: by network; call_base, call_slope: activations of the largest call with
    n episodes (or a batch) are base + slope * n; slot: what one episode holds between calls.
    """

    what: str
    on_gpu: bool
    weights: Mapping[str, int]
    call_base: float
    call_slope: float
    in_call: int
    slot: float = 0.0
    slots: int = 0
    memo: float = 0.0

    @property
    def overhead(self) -> float:
        """What the process takes before it holds a tensor."""
        return (CONTEXT_GIB if self.on_gpu else PROCESS_GIB[self.what]) * GIB

    @property
    def activations(self) -> float:
        """Of the largest call."""
        return self.call_base + self.call_slope * self.in_call

    @property
    def tensors(self) -> float:
        """Weights, activations, what the episodes hold, and the memo when it is full."""
        return sum(self.weights.values()) + self.activations + self.slot * self.slots + self.memo

    @property
    def total(self) -> float:
        """All of it, with the margin."""
        return self.overhead + self.memo + (self.tensors - self.memo) * (1 + MARGIN)

    def most_slots(self, room: float, groups: int) -> int:
        """How many slots would fit into `room` bytes: a multiple of `groups`, 0 if not even one each."""
        fixed = self.overhead + self.memo
        fixed += (sum(self.weights.values()) + self.call_base) * (1 + MARGIN)
        a_group = (self.call_slope + groups * self.slot) * (1 + MARGIN)
        return max(int((room - fixed) / a_group), 0) * groups

    def parts(self) -> dict[str, float]:
        """What the total is made of, in GiB."""
        found = {
            "weights": sum(self.weights.values()),
            f"activations of {self.in_call} at a time": self.activations,
            f"{self.slots} episodes": self.slot * self.slots,
            "remembered calls": self.memo,
            "process": self.overhead,
        }
        found["margin"] = self.total - sum(found.values())
        return {name: size / GIB for name, size in found.items() if size}


def env_runner_memory(
    config: BackboneConfig, engine: EngineConfig, resources: ResourcesConfig
) -> ProcessMemory:
    """Of one env runner. Raises UserError for a backbone of unknown size."""
    pipeline, backbone = weightless_backbone(config)
    on_gpu = config.device != "cpu"
    if not on_gpu:
        plain_attention(pipeline)
    networks = {name: getattr(pipeline, name) for name in backbone.networks}
    weights = {name: _bytes(network) for name, network in networks.items()}
    if _decodes_in_float32(pipeline):
        weights["vae"] *= 2
    # Before CUDA's allocator fails it gives back what the other call has left; a process's heap seldom does.
    together = max if on_gpu else sum
    followed = [together(call_peaks(backbone, networks.values(), engine, count)) for count in TRACED]
    slope = (followed[1] - followed[0]) / (TRACED[1] - TRACED[0])
    row = conditioning_row(backbone.encode_prompts(["a"]), 0)
    texts = (row.text_BLD, row.null_BLD, row.pooled_BD)
    latents = 4 * torch.Size(backbone.latent_shape).numel()
    return ProcessMemory(
        "env runner",
        on_gpu,
        weights,
        call_base=followed[0] - TRACED[0] * slope,
        call_slope=slope,
        in_call=-(-resources.slots // resources.groups),
        slot=KEPT_LATENTS * latents + sum(text.nbytes for text in texts if text is not None),
        slots=resources.slots,
        memo=resources.memo_mib * 2**20,
    )


def reward_replica_memory(scorers: ScorersConfig | str | None, *, on_gpu: bool, batch: int) -> ProcessMemory:
    """Of a replica that hosts all these scorers. Raises UserError for a model of unknown size."""
    base, slope = scorer_activations(scorers, batch)
    return ProcessMemory("reward replica", on_gpu, scorer_weights(scorers), base, slope, batch)


def call_peaks(
    backbone: LoadedBackbone, networks: Iterable[torch.nn.Module], engine: EngineConfig, count: int
) -> tuple[int, int]:
    """Bytes of a denoiser call, prompts encoded with it, and of a batch of previews, for `count` episodes."""
    held = list(networks)
    return (
        peak_bytes(partial(_denoise, engine, backbone, count), held),
        peak_bytes(partial(_preview, backbone, count), held),
    )


def _denoise(engine: EngineConfig, backbone: LoadedBackbone, count: int) -> object:
    conditioning = backbone.encode_prompts([str(number) for number in range(count)])
    if engine.guidance_rule == "none":
        conditioning = replace(conditioning, null_BLD=None)
    attention = "refine" in engine.actions and engine.refine_region == "attention"
    zeros = partial(torch.zeros, device="meta")
    latents_BCHW = zeros(count, *backbone.latent_shape)
    return backbone.denoise(latents_BCHW, zeros(count), conditioning, zeros(count), attention=attention)


def _preview(backbone: LoadedBackbone, count: int) -> object:
    return backbone.preview(torch.zeros(count, *backbone.latent_shape, device="meta"))


def plain_attention(pipeline: Any) -> None:
    """As `install_attention` chooses on a CPU."""
    unet = pipeline.unet
    for processor in unet.attn_processors.values():
        if isinstance(processor, RecordingProcessor):
            processor.otherwise = AttnProcessor()
    plain = {
        name: processor if isinstance(processor, RecordingProcessor) else AttnProcessor()
        for name, processor in unet.attn_processors.items()
    }
    unet.set_attn_processor(plain)


def _decodes_in_float32(pipeline: Any) -> bool:
    """Whether the backbone turns its decoder into float32 (SDXL's overflows float16)."""
    vae = pipeline.vae
    return (
        hasattr(pipeline, "text_encoder_2")
        and vae.dtype == torch.float16
        and bool(vae.config.get("force_upcast"))
    )


def _bytes(network: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
