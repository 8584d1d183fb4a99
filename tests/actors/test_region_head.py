"""The network that forecasts where a prediction will still change: its data, its fit, its file."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from torch import nn
from torch.nn import functional

from actors.backbones.config import BackboneConfig
from actors.backbones.loading import load_backbone
from actors.contracts import EpisodeRequest
from actors.engine import Engine, EngineConfig
from actors.errors import UserError
from actors.observations import ObservationConfig, ObservationSizes, Observer
from actors.policy import PolicyNetwork, save_policy
from actors.policy_folder import pack_region_head, read_trained_policy
from actors.region_head import RemainingChangeHead, load_region_head, local_change, save_region_head
from actors.region_training import (
    Trajectories,
    collect_trajectories,
    fit_region_head,
    head_correlation,
    main,
    plain_config,
    within_image,
)
from tests.actors.fakes import OracleBackbone


def test_local_change_is_a_mean_over_channels_and_neighbours() -> None:
    first, second = torch.randn(2, 2, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    difference = (first - second).abs().mean(dim=1).numpy()
    expected = np.stack([uniform_filter(image, 3) for image in difference])
    actual = local_change(first, second).numpy()
    np.testing.assert_allclose(actual[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-6)
    np.testing.assert_allclose(actual[:, 0, 0], difference[:, :2, :2].mean(axis=(1, 2)), atol=1e-6)


def toy(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predictions whose first channel says how much of the change is still to come, more so early on."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 3, 3, generator=generator)
    size = functional.interpolate(coarse, (8, 8), mode="bilinear")[:, 0]
    timestep = 1000 * torch.rand(count, generator=generator)
    clean = torch.randn(count, 4, 8, 8, generator=generator)
    clean[:, 0] = 2.0 * size - 1.0
    previous = clean + 0.1 * torch.randn(clean.shape, generator=generator)
    return clean, previous, timestep, size * (0.2 + timestep / 1000).view(-1, 1, 1)


def test_fitted_head_ranks_positions_it_has_not_seen() -> None:
    def data(count: int, seed: int) -> Trajectories:
        clean, previous, timestep, remaining = toy(count, seed)
        return Trajectories(clean, previous, torch.arange(count) % 5 > 0, timestep, remaining)

    unseen = data(64, 1)
    torch.manual_seed(0)
    assert abs(head_correlation(RemainingChangeHead(4), unseen)) < 0.5
    head = fit_region_head(data(192, 0), epochs=40)
    assert head_correlation(head, unseen) > 0.9
    forecast = torch.stack(
        [
            head.forecast(clean, previous if known else None, float(timestep))
            for clean, previous, known, timestep in zip(
                unseen.clean_NCHW, unseen.previous_NCHW, unseen.known_N, unseen.timestep_N, strict=True
            )
        ]
    )
    across = np.corrcoef(forecast.mean(dim=(1, 2)).numpy(), unseen.remaining_NHW.mean(dim=(1, 2)).numpy())
    assert across[0, 1] > 0.9, "an early prediction has more to come"


def test_correlation_within_images_is_pearsons() -> None:
    first, second = torch.randn(2, 5, 6, 6, generator=torch.Generator().manual_seed(0))
    second += first
    expected = np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(first, second, strict=True)])
    assert within_image(first, second) == pytest.approx(expected)
    assert within_image(first, torch.ones(5, 6, 6)) == 0.0


def test_trajectories_hold_what_is_still_to_come() -> None:
    """The oracle is spoilt by a known amount at each call, so that the remaining change is known."""
    spoils: list[torch.Tensor] = []

    class Drifting(OracleBackbone):
        def denoise(self, *args: Any, **kwargs: Any) -> Any:
            denoised = super().denoise(*args, **kwargs)
            spoils.append(torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(len(spoils))))
            signal = self.alphas_cumprod[args[1].long()].view(-1, 1, 1, 1)
            error = (
                spoils[-1] * (signal / (1 - signal)).sqrt().float()
            )  # moves the clean prediction by -spoil
            return replace(denoised, prediction_BCHW=denoised.prediction_BCHW + error)

    engine = Engine(Drifting(), plain_config(EngineConfig(num_steps=5)))
    data = collect_trajectories(engine, [EpisodeRequest("owl", 1), EpisodeRequest("fox", 2)])
    assert len(data) == 2 * 4
    assert data.known_N.tolist() == [False] * 2 + [True] * 6
    assert data.timestep_N[::2].tolist() == [point.timestep for point in engine.schedule.points[:4]]
    torch.testing.assert_close(data.previous_NCHW[2:], data.clean_NCHW[:-2])
    for point in range(4):
        zeros = torch.zeros(2, 1, 16, 16)
        expected = local_change(zeros + spoils[point], zeros + spoils[4])
        rows = data.remaining_NHW[2 * point : 2 * point + 2]
        torch.testing.assert_close(rows, expected, atol=1e-3, rtol=1e-3)


def test_the_command_writes_a_head_that_its_backbone_takes(
    pipeline_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a fox\nan owl\na tree\na fox\nthe sky\na dog\n")
    head, prompts = str(tmp_path / "head.safetensors"), str(tmp_path / "prompts.txt")
    options = ["--backbone", str(pipeline_folder), "--steps", "3"]
    assert main([head, *options, "--prompts", prompts]) == 0
    assert "held-out predictions: head" in capsys.readouterr().err
    config = EngineConfig(refine_region="learned", refine_head=head, warmup_steps=0)
    engine = Engine(load_backbone(BackboneConfig(str(pipeline_folder))), config)
    (episode,) = engine.begin([EpisodeRequest("a fox", 1)])
    engine.denoise([episode])
    engine.act(episode, engine.action_names.index("refine"))
    while episode.state == "denoising":
        engine.denoise([episode])
    assert bool(episode.clean_CHW.isfinite().all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompts", "nowhere.txt"], "error: --prompts is 'nowhere.txt'"),
        (["--limit", "2"], "error: --prompts gives 2; accepted: at least 3"),
        (["--steps", "2"], "error: --steps is 2; accepted: from 3"),
    ],
)
def test_what_the_command_cannot_use_is_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "head.safetensors"), *options]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(message)
    assert "\n" not in error
    assert not list(tmp_path.iterdir())


def test_a_head_comes_back_whole(tmp_path: Path) -> None:
    torch.manual_seed(1)
    head = RemainingChangeHead(4, 8)
    save_region_head(tmp_path / "new" / "head.safetensors", head, backbone="oracle")
    loaded = load_region_head(tmp_path / "new" / "head.safetensors", channels=4, backbone="oracle")
    clean, previous = torch.randn(2, 4, 9, 7)
    for before in (previous, None):
        assert torch.equal(loaded.forecast(clean, before, 300.0), head.forecast(clean, before, 300.0))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["head.safetensors"]


def learned(head: Path | str, **options: Any) -> EngineConfig:
    return EngineConfig(refine_region="learned", refine_head=str(head), **options)


@pytest.fixture
def head_file(tmp_path: Path) -> Path:
    """A head whose forecasts differ a lot from place to place."""
    torch.manual_seed(0)
    head = RemainingChangeHead(4, 8)
    with torch.no_grad():
        last = head.layers[-1]
        assert isinstance(last, nn.Conv2d)
        last.weight.mul_(100.0)
    save_region_head(tmp_path / "head.safetensors", head, backbone="oracle")
    return tmp_path / "head.safetensors"


def test_learned_denoises_again_where_the_head_expects_most_change(head_file: Path) -> None:
    """With and without an earlier prediction."""
    engine = Engine(OracleBackbone(), learned(head_file, warmup_steps=0))
    (episode,) = engine.begin([EpisodeRequest("owl", 3)])
    head = load_region_head(head_file, channels=4, backbone="oracle")
    for known in (False, True):
        engine.denoise([episode])
        assert (episode.history is not None) == known
        assert engine.legal([episode])[0, engine.action_names.index("refine")]
        before = episode.history[0] if episode.history else None
        forecast = head.forecast(episode.clean_CHW, before, episode.timestep)
        share = forecast / forecast.max()
        assert episode.region is not None
        region = episode.region.choose(episode)
        assert int((share > 0.61).sum()) >= 1
        assert int((share < 0.39).sum()) >= 20
        assert bool((region[share > 0.61] == 1.0).all())
        assert bool((region[share < 0.39] == 0.0).all())
        engine.act(episode, engine.action_names.index("continue"))


def test_a_head_that_does_not_fit_is_a_one_line_error(head_file: Path) -> None:
    def one_line(message: str) -> None:
        with pytest.raises(UserError, match=message) as error:
            Engine(OracleBackbone(), learned(head_file))
        assert "\n" not in str(error.value)

    save_region_head(head_file, RemainingChangeHead(16, 8), backbone="oracle")
    one_line("for latents of 16 channels; accepted with this backbone: 4")
    save_region_head(head_file, RemainingChangeHead(4, 8), backbone="sd15@1234")
    one_line("fitted on sd15@1234; accepted: one fitted on oracle")
    head_file.write_bytes(head_file.read_bytes()[:-100])
    one_line("is damaged .*; accepted: a file that `python -m actors.region_training`")
    head_file.unlink()
    one_line("is no file; accepted: a file that")


def test_the_head_is_not_needed_where_nothing_refines() -> None:
    assert Engine(OracleBackbone(), learned("nowhere", actions=("continue", "stop"))).region is None


def test_the_head_travels_with_its_policy(tmp_path: Path) -> None:
    """Copied elsewhere, and with the file of its training gone, the folder still opens with the same head."""
    backbone = OracleBackbone()
    head = RemainingChangeHead(4)
    save_region_head(tmp_path / "head.safetensors", head, backbone=backbone.identity)
    learned = EngineConfig(
        num_steps=5,
        actions=("continue", "stop", "refine"),
        refine_region="learned",
        refine_head=str(tmp_path / "head.safetensors"),
    )
    observer = Observer(ObservationConfig("timestep"), ObservationSizes(6, 5), learned.actions)
    metadata: dict[str, Any] = {
        "backbone": backbone.identity,
        "backbone_name": "oracle",
        "engine": pack_region_head(tmp_path / "policy", asdict(learned)),
        "observation": asdict(observer.config),
        "sizes": asdict(observer.sizes),
    }
    assert metadata["engine"]["refine_head"] == "region_head.safetensors"
    save_policy(tmp_path / "policy", PolicyNetwork(observer.policy_dim, observer.num_actions, (8,)), metadata)
    (tmp_path / "head.safetensors").unlink()
    shutil.move(tmp_path / "policy", tmp_path / "elsewhere")
    trained = read_trained_policy(tmp_path / "elsewhere")
    assert trained.engine == replace(learned, refine_head=str(tmp_path / "elsewhere/region_head.safetensors"))
    engine, _, _ = trained.open(backbone)
    assert engine.region is not None
    assert trained.engine.refine_head is not None
    packed = load_region_head(trained.engine.refine_head, channels=4, backbone=backbone.identity)
    for name, values in head.state_dict().items():
        assert torch.equal(packed.state_dict()[name], values)
    with pytest.raises(UserError, match="no file"):
        pack_region_head(tmp_path / "policy", asdict(learned))
    plain = asdict(EngineConfig())
    assert pack_region_head(tmp_path / "nowhere", plain) == plain
    assert not (tmp_path / "nowhere").exists()
