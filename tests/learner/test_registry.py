"""The registry: a policy goes in, and comes out by name, alias, version or folder, without Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from actors.errors import UserError
from actors.policy import PolicyNetwork, save_policy
from learner import registry

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
                experiment="addiffusion",
                run_name=f"run-{seed}",
                metrics={"quality": 0.5 + seed},
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
