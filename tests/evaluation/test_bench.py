"""The bench: who judges, what identifies it, and what is said when it cannot be opened."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.backbones.config import BackboneConfig
from actors.contracts import Images
from actors.errors import UserError
from actors.policy import load_policy, save_policy
from evaluation.bench import IMAGE_REWARD, STRICT, bench_recipe, held_out_recipe, strict_scores
from evaluation.config import EvaluationConfig
from evaluation.methods import read_policy
from rewards_service.contracts import Scores
from rewards_service.identity import folder_digest, scorers_identity
from rewards_service.scorers_config import AestheticConfig, ClipConfig, DinoConfig, ScorersConfig
from shapes.captions import distinct_captions
from shapes.render import render_scene
from tests.evaluation.fakes import FakeBackbone, saved_policy


class OneScore:
    """A scorer that likes everything equally."""

    name = "fake"
    outputs = ("image_reward",)

    def score(self, images: Images, prompts: Any) -> Scores:
        return {"image_reward": np.full(len(images), 0.25, np.float32)}


class Forecast(OneScore):
    """It likes what an image will become better than what it is."""

    outputs = ("image_reward", "image_reward_now")  # type: ignore[assignment]

    def score(self, images: Images, prompts: Any) -> Scores:
        return super().score(images, prompts) | {"image_reward_now": np.full(len(images), 0.125, np.float32)}


class NoReward(OneScore):
    """It knows nothing of prompts."""

    outputs = ("aesthetic",)


@pytest.fixture
def _fake_loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_scorers(folder: str, device: str) -> list[OneScore]:
        if not Path(folder).is_dir():
            raise ValueError("no 'clip' in it")
        return [OneScore()]

    backbones = SimpleNamespace(load_with_pipeline=lambda config: (None, FakeBackbone(identity=config.name)))
    monkeypatch.setitem(sys.modules, "actors.backbones.loading", backbones)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "rewards_service.world", SimpleNamespace(load_scorers=load_scorers))  # type: ignore[arg-type]


def scenes(count: int) -> tuple[Images, list[str]]:
    captions = [caption for caption, _ in distinct_captions(0, count, "test")]
    rng = np.random.default_rng(0)
    return np.stack([render_scene(caption, rng) for caption in captions]), captions


@pytest.mark.usefixtures("_fake_loaders")
def test_the_verifier_judges_the_embedded_world_and_image_reward_everything_else(tmp_path: Path) -> None:
    images, captions = scenes(1)
    options = {"scorers": str(tmp_path)}
    world = bench_recipe(BackboneConfig("any"), EvaluationConfig(prompts="shapes", **options))()  # type: ignore[arg-type]
    assert world.metric == STRICT
    assert world.judge(images, captions).mean() > 0.9
    elsewhere = bench_recipe(BackboneConfig("any"), EvaluationConfig(prompts="mine.txt", **options))()  # type: ignore[arg-type]
    assert elsewhere.metric == IMAGE_REWARD
    assert elsewhere.judge(images, ["not of the grammar"] * len(images)).tolist() == [0.25] * len(images)


@pytest.mark.usefixtures("_fake_loaders")
def test_finished_images_are_judged_as_they_are_and_stored_apart_from_forecasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, captions = scenes(1)
    config = EvaluationConfig(prompts="mine.txt", scorers=str(tmp_path))
    plain = bench_recipe(BackboneConfig("any"), config)()
    assert plain.finished == "image_reward"
    world = SimpleNamespace(load_scorers=lambda folder, device: [Forecast()])
    monkeypatch.setitem(sys.modules, "rewards_service.world", world)  # type: ignore[arg-type]
    for recipe in (bench_recipe, held_out_recipe):
        bench = recipe(BackboneConfig("any"), config)()
        assert set(bench.judge(images, captions).tolist()) == {0.125}
        assert bench.finished == "image_reward_now"
        looked = bench.scorer("image_reward")(images, captions)["image_reward"]
        assert set(looked.tolist()) == {0.25}
        assert bench.identity != plain.identity


class TwoJudges(OneScore):
    """One that a policy may choose by, and another."""

    outputs = ("image_reward", "hps")  # type: ignore[assignment]

    def score(self, images: Images, prompts: Any) -> Scores:
        return super().score(images, prompts) | {"hps": np.full(len(images), 27.5, np.float32)}


@pytest.mark.usefixtures("_fake_loaders")
def test_another_score_decides_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = scenes(1)
    world = SimpleNamespace(load_scorers=lambda folder, device: [TwoJudges()])
    monkeypatch.setitem(sys.modules, "rewards_service.world", world)  # type: ignore[arg-type]
    config = EvaluationConfig(prompts="mine.txt", quality="hps_v2", scorers=str(tmp_path))
    bench = bench_recipe(BackboneConfig("any"), config)()
    assert (bench.metric, bench.finished) == ("HPS v2", "image_reward")
    prompts = ["a cat"] * len(images)
    assert set(bench.judge(images, prompts).tolist()) == {27.5}
    assert bench.identity != bench_recipe(BackboneConfig("any"), replace(config, quality=None))().identity
    held_out = held_out_recipe(BackboneConfig("any"), config)()
    assert set(held_out.judge(images, prompts).tolist()) == {0.25}
    with pytest.raises(UserError, match=r"evaluation\.quality: .* gives pick_score; these give image_reward"):
        bench_recipe(BackboneConfig("any"), replace(config, quality="pick_score"))()


@pytest.mark.parametrize(("quality", "told"), [("hpsv2", "or one of strict, image"), ("strict", "mine.txt")])
def test_what_cannot_decide_is_refused(quality: str, told: str) -> None:
    with pytest.raises(UserError, match=rf"evaluation\.quality={quality}: .*{told}"):
        EvaluationConfig(prompts="mine.txt", quality=quality)


@pytest.mark.usefixtures("_fake_loaders")
def test_scorers_without_image_reward_are_refused_before_any_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = SimpleNamespace(load_scorers=lambda folder, device: [NoReward()])
    monkeypatch.setitem(sys.modules, "rewards_service.world", world)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"evaluation\.scorers: .* image_reward.*these give aesthetic"):
        bench_recipe(BackboneConfig("any"), EvaluationConfig(scorers=str(tmp_path)))()


def test_strict_scores_keep_the_order_of_the_batch() -> None:
    images, captions = scenes(2)
    blank = np.full_like(images[:1], 128)
    right = strict_scores(images, captions)
    mixed = strict_scores(np.concatenate([blank, images]), [captions[0], *captions])
    assert mixed[0] == 0
    np.testing.assert_array_equal(mixed[1:], right)


@pytest.mark.usefixtures("_fake_loaders")
def test_identity_changes_with_backbone_scorers_and_metric(tmp_path: Path) -> None:
    for name, content in (("one", b"1"), ("two", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(content)

    def identity(backbone: str, prompts: str, scorers: str) -> str:
        config = EvaluationConfig(prompts=prompts, scorers=str(tmp_path / scorers))
        return bench_recipe(BackboneConfig(backbone), config)().identity

    base = identity("a", "shapes", "one")
    assert base == identity("a", "shapes", "one")
    others = [("b", "shapes", "one"), ("a", "mine.txt", "one"), ("a", "shapes", "two")]
    assert len({base, *(identity(*other) for other in others)}) == 4


@pytest.mark.usefixtures("_fake_loaders")
def test_scorers_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluation\.scorers=.*nowhere"):
        bench_recipe(BackboneConfig("any"), EvaluationConfig(scorers=str(tmp_path / "nowhere")))()


def test_a_digest_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_bytes(b"x")
    first = folder_digest(tmp_path)
    (tmp_path / "deep" / "a").rename(tmp_path / "deep" / "b")
    second = folder_digest(tmp_path)
    (tmp_path / "deep" / "b").write_bytes(b"y")
    assert len({first, second, folder_digest(tmp_path)}) == 3


def test_a_digest_of_reward_models_sees_options_and_the_local_files_they_name(tmp_path: Path) -> None:
    (tmp_path / "dino").mkdir()
    for path in (tmp_path / "head.pth", tmp_path / "dino" / "weights"):
        path.write_bytes(b"1")
    named = ScorersConfig(
        clip=ClipConfig(),
        aesthetic=AestheticConfig(str(tmp_path / "head.pth")),
        dino=DinoConfig(str(tmp_path / "dino")),
    )
    digests = {scorers_identity(named), scorers_identity(replace(named, clip=ClipConfig(dtype="float16")))}
    for path in (tmp_path / "head.pth", tmp_path / "dino" / "weights"):
        path.write_bytes(b"2")
        digests.add(scorers_identity(named))
    assert len(digests) == 4


def test_a_policy_keeps_its_backbone_but_not_the_models_that_judged_its_training(tmp_path: Path) -> None:
    trained = BackboneConfig("any", width=768, scorers=ScorersConfig(dino=DinoConfig()))
    folder = saved_policy(tmp_path / "policy", backbone_config=asdict(trained))
    policy = read_policy(folder, greedy=True, seed=0)
    assert policy.trained.backbone == replace(trained, scorers=None)


@pytest.mark.usefixtures("_fake_loaders")
def test_a_policy_brings_its_backbone_and_the_evaluation_says_where_it_runs(tmp_path: Path) -> None:
    trained = BackboneConfig(
        "any", dtype="float16", device="cuda:3", width=768, lora="style", cache="taylorseer"
    )
    folder = saved_policy(tmp_path / "policy", backbone_config=asdict(trained))
    policy = read_policy(folder, greedy=True, seed=0)
    recipe = bench_recipe(policy.trained.backbone, EvaluationConfig(device="cpu", dtype="bfloat16"))
    assert recipe.backbone == replace(trained, dtype="bfloat16", device="cpu")


def test_a_policy_that_knows_its_backbones_name_only_still_loads(tmp_path: Path) -> None:
    network, stored = load_policy(saved_policy(tmp_path / "new"))
    del stored["backbone_config"]
    save_policy(tmp_path / "old", network, {**stored, "backbone_name": "shapes"})
    assert read_policy(tmp_path / "old", greedy=True, seed=0).trained.backbone == BackboneConfig("shapes")
    save_policy(tmp_path / "odd", network, {**stored, "backbone_config": {"nmae": "shapes"}})
    with pytest.raises(UserError, match=r"how it was trained \(unknown option backbone.nmae"):
        read_policy(tmp_path / "odd", greedy=True, seed=0)
