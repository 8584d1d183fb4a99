"""AdaDiff: it learns what the reward says, from the prompt alone, and tells what its training cost."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.contracts import EpisodeRequest, Images
from actors.errors import UserError
from evaluation.baselines import parse_baseline
from evaluation.baselines.adadiff import fit, load, train
from evaluation.baselines.oracles import fixed_schedule
from evaluation.generate import Job, generate
from evaluation.methods import BaselineMethod
from rewards_service.contracts import Scores
from tests.evaluation.fakes import ENGINE, FakeBackbone, FakeClient, open_fake_bench

REQUESTS = tuple(EpisodeRequest(f"prompt {index}", 100 + index) for index in range(12))
STEPS = (2, 4, 6)


def test_it_learns_to_give_steps_to_the_prompts_that_need_them() -> None:
    """Prompts on one side of a plane need the most steps, the others the fewest: unseen ones get them too.

    Those near the plane nobody can tell apart from so few.
    """
    pooled = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    hard = (pooled[:, 0] > 0).numpy()
    quality = np.where(hard[:, None], [0.2, 0.5, 0.9], [0.9, 0.9, 0.9])
    rewards = quality - 0.15 * np.arange(3)
    network = train(pooled[:300], rewards[:300])
    chosen = network(pooled[300:]).argmax(1).numpy()
    side = pooled[300:, 0].numpy()
    assert (chosen[side > 0.5] == 2).mean() > 0.9
    assert (chosen[side < -0.5] == 0).mean() > 0.9


def test_the_same_seed_learns_the_same() -> None:
    pooled = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    rewards = np.random.default_rng(0).random((20, 3))
    one, other = train(pooled, rewards, seed=3), train(pooled, rewards, seed=3)
    torch.testing.assert_close(one(pooled), other(pooled), rtol=0, atol=0)


def test_a_file_says_what_it_cost_and_runs_each_prompt_as_chosen(tmp_path: Path) -> None:
    bench, file = open_fake_bench(), tmp_path / "steps.safetensors"
    fitted = fit(bench, REQUESTS, ENGINE, file, steps=STEPS, slots=4)
    assert isinstance(bench.backbone, FakeBackbone)
    assert fitted.nfe == sum(STEPS) * len(REQUESTS) == bench.backbone.rows_denoised
    network, read = load(file)
    assert read == fitted

    baseline = parse_baseline(f"adadiff@{file}")
    method = BaselineMethod(baseline, baseline.engine_config(ENGINE))
    made = generate(bench, Job(method, REQUESTS, slots=5))
    pooled = bench.backbone.encode_prompts([request.prompt for request in REQUESTS]).pooled_BD
    chosen = [STEPS[choice] for choice in network(pooled).argmax(1).tolist()]
    assert [row.nfe for row in made.rows] == chosen
    for request, count, end in zip(REQUESTS, chosen, made.episodes, strict=True):
        (alone,) = fixed_schedule(bench, method.engine, count).run([request], slots=1)
        torch.testing.assert_close(end.latents_CHW, alone.latents_CHW)


def test_its_images_are_not_those_of_another_file(tmp_path: Path) -> None:
    keys = []
    for price in (0.0, 0.5):
        fit(open_fake_bench(), REQUESTS, ENGINE, tmp_path / "a.safetensors", steps=STEPS, price=price)
        baseline = parse_baseline(f"adadiff@{tmp_path / 'a.safetensors'}")
        keys.append(BaselineMethod(baseline, baseline.engine_config(ENGINE)).key)
    assert keys[0] != keys[1]


def test_it_is_fitted_on_what_an_evaluation_runs_and_judged_by_finished_images(tmp_path: Path) -> None:
    """The policy walks with DDIM here, and the baseline, as in evaluations, with DPM-Solver++."""

    class Forecasting(FakeClient):
        outputs = ("image_reward", "clip_score", "image_reward_now")  # type: ignore[assignment]

        def score(self, images: Images, prompts: Any, outputs: Any = None) -> Scores:
            assert outputs == ("image_reward_now",)
            return super().score(images, prompts, outputs)

    client = Forecasting()
    bench = replace(open_fake_bench(), client=client, outputs=client.outputs)
    walked = replace(ENGINE, solver="ddim", guidance_scale=3.0)
    files = [tmp_path / "ddim.safetensors", tmp_path / "dpmpp.safetensors"]
    for file, engine in zip(files, (walked, replace(walked, solver="dpmpp")), strict=True):
        fit(bench, REQUESTS, engine, file, steps=STEPS)
    assert load(files[0])[1] == load(files[1])[1]
    for weights in zip(*(load(file)[0].parameters() for file in files), strict=True):
        torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_another_guidance_is_one_line(tmp_path: Path) -> None:
    bench, file = open_fake_bench(), tmp_path / "steps.safetensors"
    fit(bench, REQUESTS, ENGINE, file, steps=STEPS)
    baseline = parse_baseline(f"adadiff@{file}")
    BaselineMethod(baseline, baseline.engine_config(ENGINE)).open(bench)
    other = baseline.engine_config(replace(ENGINE, guidance_scale=ENGINE.guidance_scale + 1))
    with pytest.raises(UserError, match=r"fitted with dpmpp, guidance .*, this is dpmpp, guidance"):
        BaselineMethod(baseline, other).open(bench)


def test_another_backbone_and_another_file_are_one_line(tmp_path: Path) -> None:
    bench, file = open_fake_bench(), tmp_path / "steps.safetensors"
    fit(bench, REQUESTS, ENGINE, file, steps=STEPS)
    baseline = parse_baseline(f"adadiff@{file}")
    method = BaselineMethod(baseline, baseline.engine_config(ENGINE))
    with pytest.raises(UserError, match="fitted on fake-1, this is fake-2"):
        method.open(replace(bench, backbone=FakeBackbone(identity="fake-2")))
    file.write_bytes(b"no weights")
    with pytest.raises(UserError, match="fit-adadiff"):
        load(file)
    with pytest.raises(UserError, match="fit-adadiff"):
        load(tmp_path / "nowhere.safetensors")
