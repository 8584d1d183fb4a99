from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.errors import UserError
from evaluation.baselines import check_baselines
from evaluation.evaluate import evaluation_requests
from learner.config import RunConfig
from learner.curriculum import Phase
from learner.offline_config import OfflineConfig
from rewards_service.scorers_config import DinoConfig, HpsConfig, ScorersConfig
from shapes.captions import scene_count
from tune_configs.conversion import join, option_names
from tune_configs.loading import FOLDER, STUDIES, compose, compose_offline, groups, settings_from_yaml

FILES = [(group, file) for group, files in groups().items() for file in files]


def test_the_groups_are_those_of_the_folder() -> None:
    on_disk = {(path.parent.name, path.stem) for path in FOLDER.glob("*/*.yaml")}
    assert {pair for pair in on_disk if pair[0] not in STUDIES} == set(FILES)


@pytest.mark.parametrize(("group", "file"), FILES, ids=["=".join(pair) for pair in FILES])
def test_every_file_composes_and_what_it_says_is_in_the_checked_settings(group: str, file: str) -> None:
    content = yaml.safe_load((FOLDER / group / f"{file}.yaml").read_text(encoding="utf-8"))
    content.pop("defaults", None)
    # A backbone brings numbers of its own, the embedded world for the reward: another one shows the file's.
    beside = {"backbone": [], "evaluation": ["backbone=shapes"]}.get(group, ["backbone=sd15"])
    settings = compose([*beside, f"{group}={file}"])
    result = {**asdict(settings.run), "evaluation": asdict(settings.evaluation)}
    header = (FOLDER / group / f"{file}.yaml").read_text(encoding="utf-8").splitlines()[0]
    package = header.removeprefix("# @package ") if header.startswith("# @package") else group
    section = result if package == "_global_" else result[package]
    _assert_contains(section, content)


def _assert_contains(result: object, expected: object) -> None:
    if isinstance(expected, dict):
        assert isinstance(result, dict)
        for key, value in expected.items():
            _assert_contains(result[key], value)
    elif isinstance(expected, list):
        assert list(result) == expected  # type: ignore[call-overload]
    elif not str(expected).startswith("${"):
        assert result == expected


def test_every_section_and_option_of_the_defaults_is_written_down() -> None:
    """Whoever reads the YAML sees each option of PPO, prompts, resources, evaluation: none is hidden."""
    tree = compose()
    sections: dict[str, Any] = {
        "algorithm/ppo": tree.run.algorithm,
        "ppo/tuned": tree.run.ppo,
        "prompts/shapes": tree.run.prompts,
        "curriculum/hard_first": tree.run.curriculum,
        "resources/laptop": tree.run.resources,
        "rewards/one_process": tree.run.rewards,
        "reward/balanced": tree.run.reward,
        "guards/standard": tree.run.guards,
        "watch/standard": tree.run.watch,
        "observation/latent": tree.run.observation,
        "evaluation/standard": tree.evaluation,
    }
    for group, config in sections.items():
        written = yaml.safe_load((FOLDER / f"{group}.yaml").read_text(encoding="utf-8"))
        assert set(written) == {field.name for field in fields(config)}


def test_an_override_changes_its_option_and_nothing_else() -> None:
    before, after = compose().run, compose(["ppo.lr=1e-4"]).run
    assert math.isclose(after.ppo.lr, 1e-4)
    changed = asdict(before)
    changed["ppo"]["lr"] = after.ppo.lr
    assert changed == asdict(after)


def test_the_seeds_ppo_brings_their_curriculum_unless_the_user_chooses_one() -> None:
    easy_first = compose(["curriculum=easy_first"]).run.curriculum
    assert compose(["ppo=seed_v1"]).run.curriculum == compose(["ppo=seed_v2"]).run.curriculum == easy_first
    assert compose(["ppo=seed_v2", "curriculum=none"]).run.curriculum.phases == ()
    own = compose(["curriculum.phases=[{until: 0.5, to_quantile: 0.5}]"]).run.curriculum
    assert own.phases == (Phase(until=0.5, to_quantile=0.5),)


def test_later_overrides_win_and_lists_and_paths_with_blanks_are_possible() -> None:
    settings = compose(
        ["seed=1", "seed=2", "engine.actions=[continue,stop]", "prompts.source='my prompts (2).txt'"]
    )
    assert settings.run.seed == 2
    assert settings.run.engine.actions == ("continue", "stop")
    assert settings.run.prompts.source == "my prompts (2).txt"


@pytest.mark.parametrize("file", ["quick", "standard", "full"])
def test_an_evaluation_has_the_prompts_that_it_asks_for(file: str) -> None:
    """At most so many a tier: the embedded world's first one has few scenes in all."""
    config = compose([f"evaluation={file}"]).evaluation
    expected = {str(tier): config.seeds * config.prompts_per_tier for tier in (2, 3, 4)}
    expected["1"] = config.seeds * min(config.prompts_per_tier, scene_count(1, "test"))
    assert Counter(request.tier for request in evaluation_requests(config)) == expected


def test_evaluation_runs_where_the_backbone_does(tmp_path: Path) -> None:
    assert compose(["backbone.device=cuda:1"]).evaluation.device == "cuda:1"
    assert compose(["backbone.device=cuda:1", "evaluation.device=cpu"]).evaluation.device == "cpu"
    stored = tmp_path / "config.yaml"
    stored.write_text(yaml.safe_dump(compose(["backbone=sd15"]).run.as_dict()), encoding="utf-8")
    assert settings_from_yaml(stored).evaluation.device == "cuda"


def test_a_flow_model_brings_its_solver_unless_the_user_chooses_one() -> None:
    assert compose(["backbone=flux_schnell"]).run.engine.solver == "flow_euler"
    assert compose(["backbone=flux_schnell", "solver=dpmpp"]).run.engine.solver == "dpmpp"


@pytest.mark.parametrize("backbone", sorted(path.stem for path in (FOLDER / "backbone").glob("*.yaml")))
def test_every_backbone_is_evaluated_where_it_was_trained_and_against_what_it_can_run(backbone: str) -> None:
    settings = compose([f"backbone={backbone}"])
    run, evaluation = settings.run, settings.evaluation
    assert (evaluation.device, evaluation.dtype) == (run.backbone.device, run.backbone.dtype)
    check_baselines(evaluation.baselines, run.engine)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ppo.lrr=1", "unknown option 'ppo.lrr'; did you mean 'ppo.lr'?"),
        ("slover=ddim", "unknown option 'slover'; did you mean 'solver'?"),
        ("solver.num_steps=20", "unknown option 'solver.num_steps'; did you mean 'engine.num_steps'?"),
        (
            "solver=ddmi",
            "solver='ddmi': give one of ddim, ddim_4, dpmpp, dpmpp_7, flow_euler, flow_euler_28, lcm; "
            "did you mean 'ddim'?",
        ),
        ("ppo.lr=fast", "ppo.lr='fast': give a number"),
        ("ppo.lr=-1", "ppo.lr=-1"),
        ("reward.alpha.clip=much", "reward.alpha.clip='much': give a number"),
        ("reward.gamma_d=2", "reward.gamma_d"),
        ("evaluation.seeds=0", "evaluation.seeds=0"),
        ("backbone.cache=first", "backbone.cache='first': give one of first_block, taylorseer or null"),
        (
            "curriculum.phases=[{until: 0.5, to: 1}]",
            "unknown option 'curriculum.phases[0].to'; did you mean",
        ),
        (
            "curriculum.phases=[{until: 0}]",
            "curriculum.phases[0].until=0.0: give a number above 0, at most 1",
        ),
        (
            "curriculum.phases=[{until: 0.5}, {until: 0.5}]",
            "curriculum.phases[1].until=0.5: give a number above 0.5, at most 1",
        ),
        ("curriculum.phases=[{until: 1, share_end: 2}]", "curriculum.phases[0].share_end=2.0"),
        (
            "curriculum.phases=[{until: 1, from_quantile: 0.5, to_quantile: 0.5}]",
            "curriculum.phases[0].to_quantile=0.5: give a number above its from_quantile",
        ),
        ("curriculum=hard", "curriculum='hard': give one of easy_first, hard_first, none"),
        ("backbone.height=0", "backbone.height is 0; accepted: a number of pixels, or null"),
        ("guards.collapse.action=maybe", "guards.collapse.action='maybe': give one of ignore, warn, stop"),
        ("guards.hacking.confidence=1", "guards.hacking.confidence: 1.0; accepted: from 0.5 to below 1"),
        ("watch.share=0.9", "watch.share: 0.9; accepted: above 0, at most 0.5"),
        ("watch={every: 0, keep: best}", "watch.keep: 'best'; accepted: last, as watch.every=0 compares"),
        ("ppo.lr=1,2", "'ppo.lr=1,2': give one value for one option, as OPTION=VALUE"),
        ("+ppo.lr=1", "'+ppo.lr=1': give one value for one option, as OPTION=VALUE"),
        ("~ppo.lr", "'~ppo.lr': give one value for one option, as OPTION=VALUE"),
        ("faster", "'faster': give OPTION=VALUE or GROUP=FILE"),
        ("name=${nowhere}", "nowhere"),
        ("sweep=lr", "sweep: many trainings; `addiffusion tune sweep=FILE --dry-run` shows them"),
    ],
)
def test_a_wrong_override_is_one_line_that_says_what_would_be_right(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        compose([override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_stored_settings_come_back_equal(tmp_path: Path) -> None:
    settings = compose(["ppo.lr=1e-4", "reward=seed_v1", "evaluation=quick", "prompts.limit=null"])
    stored = tmp_path / "config.yaml"
    stored.write_text(settings.to_yaml(), encoding="utf-8")
    assert settings_from_yaml(stored) == settings


def test_stored_settings_take_options_but_no_files(tmp_path: Path) -> None:
    stored = tmp_path / "config.yaml"
    stored.write_text(yaml.safe_dump(compose().run.as_dict()), encoding="utf-8")
    changed = settings_from_yaml(stored, ["ppo.iterations=7", "evaluation=quick"])
    assert changed.run.ppo.iterations == 7
    assert changed.evaluation == compose(["evaluation=quick"]).evaluation
    with pytest.raises(UserError, match="a run that exists keeps its files"):
        settings_from_yaml(stored, ["solver=ddim"])


@pytest.mark.parametrize("content", [b"", b"a: [1", b"\xff\xfe\x00", b"just text", b"ppo: {lrr: 1}"])
def test_a_damaged_stored_configuration_is_one_line_that_names_it(tmp_path: Path, content: bytes) -> None:
    stored = tmp_path / "config.yaml"
    stored.write_bytes(content)
    with pytest.raises(UserError) as caught:
        settings_from_yaml(stored)
    assert str(stored) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_are_known_by_their_full_names() -> None:
    assert {"ppo.lr", "engine.solver", "reward.c_nfe", "seed"} <= set(option_names(RunConfig))


def test_photographs_are_judged_by_published_models_and_the_embedded_world_by_its_own() -> None:
    for backbone in groups()["backbone"]:
        settings = compose([f"backbone={backbone}"])
        scorers = settings.run.backbone.scorers
        assert settings.evaluation.scorers == scorers
        if backbone == "shapes":
            assert scorers is None
        else:
            assert isinstance(scorers, ScorersConfig)
            given = (scorers.clip, scorers.aesthetic, scorers.image_reward, scorers.dino)
            assert None not in given
    assert compose(["backbone=sd15", "scorers=shapes"]).run.backbone.scorers is None
    assert compose(["backbone.scorers=mine"]).evaluation.scorers == "mine"


def test_one_reward_model_can_be_changed_added_and_left_out(tmp_path: Path) -> None:
    settings = compose(
        [
            "backbone=sdxl",
            "backbone.scorers.dino.model=mine/dino",
            "backbone.scorers.hps={dtype: float16}",
            "backbone.scorers.aesthetic=null",
        ]
    )
    scorers, standard = settings.run.backbone.scorers, compose(["backbone=sdxl"]).run.backbone.scorers
    assert isinstance(scorers, ScorersConfig)
    assert isinstance(standard, ScorersConfig)
    assert scorers.dino == DinoConfig("mine/dino", dtype="float16")
    assert scorers.hps == HpsConfig(dtype="float16")
    assert scorers.aesthetic is None
    assert scorers.clip == standard.clip
    stored = tmp_path / "config.yaml"
    stored.write_text(settings.to_yaml(), encoding="utf-8")
    assert settings_from_yaml(stored) == settings


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backbone.scorers.clip.dtype=half", "backbone.scorers.clip.dtype='half': give one of float32"),
        ("backbone.scorers.dino.batch_size=3", "backbone.scorers.dino.batch_size=3: give a multiple of 8"),
        ("backbone.scorers.clip=null", "backbone.scorers.clip=null: give a section, as aesthetic reads"),
        ("backbone.scorers=3", "backbone.scorers=3: give a section with clip, aesthetic"),
        ("scorers.clip.dtype=float32", "did you mean 'backbone.scorers.clip.dtype'?"),
    ],
)
def test_a_wrong_reward_model_is_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        compose(["backbone=sd15", override])
    assert message in str(caught.value)


def test_a_file_of_options_takes_its_place_among_the_overrides(tmp_path: Path) -> None:
    path = tmp_path / "more.yaml"
    path.write_text("seed: 4\nreward:\n  sigma: 0.25\n  scales:\n    clip: 0.125\nppo: {lr: 0.001}\n")
    settings = compose(["seed=1", f"@{path}", "ppo.lr=0.002"])
    assert (settings.run.seed, settings.run.reward.sigma, settings.run.ppo.lr) == (4, 0.25, 0.002)
    assert settings.run.reward.scales == compose().run.reward.scales | {"clip": 0.125}
    assert compose([f"@{path}", "seed=1"]).run.seed == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        ("- a list", "not a mapping"),
        ("a: [", "not a readable YAML file"),
        ("reward: {sigmas: 1.0}", "unknown option 'reward.sigmas'; did you mean 'reward.sigma'?"),
        ("reward: {scales: {sharpness: 1.0}}", "scales: unknown metric 'sharpness'"),
        ("reward: {sigma: small}", "reward.sigma='small': give a number or null"),
    ],
)
def test_a_file_of_options_is_checked_as_overrides_are(
    tmp_path: Path, content: str | None, said: str
) -> None:
    path = tmp_path / "more.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=re.escape(said)):
        compose([f"@{path}"])


def test_offline_options_are_all_written_down_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a checkout may hold a run of this name
    written = yaml.safe_load((FOLDER / "offline.yaml").read_text(encoding="utf-8"))
    stated = {
        join(section, name) for section, inner in [("", written), *_sections(written)] for name in inner
    }
    assert stated == set(option_names(OfflineConfig))
    config = compose_offline(["algorithm=dpo", "trajectories=[a,b]", "dpo.beta=0.5", "seed=3"])
    assert (config.algorithm, config.trajectories, config.dpo.beta, config.seed) == (
        "dpo",
        ("a", "b"),
        0.5,
        3,
    )
    assert compose_offline(["trajectories=runs/run"]).folders == [Path("runs/run")]


def _sections(written: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, inner) for name, inner in written.items() if isinstance(inner, dict)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "trajectories is empty"),
        (["trajectories=a", "algorithm=cql"], "algorithm='cql': give one of bc, marwil, dpo"),
        (["trajectories=a", "ppo.lr=1"], "unknown option 'ppo.lr'; did you mean 'lr'?"),
        (["trajectories=a", "marwil.beta=2"], "marwil.beta=2.0"),
    ],
)
def test_a_wrong_offline_option_is_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        compose_offline(overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
