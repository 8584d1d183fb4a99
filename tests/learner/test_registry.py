"""The registry: a policy goes in, and comes out by name, alias, version or folder, without Ray."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch

from actors.errors import UserError
from actors.policy import PolicyNetwork, save_policy
from learner import registry
from learner.champions import Champions

METADATA = {"backbone": "toy", "engine": {"num_steps": 5}}

#: Run in a fresh interpreter: what this test session has imported must not hide an import of Ray.
IN_A_NEW_PROCESS = """
import sys
import numpy as np
import mlflow
from learner import registry

uri, name, folder = sys.argv[1:]
network, metadata = registry.load(f"{name}@candidate", uri=uri)
assert metadata["backbone"] == "toy", metadata
model = mlflow.pyfunc.load_model(f"models:/{name}@candidate")
rows = np.concatenate([np.zeros((2, 6)), [[1, 1, 0], [0, 0, 1]]], axis=1).astype(np.float32)
probabilities = model.predict(rows)
assert probabilities.shape == (2, 3), probabilities.shape
np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)
assert probabilities[0, 2] == 0.0 and probabilities[1, 2] == 1.0, probabilities
assert "ray" not in sys.modules, "loading a registered policy imported Ray"
"""

#: Where neither Ray nor this repository can be imported: what a model brings along is enough.
ON_A_BARE_MACHINE = """
import importlib.abc
import sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "ray" or name.startswith("ray."):
            raise ImportError("there is no Ray here")

sys.meta_path = [Missing()] + [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import mlflow
import numpy as np

uri, name, repository = sys.argv[1:]
mlflow.set_tracking_uri(uri)
model = mlflow.pyfunc.load_model(f"models:/{name}/2")
example = model.input_example
np.testing.assert_allclose(model.predict(example).sum(axis=1), 1.0, rtol=1e-5)
assert model.metadata.signature.inputs.inputs[0].shape == (-1, 9)
assert model.metadata.metadata["backbone"] == "toy"
import actors
assert not actors.__file__.startswith(repository), actors.__file__
"""


def a_policy(folder: Path, seed: int = 0) -> PolicyNetwork:
    torch.manual_seed(seed)
    network = PolicyNetwork(6, 3, hidden=(8,))
    save_policy(folder, network, METADATA)
    return network


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, list[str], Path]:
    """Two versions of one model; the alias went to the second."""
    runs = tmp_path_factory.mktemp("runs")
    uri, name = registry.tracking_uri(runs), registry.model_name("some/hub:model")
    versions = []
    for seed in (1, 2):
        a_policy(runs / f"policy-{seed}", seed)
        versions.append(
            registry.register(
                runs / f"policy-{seed}",
                name=name,
                uri=uri,
                run_id=registry.new_run(uri, "addiffusion", f"run-{seed}", {"ppo": {"lr": 3e-4}}),
                metrics={"quality": 0.5 + seed},
                step=seed,
                config={"ppo": {"lr": 3e-4}},
                tags={"backbone": "toy"},
                alias="candidate",
            )
        )
    return uri, name, versions, runs


def test_alias_version_and_folder_lead_to_their_policies(
    registered: tuple[str, str, list[str], Path],
) -> None:
    uri, name, versions, runs = registered
    assert name == "addiffusion-hub-model"
    assert versions == ["1", "2"]
    for reference, seed in [
        (f"{name}@candidate", 2),
        (f"{name}/1", 1),
        (str(runs / "policy-1"), 1),
    ]:
        network, metadata = registry.load(reference, uri=uri)
        expected = a_policy(runs / "compare", seed)
        assert metadata == METADATA
        for (label, ours), theirs in zip(
            network.state_dict().items(), expected.state_dict().values(), strict=True
        ):
            assert torch.equal(ours, theirs), label


def test_it_loads_without_ray(registered: tuple[str, str, list[str], Path]) -> None:
    uri, name, _, runs = registered
    done = subprocess.run(
        [sys.executable, "-c", IN_A_NEW_PROCESS, uri, name, str(runs)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_it_loads_where_neither_ray_nor_this_repository_is(
    registered: tuple[str, str, list[str], Path], tmp_path: Path
) -> None:
    uri, name, _, _ = registered
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", ON_A_BARE_MACHINE, uri, name, str(Path(__file__).parents[2])],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_version_says_what_it_was_trained_with(registered: tuple[str, str, list[str], Path]) -> None:
    uri, name, _, runs = registered
    champions = Champions(uri)
    version = champions.find(f"{name}/1")
    assert version.tags["backbone"] == "toy"
    assert version.tags["code_version"].startswith(importlib.metadata.version("addiffusion"))
    assert version.tags[registry.WEIGHTS_TAG] == registry.weights_digest(runs / "policy-1")
    assert champions.config(version) == {"ppo": {"lr": 3e-4}}
    info = mlflow.models.get_model_info(f"models:/{name}/1")
    assert info.metadata is not None
    assert info.metadata["library_versions"]["ray"] == importlib.metadata.version("ray")
    needed = mlflow.pyfunc.get_model_dependencies(f"models:/{name}/1")
    pinned = dict(line.split("==") for line in Path(needed).read_text().split())
    assert set(pinned) == {"torch", "numpy", "safetensors", "mlflow"}
    assert pinned["mlflow"] == importlib.metadata.version("mlflow")


@pytest.mark.parametrize("reference", ["addiffusion-hub-model@champion", "nothing@candidate", "nothing/7"])
def test_what_is_not_registered_is_named(
    registered: tuple[str, str, list[str], Path], reference: str
) -> None:
    with pytest.raises(UserError, match=f"policy={reference}: not in the registry"):
        registry.load(reference, uri=registered[0])


def test_a_folder_without_a_policy_and_a_damaged_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no policy"):
        registry.load(str(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        registry.load("nowhere")
    a_policy(tmp_path / "policy")
    (tmp_path / "policy" / "policy.safetensors").write_bytes(b"half of it")
    with pytest.raises(UserError, match="damaged"):
        registry.load(str(tmp_path))


def test_only_options_worth_comparing_are_logged() -> None:
    config = {
        "name": "run",
        "runs_dir": "/somewhere",
        "ppo": {"lr": 1e-3, "hidden": [8, 4], "time_limit_s": None},
        "resources": {"slots": 8},
    }
    assert registry.filtered(config) == {"name": "run", "ppo.lr": 1e-3, "ppo.hidden": "8,4"}
