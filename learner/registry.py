"""The MLflow registry: trained policies by name, version and alias.

Always true here: nothing in this file imports Ray; a registered model brings the policy's own folder
(safetensors and JSON), its signature, an input example, its metrics and the backbone it belongs to.
A name that is not there, or a damaged entry, is a UserError.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import mlflow.artifacts
import mlflow.pyfunc
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec

from actors.errors import UserError
from actors.policy import WEIGHTS_FILE, PolicyNetwork, load_policy

_MODEL = "policy"
_MODEL_CODE = Path(__file__).with_name("registered_model.py")
"""Stored as code: a model that is a pickle could run anything when it is loaded."""


def tracking_uri(runs_dir: Path) -> str:
    """The default tracking store: a sqlite file among the runs."""
    return f"sqlite:///{(runs_dir / 'mlflow.db').absolute()}"


def model_name(backbone: str) -> str:
    """Registered model of a backbone: one name each, without what MLflow forbids in names."""
    plain = "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in Path(backbone).name)
    return f"addiffusion-{plain}"


def filtered(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options worth a column: scalars, by dotted name, without paths and resources."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if name in ("resources", "registry", "checkpoints", "runs_dir"):
            continue
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": inner for key, inner in filtered(value).items()}
        elif isinstance(value, list):
            flat[name] = ",".join(str(item) for item in value)
        elif value is not None:
            flat[name] = value
    return flat


def register(
    policy_dir: Path,
    *,
    name: str,
    uri: str,
    run_id: str,
    metrics: Mapping[str, float],
    step: int,
    tags: Mapping[str, str],
    alias: str | None,
) -> str:
    """Log a policy folder to an MLflow run as a new version of `name`; gives the version. The alias moves.

    step: the iteration of the policy and its metrics.
    """
    network, _ = load_policy(policy_dir)
    width, actions = network.policy_dim + network.num_actions, network.num_actions
    example_BD = np.concatenate([np.zeros((1, width - actions)), np.ones((1, actions))], axis=1)
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype(np.float32), (-1, width))]),
        Schema([TensorSpec(np.dtype(np.float32), (-1, actions))]),
    )
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    client = MlflowClient(tracking_uri=uri)
    mlflow.set_tracking_uri(uri)
    with mlflow.start_run(run_id=run_id):
        mlflow.set_tags(dict(tags))
        mlflow.log_metrics(dict(metrics), step=step)
        info = mlflow.pyfunc.log_model(
            name=_MODEL,
            python_model=str(_MODEL_CODE),
            artifacts={_MODEL: str(policy_dir)},
            signature=signature,
            input_example=example_BD.astype(np.float32),
            registered_model_name=name,
            pip_requirements=["torch", "safetensors", "numpy", "mlflow"],
        )
    version = str(info.registered_model_version)
    if alias is not None:
        client.set_registered_model_alias(name, alias, version)
    for tag, value in tags.items():
        client.set_model_version_tag(name, version, tag, value)
    return version


def load(name_or_path: str, *, uri: str | None = None) -> tuple[PolicyNetwork, dict[str, Any]]:
    """A policy and its metadata from a folder, from "name@alias" or from "name/version"."""
    return load_policy(policy_folder(name_or_path, uri=uri))


def policy_folder(name_or_path: str, *, uri: str | None = None) -> Path:
    """Where a policy's files are: the folder itself or its policy/, or what the registry hands out.

    Looking does not make a registry: an sqlite file that is not there is a UserError.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        for candidate in (folder, folder / "policy"):
            if (candidate / WEIGHTS_FILE).exists():
                return candidate
        raise UserError(f"policy={name_or_path}: holds no policy; give a run's folder or its policy/")
    if "@" not in name_or_path and "/" not in name_or_path:
        raise UserError(
            f"policy={name_or_path}: no such folder; or give a model as name@alias or name/version"
        )
    if (
        uri is not None
        and uri.startswith("sqlite:///")
        and not Path(uri.removeprefix("sqlite:///")).is_file()
    ):
        raise UserError(
            f"policy={name_or_path}: there is no registry at {uri}; `addiffusion train` makes one"
        )
    try:
        if uri is not None:
            mlflow.set_tracking_uri(uri)
        local = Path(mlflow.artifacts.download_artifacts(f"models:/{name_or_path}"))
    except (MlflowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"policy={name_or_path}: not in the registry {mlflow.get_tracking_uri()} ({reason})"
        ) from error
    (artifact,) = (local / "artifacts").iterdir()
    return artifact


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """The experiment of that name, made where it is not there."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    location = None
    if uri.startswith("sqlite:///"):
        location = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
    return str(client.create_experiment(name, artifact_location=location))
