"""FK steering, tree search, the stability rule and the bounds: what they cost and what they return."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from actors.contracts import EpisodeRequest, Images
from actors.engine import Engine, EngineConfig
from actors.errors import UserError
from evaluation.baselines import parse_baseline
from evaluation.baselines.opening import named_scorer
from evaluation.baselines.oracles import fixed_schedule
from evaluation.baselines.search import SearchSampler
from evaluation.baselines.steering import FeynmanKac, resampling_steps, weights
from evaluation.baselines.tree_search import TreeSearch
from evaluation.bench import Bench
from evaluation.generate import Generated, Job, generate
from evaluation.methods import BaselineMethod
from rewards_service.contracts import Scores
from tests.evaluation.fakes import ENGINE, FakeBackbone, FakeClient, open_fake_bench

REQUESTS = tuple(EpisodeRequest(f"prompt {index}", 100 + index, "1") for index in range(7))
STOCHASTIC = EngineConfig(
    solver="ddim", eta=1.0, num_steps=5, warmup_steps=0, actions=("continue", "stop"), max_nfe=40
)


def run(name: str, bench: Bench | None = None, slots: int = 6) -> Generated:
    baseline = parse_baseline(name)
    method = BaselineMethod(baseline, baseline.engine_config(ENGINE))
    return generate(bench or open_fake_bench(), Job(method, REQUESTS, slots))


def qualities(made: Generated) -> np.ndarray:
    return np.array([row.quality for row in made.rows])


def test_one_particle_is_the_stochastic_sampler_itself() -> None:
    bench = open_fake_bench()
    plain = fixed_schedule(bench, STOCHASTIC, 5).run(REQUESTS, slots=4)
    for search in (FeynmanKac(1), TreeSearch(budget=5)):
        sampler = SearchSampler(Engine(bench.backbone, STOCHASTIC), search, bench.scorer("image_reward"))
        for one, other in zip(sampler.run(REQUESTS, slots=4), plain, strict=True):
            torch.testing.assert_close(one.latents_CHW, other.latents_CHW)
            assert (one.nfe, one.network_evals) == (5, 10)


def test_every_particle_and_every_score_of_steering_is_counted() -> None:
    bench = open_fake_bench()
    made = run("fk-4@5", bench)
    looks = 4 * (len(resampling_steps(5)) + 1)
    for row in made.rows:
        assert (row.nfe, row.network_evals, row.looks, row.attempts) == (20, 40, looks, 4)
        assert row.cost == pytest.approx(20 + looks * ENGINE.look_price)
    assert isinstance(bench.backbone, FakeBackbone)
    assert bench.backbone.rows_denoised == 20 * len(REQUESTS)


def test_tree_search_stays_within_its_calls_and_makes_more_images_of_them_than_best_of() -> None:
    bench = open_fake_bench()
    made = run("dts-4@5", bench)
    for row in made.rows:
        assert 15 < row.nfe <= 20
        assert row.looks > 4, "prefixes are shared, so 20 calls finish more than 4 images"
    assert isinstance(bench.backbone, FakeBackbone)
    assert bench.backbone.rows_denoised == sum(row.nfe for row in made.rows)


@pytest.mark.parametrize("name", ["fk-4@5", "dts-4@5"])
def test_searching_by_the_scorer_raises_its_score(name: str) -> None:
    alone = generate(
        open_fake_bench(),
        Job(BaselineMethod(parse_baseline("ddim-5"), replace(STOCHASTIC, warmup_steps=1)), REQUESTS, 6),
    )
    scores = np.array([row.image_reward for row in run(name).rows])
    assert scores.mean() > np.mean([row.image_reward for row in alone.rows])


@pytest.mark.parametrize("name", ["fk-3@5", "dts-3@5", "stable-0.2@8", "refine@6", "oracle-stop@dpmpp-6"])
def test_an_image_does_not_depend_on_those_beside_it(name: str) -> None:
    bench = open_fake_bench()
    one, many = (run(name, bench, slots).rows for slots in (1, 12))
    for alone, beside in zip(one, many, strict=True):
        assert replace(alone, seconds=0, quality=0, image_reward=0, clip_score=0) == replace(
            beside, seconds=0, quality=0, image_reward=0, clip_score=0
        )
        assert alone.quality == pytest.approx(beside.quality, abs=1e-3)


def test_particles_are_drawn_as_their_scores_say() -> None:
    probabilities = weights(np.array([0.0, 0.1, 0.1 + np.log(2) / 10]), 10.0)
    np.testing.assert_allclose(probabilities, np.array([1, np.e, 2 * np.e]) / (1 + 3 * np.e))
    assert weights(np.array([1e3, 0.0]), 10.0)[0] == 1.0


def test_the_stability_rule_calls_less_the_more_it_tolerates() -> None:
    nfe = [np.mean([row.nfe for row in run(f"stable-{e}@20").rows]) for e in ("0.0001", "0.05", "0.9999")]
    assert nfe[0] == 20
    assert nfe[0] >= nfe[1] >= nfe[2]
    assert nfe[2] == pytest.approx(12, abs=1.5), "every second call at most is left out"
    for row in run("stable-0.9999@20").rows:
        assert row.actions.count("reuse") == 20 - row.nfe


def test_refining_once_costs_what_the_same_number_of_steps_does() -> None:
    baseline = parse_baseline("refine@7")
    engine = baseline.engine_config(replace(ENGINE, refine_region="random"))
    made = generate(open_fake_bench(), Job(BaselineMethod(baseline, engine), REQUESTS, 3))
    for row in made.rows:
        assert row.actions.count("refine") == 1
        assert row.nfe == 7 + ENGINE.refine_steps


def test_oracles_bound_what_they_choose_from_and_cost_what_they_chose() -> None:
    plain = run("dpmpp-6")
    stopped, lengths = run("oracle-stop@dpmpp-6"), run("oracle-n@dpmpp-6")
    assert (qualities(stopped) >= qualities(plain) - 1e-6).all()
    assert (qualities(lengths) >= qualities(plain) - 1e-6).all()
    for made in (stopped, lengths):
        for row in made.rows:
            assert row.nfe <= 6
            assert (row.network_evals, row.cost, row.looks) == (2 * row.nfe, row.nfe, 0)
    assert {row.nfe for row in stopped.rows} != {6}
    for row in stopped.rows:
        assert row.actions[-1] == "stop"
        assert len(row.actions) == row.nfe


def test_the_oracle_that_stops_returns_what_stopping_there_returns() -> None:
    """Against the engine: forced to stop after as many calls, it gives the same image."""
    bench = open_fake_bench()
    stopped = run("oracle-stop@dpmpp-6", bench)
    config = parse_baseline("dpmpp-6").engine_config(ENGINE)
    for episode, request in zip(stopped.episodes, REQUESTS, strict=True):
        cut = replace(config, max_nfe=episode.nfe, warmup_steps=0)
        method = BaselineMethod(parse_baseline("dpmpp-6"), cut)
        (alone,) = generate(bench, Job(method, (request,), 1)).episodes
        torch.testing.assert_close(alone.latents_CHW, episode.latents_CHW)


class Opposed(FakeClient):
    """CLIP likes worst what the image reward likes best."""

    def score(self, images: Images, prompts: Sequence[str], outputs: Sequence[str] | None = None) -> Scores:
        scores = super().score(images, prompts, outputs)
        return {name: -value if name == "clip_score" else value for name, value in scores.items()}


@pytest.mark.parametrize("search", ["best-of-3@5", "fk-3@5", "dts-3@5"])
def test_a_search_by_another_scorer_chooses_by_that_one(search: str) -> None:
    bench = replace(open_fake_bench(), client=Opposed(), outputs=("image_reward", "clip_score"))
    by_clip, by_default = run(f"{search}:clip_score", bench).rows, run(search, bench).rows
    assert by_clip[0].looks >= 3
    assert np.mean([row.image_reward for row in by_clip]) < np.mean([row.image_reward for row in by_default])


def test_a_search_needs_one_number_an_image() -> None:
    bench = replace(open_fake_bench(), outputs=("image_reward", "clip_score"))
    vectors = replace(bench, outputs=(*bench.outputs, "clip_image", "clip_text", "dino"))
    for embedding in ("dino", "clip_image"):
        with pytest.raises(UserError, match=f"{embedding}'; accepted: image_reward, clip_score$"):
            named_scorer(vectors, parse_baseline(f"best-of-2@4:{embedding}"))
    with pytest.raises(UserError, match="no score called 'aesthetic'; accepted: image_reward, clip_score"):
        run("best-of-3@5:aesthetic", bench)
