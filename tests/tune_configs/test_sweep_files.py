"""The sweeps and ablations that are shipped, and what is said of those that cannot be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from actors.errors import UserError
from tune_configs.loading import FOLDER, STUDIES, compose
from tune_configs.objective import judged_requests
from tune_configs.plan import Planner, TrialSpec, overrides_of, run_config
from tune_configs.schedule_search import schedule_specs
from tune_configs.sweep_config import Dimension
from tune_configs.sweep_files import Sweep, as_sweep, read_sweep, sweep_files, sweep_to_dict

FILES = [(group, file) for group in STUDIES for file in sweep_files(group)]
WHOLES = [pair for pair in FILES if pair != ("ablation", "all")]  # which has the variants of the others
ONE_SEED = ["sweep.seeds=[0]"]
SMALL = {"description": "Small.", "space": {"ppo.lr": {"grid": [1.0e-4, 1.0e-3]}}}


def trials(group: str, file: str, *own: str) -> list[TrialSpec]:
    return Planner(read_sweep(group, file, own), ()).trials()


def small(**changes: Any) -> Sweep:
    return as_sweep("sweep", "small", {**SMALL, **changes})


def test_every_file_on_disk_is_known() -> None:
    assert {
        (path.parent.name, path.stem) for group in STUDIES for path in (FOLDER / group).glob("*.yaml")
    } == {*FILES}


@pytest.mark.parametrize(("group", "file"), WHOLES, ids=["=".join(pair) for pair in WHOLES])
def test_every_variant_of_every_file_composes_to_a_training_of_its_own(group: str, file: str) -> None:
    sweep = read_sweep(group, file, ONE_SEED)
    planner = Planner(sweep, ())
    requests = judged_requests(planner.base, sweep.config.judge)
    assert len(requests) == sweep.config.judge.prompts * sweep.config.judge.seeds
    if sweep.config.schedule is not None:
        kinds = [spec.labels[0] for spec in schedule_specs(sweep.config, planner.base, ())]
        assert kinds == [f"steps-{steps}/{kind}" for steps in (5, 7, 10) for kind in ("spaced", "searched")]
        return
    specs = planner.trials()
    if sweep.config.searcher == "optuna":
        bounds = {name: one.uniform or one.loguniform for name, one in sweep.config.space.items()}
        values = {name: bound[0] for name, bound in bounds.items() if bound is not None}
        assert len(values) == len(bounds)
        specs = [planner.trial(file, "t0", values, overrides_of(values), 0)]
    assert specs
    assert len({spec.key for spec in specs}) == len({spec.id for spec in specs}) == len(specs)
    assert as_sweep(group, file, sweep_to_dict(sweep.config)).config == sweep.config


def test_a_variant_set_to_null_is_left_out() -> None:
    sweep = read_sweep(
        "ablation", "A4", ["sweep.variants.learned=null", "sweep.variants.more=['ppo.lr=0.01']"]
    )
    assert list(sweep.config.variants) == ["attention", "grid", "random", "change", "more"]
    with pytest.raises(UserError, match=r"sweep.variants.lerned=null: .*one of attention.*learned"):
        read_sweep("ablation", "A4", ["sweep.variants.lerned=null"])


def test_the_command_line_changes_the_values_of_one_option_or_leaves_it_out() -> None:
    other = read_sweep("sweep", "lr", ["sweep.space.ppo.lr.loguniform=[1e-5,1e-2]", "sweep.trials=3"])
    assert other.config.space == {"ppo.lr": Dimension(loguniform=(1e-5, 1e-2))}
    both = ["sweep.space.ppo.lr.grid=[0.5]", "sweep.space.ppo.num_epochs.grid=[3,6]"]
    assert {tuple(spec.values.items()) for spec in trials("sweep", "lr", *both)} == {
        (("ppo.lr", 0.5), ("ppo.num_epochs", epochs)) for epochs in (3, 6)
    }
    fewer = read_sweep("sweep", "pbt", ["sweep.space.reward.c_nfe=null"])
    assert set(fewer.config.space) == {"ppo.lr", "ppo.entropy_start"}


def test_a_variant_without_options_of_its_own_is_stored_too() -> None:
    content = {"description": "x", "variants": {"plain": [], "fast": ["ppo.lr=0.01"]}, "reference": "plain"}
    config = as_sweep("sweep", "x", content).config
    assert as_sweep("sweep", "x", sweep_to_dict(config)).config == config


def test_the_ablations_are_those_that_were_planned() -> None:
    variants = {
        file: {
            label.partition("/")[2] for spec in trials("ablation", file, *ONE_SEED) for label in spec.labels
        }
        for file in ("A1", "A2", "A3", "A4", "A5")
    }
    assert variants == {
        "A1": {"full", "no_efficiency", "no_quality", "terminal_only"},
        "A2": {
            *("full", "no_refine", "no_stop", "stop_only"),
            *("with_leap", "with_restart", "with_look", "with_reuse", "with_guidance"),
        },
        "A3": {"full", "no_clip", "no_quality", "timestep_only", "latent"},
        "A4": {"attention", "grid", "random", "learned", "change"},
        "A5": {"on", "off"},
    }


def test_what_two_ablations_share_is_one_trial_with_all_its_names() -> None:
    specs = trials("ablation", "all", "sweep.seeds=[4,5]")
    shared = {spec.labels for spec in specs if len(spec.labels) > 1}
    assert shared == {
        ("A1/full", "A5/on"),
        ("A2/full", "A4/attention"),
        ("A2/no_refine", "A2/stop_only"),
    }
    assert len(specs) == 2 * (4 + 9 + 5 + 5 + 2 - 3)
    assert all(run_config(spec.overrides).seed == spec.seed for spec in specs[:2])


def test_a_grid_has_every_point_and_draws_stay_inside_their_bounds() -> None:
    grid = small(space={"ppo.lr": {"grid": [1.0e-4, 1.0e-3]}, "ppo.num_epochs": {"grid": [3, 6, 9]}})
    points = {tuple(spec.values.values()) for spec in Planner(grid, ()).trials()}
    assert points == {(lr, epochs) for lr in (1e-4, 1e-3) for epochs in (3, 6, 9)}
    space = {
        "ppo.lr": {"loguniform": [1.0e-5, 1.0e-2]},
        "reward.c_nfe": {"uniform": [0.01, 0.02]},
        "reward": {"choice": ["balanced", "quality"]},
    }
    drawn = small(space=space, trials=40)
    specs = Planner(drawn, ()).trials()
    assert [spec.values for spec in specs] == [spec.values for spec in Planner(drawn, ()).trials()]
    logs = [math.log10(float(spec.values["ppo.lr"])) for spec in specs]
    assert -5 <= min(logs) < -4 < -3 < max(logs) <= -2
    assert all(0.01 <= float(spec.values["reward.c_nfe"]) <= 0.02 for spec in specs)
    assert {spec.values["reward"] for spec in specs} == {"balanced", "quality"}
    config = run_config(specs[0].overrides)
    assert config.ppo.lr == specs[0].values["ppo.lr"]
    assert config.reward.profile == specs[0].values["reward"]


def test_values_of_a_grid_that_differ_in_the_last_digit_are_two_trials() -> None:
    specs = Planner(small(space={"ppo.lr": {"grid": [0.001, 0.0010000001]}}), ()).trials()
    assert [spec.id for spec in specs] == ["small-lr=0.001-s0", "small-lr=0.0010000001-s0"]


def test_what_makes_a_variant_comes_after_what_is_given_for_all() -> None:
    specs = Planner(small(base=["ppo.lr=0.5"]), ["ppo.lr=0.25", "ppo.iterations=7"]).trials()
    configs = [run_config(spec.overrides) for spec in specs]
    assert [config.ppo.lr for config in configs] == [1e-4, 1e-3]
    assert {config.ppo.iterations for config in configs} == {7}


def test_a_trial_is_known_by_its_options_not_by_its_place() -> None:
    here, there = (
        Planner(small(), [f"runs_dir={folder}", "resources.slots=8"]).trials() for folder in ("a", "b")
    )
    assert [spec.key for spec in here] == [spec.key for spec in there]
    other = Planner(small(), ["ppo.clip_param=0.3"]).trials()
    assert not {spec.key for spec in here} & {spec.key for spec in other}


def test_judged_prompts_are_held_out_and_their_noises_are_not_the_watchs() -> None:
    from learner.held_out import held_out_requests
    from learner.train import training_requests

    planner = Planner(small(), ())
    judged = judged_requests(planner.base, planner.sweep.config.judge)
    assert not {one.prompt for one in judged} & {one.prompt for one in training_requests(planner.base)}
    assert not {one.prompt for one in judged} & {one.text for one in compose().evaluation.load_prompts(200)}
    assert not set(judged) & set(held_out_requests(planner.base))


def test_a_file_of_which_nothing_is_held_out_judges_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a cat\na dog\na fox\n")
    given = ["prompts=file", f"prompts.source={tmp_path}/mine.txt"]
    judge = small().config.judge
    with pytest.raises(UserError, match="0 held-out prompts to judge on"):
        judged_requests(run_config([*given, "watch=none"]), judge)
    with pytest.raises(UserError, match="1 held-out prompts to judge on"):
        judged_requests(run_config(given), judge)


@pytest.mark.parametrize(
    ("group", "file", "own", "said"),
    [
        ("sweep", "lrr", [], "sweep='lrr': give one of asha, lr, optuna, pareto, pbt"),
        ("ablation", "A6", [], "ablation='A6': give one of A1, A2, A3, A4, A5, all"),
        ("sweep", "lr", ["sweep.trialz=3"], "unknown option 'trialz'; did you mean 'trials'?"),
        (
            "sweep",
            "lr",
            ["sweep.seeds=[]"],
            "sweep.seeds: []; accepted: one or more different numbers from 0",
        ),
        (
            "sweep",
            "lr",
            ["sweep.metric=speed"],
            "sweep.metric='speed': give one of utility, quality, nfe, cost",
        ),
        (
            "sweep",
            "lr",
            ["sweep.space.ppo.lr.grid=[]"],
            "sweep.space.ppo.lr.grid: nothing; accepted: values, or else choice",
        ),
        (
            "sweep",
            "optuna",
            ["sweep.space.reward.c_nfe.uniform=[2,1]"],
            "sweep.space.reward.c_nfe.uniform: [2.0, 1.0]; accepted: a lower and a higher bound",
        ),
        (
            "sweep",
            "lr",
            ["sweep.space.ppo.lr=3"],
            "sweep.space.ppo.lr=3: give sweep.space.OPTION.KIND=[...], KIND one of grid, choice",
        ),
        (
            "sweep",
            "lr",
            ["sweep.space.ppo.lrr=null"],
            "sweep.space.ppo.lrr=null: it is not varied; give one of ppo.lr; did you mean 'ppo.lr'?",
        ),
        (
            "ablation",
            "all",
            ["sweep.variants.learned=null"],
            "belong to the parts A1, A2, A3, A4, A5; leave a part out with sweep.parts=[...]",
        ),
        (
            "sweep",
            "pareto",
            ["sweep.fixed=[7,7]"],
            "sweep.fixed: [7, 7]; accepted: different numbers of steps",
        ),
        ("sweep", "optuna", ["sweep.fixed=[7]"], "sweep.fixed: [7]; accepted: none, with a schedule or a"),
        ("sweep", "schedule", ["sweep.seeds=[0,1]"], "sweep.seeds: [0, 1]; accepted: one, as a fixed"),
        ("sweep", "lr", ["sweep.searcher=optuna"], "as a grid leaves nothing to search"),
        ("sweep", "pbt", ["sweep.searcher=optuna"], "accepted: none, as pbt changes trials itself"),
        (
            "sweep",
            "pbt",
            ["sweep.max_concurrent=3"],
            "sweep.max_concurrent: 3; accepted: 4 (sweep.trials) or more, or null",
        ),
        ("sweep", "asha", ["sweep.seeds=[0,1]"], "sweep.seeds: [0, 1]; accepted: one, with scheduler=asha"),
        (
            "sweep",
            "reward",
            ["sweep.reference=ful"],
            "sweep.reference: 'ful'; accepted: one of quality_heavy",
        ),
        ("sweep", "reward", ["sweep.scheduler=asha"], "accepted: none, as there is no space to search"),
        (
            "sweep",
            "lr",
            ["sweep.judge.prompts=3"],
            "sweep.judge.prompts: 3; accepted: fewest_prompts=30 or more",
        ),
    ],
)
def test_a_sweep_that_cannot_be_is_one_line(group: str, file: str, own: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        read_sweep(group, file, own)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"grid": []}, "sweep.space.ppo.lr.grid: nothing; accepted: values, or else choice, uniform or"),
        ({"uniform": [0.2, 0.1]}, "sweep.space.ppo.lr.uniform: [0.2, 0.1]; accepted: a lower and a higher"),
        ({"uniform": [0.1, 0.1]}, "accepted: a lower and a higher bound"),
        ({"loguniform": [0.0, 0.1]}, "accepted: bounds above 0"),
        ({"grid": [1.0, 1.0]}, "accepted: different values"),
        ({"grid": [0.1], "choice": [0.1]}, "sweep.space.ppo.lr.choice: [0.1]; accepted: nothing beside grid"),
        ({"normal": [0.0, 1.0]}, "unknown option 'sweep.space.ppo.lr.normal'"),
    ],
)
def test_a_range_with_nothing_in_it_is_one_line(space: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        small(space={"ppo.lr": space})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "overrides", "said"),
    [
        ({"space": {"ppo.lrr": {"grid": [1]}}}, [], "small/lrr=1: unknown option 'ppo.lrr'; did you mean"),
        ({"space": {"ppo.lr": {"grid": [-1.0]}}}, [], "small/lr=-1: ppo.lr=-1"),
        (
            {"space": {"engine.look_price": {"grid": [0.1]}}},
            [],
            "changes engine.look_price, which all trials",
        ),
        ({"space": {"watch.prompts": {"grid": [4]}}}, [], "changes watch, which all trials share"),
        ({"space": {"prompts.limit": {"grid": [4]}}}, [], "changes prompts, which all trials share"),
        (
            {"space": {"ppo.lr": {"uniform": [-1.0, 0.1]}}, "searcher": "optuna"},
            [],
            "small/lr=-1: ppo.lr=-1.0: give a number above 0 and below 1",
        ),
        (
            {"space": {"ppo.lrr": {"uniform": [0.1, 0.2]}}, "searcher": "optuna"},
            [],
            "small/lrr=0.1: unknown option 'ppo.lrr'; did you mean 'ppo.lr'?",
        ),
        (
            {"space": {"ppo.minibatch_size": {"uniform": [16, 64]}}, "searcher": "optuna"},
            [],
            "small/minibatch_size=16: ppo.minibatch_size=16.0: give a whole number",
        ),
        (
            {"space": {"ppo.clip_param": {"uniform": [0.1, 1.0]}}, "scheduler": "pbt", "trials": 1},
            [],
            "small/clip_param=1: ppo.clip_param=1.0",
        ),
        (
            {"space": {}, "variants": {"plain": [], "odd": ["engine.actions=[continue,stopp]"]}},
            [],
            "small/odd: engine.actions has 'stopp'; accepted: continue, stop",
        ),
        (
            {"space": {}, "variants": {"steered": ["engine.actions=[continue,stop,guidance-3]"]}},
            ["engine.guidance_rule=none"],
            "small/steered: engine.actions has 'guidance-3'; accepted with engine.guidance_rule 'none'",
        ),
        ({}, ["watch.split=test"], "watch.split=test: give another split"),
        ({}, ["watch.keep=best"], "watch.keep=best: give last"),
        ({}, ["ppo.lrr=1"], "unknown option 'ppo.lrr'"),
        (
            {"space": {"ppo.lr": {"uniform": [0.1, 0.2]}}, "scheduler": "asha"},
            ["watch.prompts=29"],
            "sweep.scheduler=asha: would judge on 29 held-out prompts; give watch.every, and watch.prompts=",
        ),
        (
            {"space": {"ppo.lr": {"uniform": [0.1, 0.2]}}, "scheduler": "asha"},
            ["watch=none"],
            "sweep.scheduler=asha: would judge on 0 held-out prompts",
        ),
        (
            {"space": {"ppo.lr": {"uniform": [0.1, 0.2]}}, "scheduler": "asha"},
            ["ppo.iterations=20"],
            "sweep.grace=20: give less than ppo.iterations=20",
        ),
        (
            {"space": {"ppo.lr": {"uniform": [0.1, 0.2]}}, "scheduler": "pbt"},
            ["watch.every=3"],
            "sweep.perturbation_interval=10: give a multiple of watch.every=3",
        ),
    ],
)
def test_trials_that_cannot_be_or_cannot_be_compared_are_one_line(
    changes: dict[str, Any], overrides: list[str], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        Planner(small(**changes), overrides).trials()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
