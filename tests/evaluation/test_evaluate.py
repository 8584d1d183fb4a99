"""A whole evaluation on the fake world: its files, its accounting, and what it makes again."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.contracts import EpisodeRequest, Images
from actors.errors import UserError
from evaluation.baselines import parse_baseline
from evaluation.bench import Bench
from evaluation.config import EvaluationConfig
from evaluation.evaluate import _peak_gpu_gib, evaluate, evaluation_requests, image_store
from evaluation.generate import Workers, jobs_of, run_jobs
from evaluation.methods import read_policy
from evaluation.report import write_report
from evaluation.rows import IMAGES_FILE, read_rows
from evaluation.strips import STRIPS_FILE, read_strips
from evaluation.summary import SUMMARY_KEYS
from rewards_service.contracts import Scores
from tests.evaluation.fakes import ENGINE, FakeBackbone, FakeClient, open_fake_bench, saved_policy

CONFIG = EvaluationConfig(
    prompts_per_tier=3,
    seeds=2,
    baselines=("ddim-50", "dpmpp-4", "best-of-2@4", "oracle-best-of-2@4"),
    resamples=200,
    slots=4,
    workers=1,
    strips=3,
    traced=5,
)
IMAGES = 4 * 3 * 2


@pytest.fixture
def bench() -> Bench:
    return open_fake_bench()


@pytest.fixture
def recipe(bench: Bench) -> Callable[[str, EvaluationConfig], Callable[[], Bench]]:
    return lambda backbone, config: lambda: bench


def denoised(bench: Bench) -> int:
    assert isinstance(bench.backbone, FakeBackbone)
    return bench.backbone.rows_denoised


def without_times(summary: dict[str, Any]) -> str:
    text = json.dumps(summary, sort_keys=True)

    def strip(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {
            key: value for key, value in pairs if key not in ("seconds", "seconds_total", "reused_images")
        }

    return json.dumps(json.loads(text, object_pairs_hook=strip))


def test_summary_has_the_promised_keys_and_true_numbers(tmp_path: Path, recipe: Any) -> None:
    shown: list[tuple[str, int, int]] = []
    summary = evaluate(
        saved_policy(tmp_path / "policy"),
        tmp_path / "run",
        CONFIG,
        progress=lambda *where: shown.append(where),
        recipe=recipe,
    )
    assert json.loads((tmp_path / "run/summary.json").read_text()) == json.loads(json.dumps(summary))
    assert set(summary) == set(SUMMARY_KEYS)
    assert set(summary["baselines"]) == set(CONFIG.baselines)
    for method in (summary["policy"], *summary["baselines"].values()):
        assert {"quality", "ci95", "nfe", "network_evals", "seconds", "per_tier", "cost", "looks"} <= set(
            method
        )
        assert method["ci95"][0] <= method["quality"] <= method["ci95"][1]
        assert set(method["per_tier"]) == {"1", "2", "3", "4"}
        assert method["seconds"] > 0
    for hypothesis in summary["hypotheses"].values():
        assert {"estimate", "ci95", "passed", "statement"} <= set(hypothesis)
    assert set(summary["hypotheses"]) == {"H1", "H2", "H3", "H4"}
    assert sum(summary["actions"].values()) == pytest.approx(1)
    assert (summary["model_version"], summary["seed"]) == ("7", 0)
    assert summary["baselines"]["best-of-2@4"]["nfe"] == 8
    assert summary["baselines"]["oracle-best-of-2@4"]["bound"]
    assert shown[-1][1:] == (5 * IMAGES, 5 * IMAGES)
    assert [done for _, done, _ in shown] == sorted(done for _, done, _ in shown)

    rows = [row for row in read_rows(tmp_path / "run" / IMAGES_FILE) if row.method == "policy"]
    assert len(rows) == IMAGES
    assert summary["policy"]["quality"] == pytest.approx(sum(row.quality for row in rows) / IMAGES)
    assert summary["policy"]["nfe"] == pytest.approx(sum(row.nfe for row in rows) / IMAGES)
    for strip in read_strips(tmp_path / "run" / STRIPS_FILE):
        row = next(row for row in rows if (row.prompt, row.seed) == (strip.prompt, strip.seed))
        assert tuple(frame.action for frame in strip.frames) == row.actions
        assert (strip.nfe, strip.quality) == (row.nfe, row.quality)
    assert write_report(tmp_path / "run").stat().st_size > 10_000


def test_a_second_evaluation_makes_nothing_but_the_traced_images_and_says_the_same(
    tmp_path: Path, bench: Bench, recipe: Any
) -> None:
    folder = saved_policy(tmp_path / "policy")
    first = evaluate(folder, tmp_path / "first", CONFIG, recipe=recipe)
    spent = denoised(bench)
    again = evaluate(folder, tmp_path / "again", CONFIG, recipe=recipe)
    assert without_times(first) == without_times(again)
    assert (first["config"]["reused_images"], again["config"]["reused_images"]) == (0, 5 * IMAGES)
    traced = denoised(bench) - spent
    policys_own = IMAGES * first["policy"]["nfe"]
    assert spent == pytest.approx(IMAGES * (50 + 4 + 8 + 8) + policys_own + traced)
    assert traced < policys_own
    assert first["baselines"]["ddim-50"]["seconds"] == again["baselines"]["ddim-50"]["seconds"]


def test_more_prompts_reuse_the_rows_there_are_and_make_the_rest(
    tmp_path: Path, bench: Bench, recipe: Any
) -> None:
    folder = saved_policy(tmp_path / "policy")
    few = replace(CONFIG, baselines=("dpmpp-4",), strips=0, traced=0, seeds=1)
    evaluate(folder, tmp_path / "few", few, recipe=recipe)
    more = evaluate(folder, tmp_path / "more", replace(few, seeds=2), recipe=recipe)
    assert more["config"]["reused_images"] == 2 * (IMAGES // 2)
    assert more["baselines"]["dpmpp-4"]["nfe"] == 4
    assert not (tmp_path / "more" / STRIPS_FILE).exists()


def test_bounds_alone_are_refused_before_the_first_image(tmp_path: Path, bench: Bench) -> None:
    folder = saved_policy(tmp_path / "policy")
    config = replace(CONFIG, baselines=("oracle-best-of-2@4", "oracle-stop@dpmpp-4"))
    with pytest.raises(UserError, match=r"evaluation\.baselines=oracle-best-of-2@4.*bounds only"):
        evaluate(folder, tmp_path / "run", config, recipe=lambda *_: lambda: bench)
    assert denoised(bench) == 0


@pytest.mark.parametrize("changed", [{"slots": 8}, {"dtype": "bfloat16"}, {"workers": 2}])
def test_seconds_are_not_reused_under_other_conditions(
    tmp_path: Path, bench: Bench, changed: dict[str, Any]
) -> None:
    base = image_store(tmp_path, bench, CONFIG)
    assert image_store(tmp_path, bench, replace(CONFIG, margin=0.02, address="a", strips=0)) == base
    assert image_store(tmp_path, bench, replace(CONFIG, **changed)) != base
    assert image_store(tmp_path, replace(bench, identity="other"), CONFIG) != base


def test_what_travels_to_workers_does_not_depend_on_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bench: Bench
) -> None:
    saved_policy(tmp_path / "policy")
    monkeypatch.chdir(tmp_path)
    policy = read_policy(Path("policy"), greedy=True, seed=0)
    store = image_store(Path("runs"), bench, CONFIG)
    assert Path(policy.trained.folder) == tmp_path / "policy"
    assert store.folder == tmp_path / "runs" / "images"
    assert parse_baseline("adadiff@fitted.safetensors").file == str(tmp_path / "fitted.safetensors")


def test_drawn_actions_do_not_depend_on_slots_or_chunks(tmp_path: Path, bench: Bench) -> None:
    policy = read_policy(saved_policy(tmp_path / "policy"), greedy=False, seed=3)
    requests = [EpisodeRequest(f"prompt {index}", index) for index in range(12)]

    def actions(slots: int, wanted: list[EpisodeRequest]) -> dict[int, tuple[str, ...]]:
        made = run_jobs(lambda: bench, jobs_of(policy, wanted, slots), Workers(1))
        return {row.seed: row.actions for _, rows in made for row in rows}

    together = actions(5, requests)
    assert len(set(together.values())) > 1
    assert together == actions(1, requests)
    assert {7: together[7]} == actions(5, [requests[7]])
    greedy = replace(policy, greedy=True)
    assert together != {
        row.seed: row.actions
        for _, rows in run_jobs(lambda: bench, jobs_of(greedy, requests, 5), Workers(1))
        for row in rows
    }


def test_memory_of_other_processes_is_not_told_as_this_ones() -> None:
    assert _peak_gpu_gib(replace(CONFIG, device="cuda", workers=2)) is None


def test_rows_report_the_score_of_the_image_as_it_is(tmp_path: Path, bench: Bench) -> None:
    class Forecasting(FakeClient):
        outputs = ("image_reward", "clip_score", "image_reward_now")  # type: ignore[assignment]

        def score(self, images: Images, prompts: Any, outputs: Any = None) -> Scores:
            scores = super().score(images, prompts, outputs)
            return {name: value - (name == "image_reward_now") for name, value in scores.items()}

    client = Forecasting()
    forecasting = replace(bench, client=client, outputs=client.outputs)
    policy = read_policy(saved_policy(tmp_path / "policy"), greedy=True, seed=0)
    jobs = jobs_of(policy, [EpisodeRequest("a", 1), EpisodeRequest("b", 2)], 2)
    ((_, before),) = run_jobs(lambda: bench, jobs, Workers(1))
    ((_, rows),) = run_jobs(lambda: forecasting, jobs, Workers(1))
    assert [row.image_reward for row in rows] == pytest.approx([row.image_reward - 1 for row in before])
    assert [row.actions for row in rows] == [row.actions for row in before], "looks see what they saw"


def test_other_weights_or_options_reuse_nothing(tmp_path: Path) -> None:
    config = replace(CONFIG, baselines=("dpmpp-4", "best-of-2@4"), strips=0, traced=0)

    def reused(bench: Bench, name: str, **metadata: Any) -> int:
        folder = saved_policy(tmp_path / name, **metadata)
        summary = evaluate(folder, tmp_path / f"run-{name}", config, recipe=lambda *_: lambda: bench)
        return int(summary["config"]["reused_images"])

    engine = {**ENGINE.__dict__, "actions": list(ENGINE.actions)}
    assert reused(open_fake_bench(), "a") == 0
    assert reused(replace(open_fake_bench(), identity="other scorers"), "b") == 0
    assert reused(open_fake_bench(), "c", engine={**engine, "guidance_scale": 2.0}) == 0
    # The price of a look changes the cost of best-of-2 and nothing of dpmpp-4.
    assert reused(open_fake_bench(), "d", engine={**engine, "look_price": 0.7}) == IMAGES
    assert reused(open_fake_bench(), "e") == 3 * IMAGES, "the same policy, under another folder's name"


def test_rows_do_not_depend_on_the_number_of_processes(tmp_path: Path, ray_session: None) -> None:
    policy = read_policy(saved_policy(tmp_path / "policy"), greedy=True, seed=0)
    requests = [EpisodeRequest(f"prompt {index}", index) for index in range(20)]
    jobs = jobs_of(policy, requests, slots=2)
    assert len(jobs) == 3

    def rows(workers: int) -> list[Any]:
        made = [row for _, chunk in run_jobs(open_fake_bench, jobs, Workers(workers)) for row in chunk]
        return sorted((replace(row, seconds=0.0) for row in made), key=lambda row: row.seed)

    assert rows(1) == rows(2)


def test_prompts_are_distinct_and_no_two_share_a_seed(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    things = {"easy": "ccde", "hard": "cfgh"}  # of what is there twice the first counts
    lines = [
        {"prompt": f"a {thing}", "tier": tier, "Category": f"about {thing}"}
        for tier in things
        for thing in things[tier]
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = replace(CONFIG, prompts=str(path), prompts_per_tier=2, seeds=3)
    requests = evaluation_requests(config)
    assert [request.prompt for request in requests[::3]] == ["a c", "a d", "a f", "a g"]
    assert {request.prompt for request in requests[:3]} == {"a c"}
    assert {request.category for request in requests[:3]} == {"about c"}
    assert len({request.seed for request in requests}) == 12
    assert requests == evaluation_requests(config)
    assert {request.seed for request in evaluation_requests(replace(config, seed=1))}.isdisjoint(
        request.seed for request in requests
    )


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"backbone": "another"}, "trained on backbone another"),
        ({"engine": {"num_step": 3}}, "unknown option num_step"),
        ({"engine": {**ENGINE.__dict__, "actions": ["continue", "stop"]}}, "and 5 actions"),
    ],
)
def test_a_policy_that_does_not_fit_is_one_line_and_leaves_nothing(
    tmp_path: Path, recipe: Any, metadata: dict[str, Any], message: str
) -> None:
    folder = saved_policy(tmp_path / "policy", **metadata)
    with pytest.raises(UserError, match=message):
        evaluate(folder, tmp_path / "run", CONFIG, recipe=recipe)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"prompts_per_tier": 0},
        {"seeds": 0},
        {"workers": 0},
        {"margin": float("nan")},
        {"baselines": ()},
        {"baselines": ("ddim-10", "ddim-10")},
        {"baselines": ("heun-5",)},
    ],
)
def test_an_impossible_option_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"evaluation.{next(iter(options))}"):
        EvaluationConfig(**options)


def test_a_run_that_breaks_off_keeps_what_it_made(tmp_path: Path, bench: Bench) -> None:
    def breaks_at(limit: int) -> Callable[..., None]:
        def progress(method: str, done: int, total: int) -> None:
            if done >= limit:
                raise KeyboardInterrupt

        return progress

    folder = saved_policy(tmp_path / "policy")
    arguments: dict[str, Any] = {"recipe": lambda *_: lambda: bench}
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, tmp_path / "run", CONFIG, progress=breaks_at(2 * IMAGES), **arguments)
    assert not (tmp_path / "run" / "summary.json").exists()
    again = evaluate(folder, tmp_path / "run", CONFIG, **arguments)
    assert again["config"]["reused_images"] == 2 * IMAGES
