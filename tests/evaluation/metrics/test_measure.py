"""Measuring stored images, with the embedded world's models and small random ones in the real formats."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.stats

from actors.contracts import Images
from actors.errors import UserError
from evaluation.metrics import collect as collecting
from evaluation.metrics.config import METRIC_NAMES, MetricsConfig
from evaluation.metrics.contracts import RESULTS_FILE, Measured, Measurement, Missing
from evaluation.metrics.distances import cmmd, frechet_distance, gaussian, inception_score
from evaluation.metrics.images import ImageSet, read_sets
from evaluation.metrics.inception import InceptionFeatures
from evaluation.metrics.measure import VALUES_FILE, measure
from rewards_service.contracts import Scores
from rewards_service.loading import build_scorers
from rewards_service.local import LocalClient
from rewards_service.scorers_config import ClipConfig, HpsConfig, PickScoreConfig, ScorersConfig
from shapes import weights
from tests.evaluation.metrics.stored import scenes, write_table
from tests.rewards_service.reward_models import HPS_ARCHITECTURE, write_hps, write_pick_score

SCORED = ("clip_score", "image_reward", "aesthetic", "strict", "dino_diversity")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six prompts with three faithful pictures each, and as many wrong and pale ones."""
    costs = {"nfe": 10, "network_evals": 20, "seconds": 0.5}
    sharp = [{**row, **costs} for row in scenes(6, 3)]
    pale = [{**row, **costs, "nfe": 50} for row in scenes(6, 3, wrong=True)]
    return write_table(tmp_path_factory.mktemp("images") / "images.parquet", {"sharp": sharp, "pale": pale})


@pytest.fixture(scope="module")
def sets(table: Path) -> list[ImageSet]:
    return read_sets(table)


def cheap_inception(images: Images, prompts: Sequence[str]) -> Scores:
    """Stands in for the network where only what is made of its features matters."""
    flat_ND = (images.reshape(len(images), -1)[:, ::2048] / np.float32(64)).astype(np.float32)
    return {"inception": flat_ND, "inception_logits": (flat_ND[:, :4] * np.float32(3)).astype(np.float32)}


@pytest.fixture
def inception(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setattr(InceptionFeatures, "load", lambda *_: cheap_inception)
    (tmp_path / "inception.pth").write_bytes(b"weights")
    return str(tmp_path / "inception.pth")


def number(measurement: Measurement) -> Measured:
    assert isinstance(measurement, Measured), measurement
    return measurement


def reason(measurement: Measurement) -> str:
    assert isinstance(measurement, Missing), measurement
    return measurement.reason


def test_every_metric_is_in_the_results_measured_or_missing_with_its_reason(
    sets: list[ImageSet], tmp_path: Path
) -> None:
    results = measure(sets, MetricsConfig(cmmd=None), tmp_path)
    for name in ("sharp", "pale"):
        assert tuple(results[name]) == METRIC_NAMES
        for metric in (*SCORED, "nfe", "network_evals", "seconds"):
            assert number(results[name][metric]).images == 18
        for metric in ("hps_v2", "pick_score"):
            assert "name one in evaluation.scorers" in reason(results[name][metric])
        for metric in ("fid", "inception_score"):
            assert "give pt_inception-2015-12-05-6726825d.pth" in reason(results[name][metric])
        assert reason(results[name]["cmmd"]) == "evaluation.metrics.cmmd=null: no model is named"

    stored = json.loads((tmp_path / RESULTS_FILE).read_text())
    assert stored["methods"]["sharp"]["fid"] == {"missing": reason(results["sharp"]["fid"])}
    assert stored["methods"]["pale"]["nfe"]["value"] == 50
    assert number(results["sharp"]["strict"]).value == pytest.approx(1.0)
    assert number(results["pale"]["strict"]).value < 0.9
    assert number(results["sharp"]["clip_score"]).value > number(results["pale"]["clip_score"]).value


def test_values_are_the_scorers_own_and_all_are_stored(
    sets: list[ImageSet], table: Path, tmp_path: Path
) -> None:
    results = measure(sets[:1], MetricsConfig(names=SCORED), tmp_path)["sharp"]
    rows = scenes(6, 3)
    images, prompts = np.stack([row["image"] for row in rows]), [row["prompt"] for row in rows]
    scores = LocalClient(build_scorers(str(weights.PATH))).score(images, prompts)
    expected = {
        "clip_score": 100 * scores["clip_score"].clip(0),
        "image_reward": scores["image_reward_now"],
        "aesthetic": scores["aesthetic"],
    }
    values = pq.read_table(tmp_path / VALUES_FILE).to_pandas()
    for metric, value_N in expected.items():
        found_N = number(results[metric]).per_image_N
        assert found_N is not None
        np.testing.assert_allclose(found_N, value_N, rtol=1e-4, atol=1e-4)
        assert number(results[metric]).value == pytest.approx(value_N.mean(), rel=1e-4)
        stored = values[values.metric == metric]
        assert stored.prompt.tolist() == prompts
        np.testing.assert_array_equal(stored.value.to_numpy(), found_N)
    dino_ND = scores["dino"].astype(float)
    pairs = [
        1 - dino_ND[3 * p + i] @ dino_ND[3 * p + j] for p in range(6) for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    assert number(results["dino_diversity"]).value == pytest.approx(np.mean(pairs), rel=1e-4)
    assert set(values.metric) == set(SCORED)


def test_intervals_resample_prompts_and_not_images(sets: list[ImageSet], tmp_path: Path) -> None:
    found = number(measure(sets[:1], MetricsConfig(names=("aesthetic",)), tmp_path)["sharp"]["aesthetic"])
    assert found.per_image_N is not None
    assert found.ci95 is not None
    by_prompt = found.per_image_N.reshape(6, 3).mean(1)
    half = scipy.stats.t.ppf(0.975, 5) * scipy.stats.sem(by_prompt)
    assert (found.ci95[1] - found.ci95[0]) / 2 == pytest.approx(half, rel=0.25)


def test_set_metrics_are_means_over_seed_numbers(
    sets: list[ImageSet], inception: str, tmp_path: Path
) -> None:
    reference = write_table(tmp_path / "real.parquet", {"real": scenes(9, 1)})
    names = ("fid", "cmmd")
    config = MetricsConfig(
        names,
        reference=str(reference),
        inception=inception,
        cmmd=ClipConfig(str(weights.PATH / "clip"), pretrained=None),
    )
    results = measure(sets, config, tmp_path / "out")
    fid = number(results["pale"]["fid"])
    real = np.stack([row["image"] for row in scenes(9, 1)])
    rows = scenes(6, 3, wrong=True)
    expected = [
        frechet_distance(
            gaussian(cheap_inception(np.stack([row["image"] for row in rows[seed::3]]), [])["inception"]),
            gaussian(cheap_inception(real, [])["inception"]),
        )
        for seed in range(3)
    ]
    assert fid.by_seed == pytest.approx(expected, rel=1e-6)
    assert fid.value == pytest.approx(np.mean(expected))
    assert fid.ci95 == pytest.approx(
        scipy.stats.t.interval(0.95, 2, np.mean(expected), scipy.stats.sem(expected))
    )
    clip = LocalClient(build_scorers(str(weights.PATH)))
    real_ND = clip.score(real, [""] * 9, ["clip_image"])["clip_image"]
    ours_ND = clip.score(np.stack([r["image"] for r in rows[::3]]), [""] * 6, ["clip_image"])["clip_image"]
    assert number(results["pale"]["cmmd"]).by_seed[0] == pytest.approx(cmmd(ours_ND, real_ND), rel=1e-3)
    assert number(results["pale"]["cmmd"]).value > number(results["sharp"]["cmmd"]).value


def test_inception_score_needs_no_reference_and_ten_images(
    sets: list[ImageSet], inception: str, tmp_path: Path
) -> None:
    config = MetricsConfig(("inception_score", "fid"), inception=inception)
    results = measure(sets, config, tmp_path / "few")["sharp"]
    assert reason(results["inception_score"]) == "6 images in 10 splits; a split needs at least 1"
    assert "evaluation.metrics.reference=null: give real images" in reason(results["fid"])
    many = read_sets(write_table(tmp_path / "many.parquet", {"many": scenes(20, 1)}))
    found = number(measure(many, config, tmp_path / "many")["many"]["inception_score"])
    logits = cheap_inception(np.stack([row["image"] for row in scenes(20, 1)]), [])["inception_logits"]
    assert found.value == pytest.approx(inception_score(logits)[0], rel=1e-6)


def test_fid_takes_the_moments_that_others_have_stored(
    sets: list[ImageSet], inception: str, tmp_path: Path
) -> None:
    features = cheap_inception(np.stack([row["image"] for row in scenes(9, 1)]), [])["inception"]
    mu, sigma = features.astype(float).mean(0), np.cov(features.astype(float), rowvar=False)
    np.savez(tmp_path / "coco.npz", mu=mu, sigma=sigma)
    clip = ClipConfig(str(weights.PATH / "clip"), pretrained=None)
    config = MetricsConfig(("fid", "cmmd"), str(tmp_path / "coco.npz"), inception, cmmd=clip)
    results = measure(sets[:1], config, tmp_path / "out")["sharp"]
    assert number(results["fid"]).value > 0
    assert "has no images, of which cmmd needs embeddings" in reason(results["cmmd"])
    np.savez(tmp_path / "other.npz", mean=mu)
    with pytest.raises(UserError, match=r"other.npz: no mu and sigma in it"):
        measure(sets, MetricsConfig(("fid",), str(tmp_path / "other.npz"), inception), tmp_path / "out")


def test_hps_and_pick_score_come_from_their_own_models(sets: list[ImageSet], tmp_path: Path) -> None:
    write_hps(tmp_path)
    write_pick_score(tmp_path)
    scorers = ScorersConfig(
        hps=HpsConfig(str(tmp_path / "hps.pt"), HPS_ARCHITECTURE),
        pick_score=PickScoreConfig(str(tmp_path / "pick"), str(tmp_path / "processor")),
    )
    config = MetricsConfig(("hps_v2", "pick_score", "clip_score"))
    results = measure(sets[:1], config, tmp_path / "out", scorers=scorers)["sharp"]
    rows = scenes(6, 3)
    images, prompts = np.stack([row["image"] for row in rows]), [row["prompt"] for row in rows]
    scores = LocalClient(build_scorers(scorers)).score(images, prompts)
    assert number(results["hps_v2"]).per_image_N == pytest.approx(scores["hps"], rel=1e-4)
    assert number(results["pick_score"]).per_image_N == pytest.approx(scores["pick_score"], rel=1e-4)
    assert reason(results["clip_score"]) == "evaluation.scorers.clip=null: no model is named"


def test_a_model_that_cannot_be_loaded_takes_no_other_metric_with_it(
    sets: list[ImageSet], tmp_path: Path
) -> None:
    write_hps(tmp_path)
    scorers = ScorersConfig(
        hps=HpsConfig(str(tmp_path / "hps.pt"), HPS_ARCHITECTURE),
        pick_score=PickScoreConfig(str(tmp_path / "nowhere"), str(tmp_path / "nowhere")),
    )
    names = ("hps_v2", "pick_score", "cmmd")
    real = write_table(tmp_path / "real.parquet", {"real": scenes(2, 1)})
    config = MetricsConfig(names, str(real), cmmd=ClipConfig(str(tmp_path / "none"), pretrained="openai"))
    results = measure(sets[:1], config, tmp_path / "out", scorers=scorers)["sharp"]
    assert number(results["hps_v2"]).images == 18
    assert reason(results["pick_score"]).startswith("evaluation.scorers.pick_score.model=")
    assert reason(results["cmmd"]).startswith("evaluation.metrics.cmmd.clip.model=")


def test_no_model_is_fetched_for_what_has_nothing_to_be_compared_with(
    sets: list[ImageSet], tmp_path: Path
) -> None:
    config = MetricsConfig(("cmmd", "fid"), cmmd=ClipConfig("gone", pretrained=None), inception="gone.pth")
    results = measure(sets[:1], config, tmp_path / "out")["sharp"]
    assert reason(results["cmmd"]) == "evaluation.metrics.reference=null: give real images"
    assert reason(results["fid"]).startswith("evaluation.metrics.reference=null: give real images")


def test_pictures_of_another_world_have_no_verifier(tmp_path: Path) -> None:
    rows = [{**row, "prompt": "a photo of a cat in the rain"} for row in scenes(1, 1)]
    (cats,) = read_sets(write_table(tmp_path / "cats.parquet", {"cats": rows}))
    results = measure(
        [cats], MetricsConfig(("strict", "aesthetic", "dino_diversity", "nfe")), tmp_path / "out"
    )
    assert reason(results["cats"]["strict"]).startswith("not of the embedded world")
    assert number(results["cats"]["aesthetic"]).ci95 is None, "one prompt has no interval"
    assert "diversity needs at least 2" in reason(results["cats"]["dino_diversity"])
    assert reason(results["cats"]["nfe"]) == "cats has images without 'nfe'"


def test_images_that_shared_a_set_with_pictures_of_another_world_are_measured_in_their_own(
    tmp_path: Path,
) -> None:
    own = scenes(2, 1)
    stranger = {**own[0], "prompt": "a photo of a cat in the rain"}
    sets = read_sets(write_table(tmp_path / "images.parquet", {"a mixed": [stranger, *own], "own": own}))
    results = measure(sets, MetricsConfig(("strict",)), tmp_path / "out")
    assert reason(results["a mixed"]["strict"]).startswith("not of the embedded world")
    assert number(results["own"]["strict"]).images == 2


class InterruptedHereError(RuntimeError):
    """The end of a process, as far as a test can have it."""


def counting(calls: list[int], *, fail_at: int | None = None) -> Callable[..., Scores]:
    def extract(images: Images, prompts: Sequence[str]) -> Scores:
        if fail_at is not None and sum(calls) >= fail_at:
            raise InterruptedHereError
        calls.append(len(images))
        return cheap_inception(images, prompts)

    return extract


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "PART", 4)


@pytest.mark.usefixtures("small_parts")
def test_a_measurement_that_was_stopped_looks_at_no_stored_image_again(
    sets: list[ImageSet], inception: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = MetricsConfig(("inception_score",), inception=inception, batch_size=2)
    first: list[int] = []
    monkeypatch.setattr(InceptionFeatures, "load", lambda *_: counting(first, fail_at=10))
    with pytest.raises(InterruptedHereError):
        measure(sets, config, tmp_path)
    assert not (tmp_path / RESULTS_FILE).exists()
    second: list[int] = []
    monkeypatch.setattr(InceptionFeatures, "load", lambda *_: counting(second))
    measure(sets, config, tmp_path)
    assert sum(first) == 10
    assert sum(second) == 36 - 8, "two parts of four were kept"
    third: list[int] = []
    monkeypatch.setattr(InceptionFeatures, "load", lambda *_: counting(third))
    results = measure(sets, config, tmp_path)
    assert third == []
    whole = measure(sets, config, tmp_path / "at once")
    for name in ("sharp", "pale"):
        assert results[name] == whole[name]


def test_another_image_of_the_same_prompt_and_seed_is_measured_anew(tmp_path: Path) -> None:
    config = MetricsConfig(("strict",))
    values = []
    for wrong in (False, True):
        path = write_table(tmp_path / f"{wrong}.parquet", {"m": scenes(4, 1, wrong=wrong)})
        values.append(number(measure(read_sets(path), config, tmp_path / "out")["m"]["strict"]).value)
    assert values[0] > values[1]


def test_one_name_for_two_methods_is_refused(sets: list[ImageSet], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'sharp': two sets of images of that name"):
        measure([sets[0], sets[0]], MetricsConfig(("nfe",)), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ("fdi",)}, "names='fdi': give some of clip_score"),
        ({"names": ()}, "give at least one metric"),
        ({"names": ("fid", "fid")}, "none twice"),
        ({"batch_size": 0}, "batch_size=0: give an integer >= 1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MetricsConfig(**options)  # type: ignore[arg-type]
