"""SAG and Attend-and-Excite on the embedded world's Stable Diffusion: what they cost, and what they leave."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from actors.backbones.config import BackboneConfig
from actors.backbones.loading import load_with_pipeline
from actors.contracts import EpisodeRequest, EpisodeResult
from actors.engine import EngineConfig
from actors.errors import UserError
from evaluation.baselines import attention_guidance, parse_baseline
from evaluation.baselines.attention_guidance import content_tokens
from evaluation.baselines.oracles import fixed_schedule
from evaluation.bench import Bench
from tests.evaluation.fakes import FakeClient, judge, open_fake_bench

GUIDANCE = EngineConfig(solver="ddim", guidance_scale=3.0)
REQUESTS = (EpisodeRequest("a red circle on a blue background", 3), EpisodeRequest("a green square", 4))


@pytest.fixture(scope="module")
def bench() -> Bench:
    pipeline, backbone = load_with_pipeline(BackboneConfig("shapes"))
    return Bench(backbone, FakeClient(), judge, "brightness", "world", pipeline=pipeline)


def run(name: str, bench: Bench) -> list[EpisodeResult]:
    from evaluation.baselines.opening import open_baseline

    baseline = parse_baseline(name)
    return list(open_baseline(baseline, baseline.engine_config(GUIDANCE), bench).run(REQUESTS, slots=2))


def test_sag_evaluates_the_network_once_more_a_step(bench: Bench) -> None:
    for end in run("sag-4", bench):
        assert (end.network_evals, end.nfe, end.cost) == (12, 6, 6.0)


def test_attend_and_excite_pays_for_every_forward_and_backward_pass(bench: Bench) -> None:
    for end in run("attend-excite-4", bench):
        # Each step: a guided pair and one pass for the attention; the first two at least one backward.
        assert end.network_evals >= 4 * 3 + 2 * attention_guidance.BACKWARD
        assert end.nfe == -(-end.network_evals // 2)


@pytest.mark.parametrize("name", ["sag-5", "attend-excite-5"])
def test_switched_off_it_is_the_plain_sampler_from_the_same_noise(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(attention_guidance, "SAG_SCALE", 0.0)

    def unexcited(self: Any, prompts: list[str]) -> dict[str, Any]:
        indices = [content_tokens(self._pipeline.tokenizer, prompt) for prompt in prompts]
        return {"token_indices": indices, "max_iter_to_alter": 0, "thresholds": {}, "attn_res": (8, 8)}

    monkeypatch.setattr(attention_guidance.PipelineSampler, "_excitement", unexcited)
    plain = fixed_schedule(bench, GUIDANCE, 5).run(REQUESTS, slots=2)
    for one, other in zip(run(name, bench), plain, strict=True):
        torch.testing.assert_close(one.latents_CHW, other.latents_CHW, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("name", ["sag-3", "attend-excite-3"])
def test_it_changes_the_image_and_leaves_the_network_as_it_was(bench: Bench, name: str) -> None:
    unet = bench.pipeline.unet
    processors, hooks = dict(unet.attn_processors), len(unet._forward_hooks)
    before = fixed_schedule(bench, GUIDANCE, 3).run(REQUESTS, slots=2)
    made = run(name, bench)
    assert dict(unet.attn_processors) == processors
    assert len(unet._forward_hooks) == hooks
    after = fixed_schedule(bench, GUIDANCE, 3).run(REQUESTS, slots=2)
    for guided, plain, again in zip(made, before, after, strict=True):
        torch.testing.assert_close(plain.latents_CHW, again.latents_CHW, rtol=0, atol=0)
        assert np.abs((guided.latents_CHW - plain.latents_CHW).numpy()).mean() > 0.01


def test_words_without_content_are_not_excited(bench: Bench) -> None:
    tokenizer = bench.pipeline.tokenizer
    prompt = "a red circle on a blue background"
    ids = tokenizer(prompt).input_ids
    words = [tokenizer.decode([ids[place]]).strip() for place in content_tokens(tokenizer, prompt)]
    assert words == ["red", "circle", "blue", "background"]
    assert content_tokens(tokenizer, "on a") != []


def test_where_it_cannot_run_is_one_line(bench: Bench) -> None:
    with pytest.raises(UserError, match="StableDiffusionPipeline"):
        run("sag-4", open_fake_bench())
    from evaluation.baselines.opening import open_baseline

    unguided = replace(GUIDANCE, guidance_scale=1.0)
    with pytest.raises(UserError, match=r"engine\.guidance_scale above 1"):
        open_baseline(parse_baseline("sag-4"), unguided, bench)
