"""Folders with small random weights, made once a session; diffusers' pipelines and our backbones on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from actors.backbones.config import BackboneConfig
from actors.backbones.flux import FluxBackbone
from actors.backbones.loading import load_backbone
from actors.backbones.stable_diffusion import StableDiffusionBackbone
from actors.backbones.stable_diffusion_xl import StableDiffusionXLBackbone
from tests.actors.folders import save_flux, save_stable_diffusion, save_stable_diffusion_xl

torch.set_num_threads(1)

FLUX_HEIGHT, FLUX_WIDTH = 16, 24
"""Two pixels a latent: 4 x 6 tokens of an image."""


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random_sd")
    save_stable_diffusion(folder)
    return folder


@pytest.fixture(scope="session")
def pipeline(pipeline_folder: Path) -> StableDiffusionPipeline:
    """The reference: diffusers' own pipeline on the same folder."""
    loaded = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="session")
def backbone(pipeline_folder: Path) -> StableDiffusionBackbone:
    loaded = load_backbone(BackboneConfig(str(pipeline_folder)))
    assert isinstance(loaded, StableDiffusionBackbone)
    return loaded


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random_sdxl")
    save_stable_diffusion_xl(folder)
    return folder


@pytest.fixture(scope="session")
def sdxl_pipeline(sdxl_folder: Path) -> StableDiffusionXLPipeline:
    loaded = StableDiffusionXLPipeline.from_pretrained(sdxl_folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="session")
def sdxl(sdxl_folder: Path) -> StableDiffusionXLBackbone:
    loaded = load_backbone(BackboneConfig(str(sdxl_folder)))
    assert isinstance(loaded, StableDiffusionXLBackbone)
    return loaded


@pytest.fixture(scope="session")
def flux_dev_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random_flux_dev")
    save_flux(folder, dev=True)
    return folder


@pytest.fixture(scope="session")
def flux_schnell_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random_flux_schnell")
    save_flux(folder, dev=False)
    return folder


@pytest.fixture(scope="session", params=["dev", "schnell"])
def flux_folder(request: pytest.FixtureRequest) -> Path:
    """Either of them: a test that takes it is run with both."""
    folder: Path = request.getfixturevalue(f"flux_{request.param}_folder")
    return folder


@pytest.fixture(scope="session")
def flux_pipeline(flux_folder: Path) -> FluxPipeline:
    loaded = FluxPipeline.from_pretrained(flux_folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="session")
def flux(flux_folder: Path) -> FluxBackbone:
    loaded = load_backbone(BackboneConfig(str(flux_folder), height=FLUX_HEIGHT, width=FLUX_WIDTH))
    assert isinstance(loaded, FluxBackbone)
    return loaded


@pytest.fixture(params=["pipeline_folder", "sdxl_folder", "flux_dev_folder"])
def folder(request: pytest.FixtureRequest) -> Path:
    """One of each architecture: a test that takes it is run with all."""
    found: Path = request.getfixturevalue(request.param)
    return found
