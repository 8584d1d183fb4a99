"""The MLflow registry: trained policies by name, version and alias.

Always true here: nothing in this file imports Ray; a registered model brings the policy's own folder
(safetensors and JSON) and the code that reads it, its signature, an input example, its metrics, the whole
configuration, the backbone it belongs to, and the versions of what it was trained with. A name that is not
there, or a damaged entry, is a UserError.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import mlflow.artifacts
import mlflow.pyfunc
import numpy as np
from mlflow.entities import Param
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec
from sqlalchemy.exc import SQLAlchemyError

import actors
from actors.errors import UserError
from actors.policy import WEIGHTS_FILE, PolicyNetwork, load_policy

CANDIDATE = "candidate"
EXPERIMENT = "addiffusion"
WEIGHTS_TAG = "policy_sha256"
"""Which weights and metadata a version holds: by it a run's folder finds its version."""
LIBRARIES = ("torch", "diffusers", "transformers", "ray", "mlflow", "safetensors", "numpy")
"""Whose versions are kept with a model."""
_NEEDED = ("mlflow", "numpy", "safetensors", "torch")
"""What loading a policy from MLflow takes, with this project's own code."""
PREFIX = "addiffusion-"
"""Of the names of our registered models; a server may hold other people's too."""
REFUSALS = (MlflowException, OSError, SQLAlchemyError, ImportError)
"""What a registry that is damaged, full or out of reach raises; MLflow passes on a database's errors, and
that its driver is not installed."""
#: MLflow's own retries hold a call for minutes; who has the time begins anew.
_HTTP = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
_MODEL = "policy"
_MODEL_CODE = Path(__file__).with_name("registered_model.py")
"""Stored as code: a model that is a pickle could run anything when it is loaded."""


def tracking_uri(runs_dir: Path) -> str:
    """The default tracking store: a sqlite file among the runs."""
    return f"sqlite:///{(runs_dir / 'mlflow.db').absolute()}"


def model_name(backbone: str) -> str:
    """Registered model of a backbone: one name each, without what MLflow forbids in names."""
    plain = "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in Path(backbone).name)
    return f"{PREFIX}{plain}"


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
    config: Mapping[str, Any],
    tags: Mapping[str, str],
    alias: str | None,
) -> str:
    """Log a policy folder to an MLflow run as a new version of `name`; gives the version. The alias moves.

    step: the iteration of the policy and its metrics; config: all options of the run, as plain data.
    """
    network, metadata = load_policy(policy_dir)
    width, actions = network.policy_dim + network.num_actions, network.num_actions
    example_BD = np.concatenate([np.zeros((1, width - actions)), np.ones((1, actions))], axis=1)
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype(np.float32), (-1, width))]),
        Schema([TensorSpec(np.dtype(np.float32), (-1, actions))]),
    )
    versions = library_versions()
    kept = {**tags, WEIGHTS_TAG: weights_digest(policy_dir), "code_version": code_version()}
    quiet()
    client = MlflowClient(tracking_uri=uri)
    mlflow.set_tracking_uri(uri)
    with tempfile.TemporaryDirectory() as code, mlflow.start_run(run_id=run_id):
        mlflow.set_tags(kept)
        mlflow.log_metrics(dict(metrics), step=step)
        mlflow.log_dict(dict(config), "config.yaml")
        info = mlflow.pyfunc.log_model(
            name=_MODEL,
            python_model=str(_MODEL_CODE),
            artifacts={_MODEL: str(policy_dir)},
            code_paths=[str(_own_code(Path(code)))],
            signature=signature,
            input_example=example_BD.astype(np.float32),
            registered_model_name=name,
            pip_requirements=[f"{library}=={versions[library]}" for library in _NEEDED],
            metadata={
                "backbone": metadata.get("backbone"),
                "code_version": kept["code_version"],
                "library_versions": versions,
            },
        )
    version = str(info.registered_model_version)
    for tag, value in kept.items():
        client.set_model_version_tag(name, version, tag, value)
    if alias is not None:
        client.set_registered_model_alias(name, alias, version)
    return version


def weights_digest(policy_dir: Path) -> str:
    """Of the policy's one file, weights and metadata both."""
    return hashlib.sha256((policy_dir / WEIGHTS_FILE).read_bytes()).hexdigest()


def library_versions() -> dict[str, str]:
    """What is installed of LIBRARIES, without the local part of a version."""
    found: dict[str, str] = {}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def code_version() -> str:
    """This project's version, and where it runs from its own repository the commit (-dirty if changed)."""
    try:
        version = importlib.metadata.version("addiffusion")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return version
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{version}+{described.stdout.strip()}" if described.returncode == 0 else version


def _own_code(folder: Path) -> Path:
    """A copy of the engine's package for a model to bring along; it needs no Ray."""
    source = Path(actors.__file__).parent
    return Path(shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__")))


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
    quiet()
    impatient()
    check_there(uri, f"policy={name_or_path}")
    try:
        if uri is not None:
            mlflow.set_tracking_uri(uri)
        local = Path(mlflow.artifacts.download_artifacts(f"models:/{name_or_path}"))
    except REFUSALS as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"policy={name_or_path}: not in the registry {mlflow.get_tracking_uri()} ({reason})"
        ) from error
    found = list((local / "artifacts").glob(f"*/{WEIGHTS_FILE}"))
    if len(found) != 1:
        raise UserError(f"policy={name_or_path}: holds no policy; give a model that addiffusion registered")
    return found[0].parent


def quiet() -> None:
    """MLflow's progress bars and news are for its own users."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def impatient() -> None:
    """A server that does not answer is given up within a minute, unless the environment says otherwise."""
    for name, value in _HTTP.items():
        os.environ.setdefault(name, value)


def check_there(uri: str | None, option: str) -> None:
    """UserError for an sqlite file that is not there (looking does not make a registry), or not readable."""
    if uri is None or not uri.startswith("sqlite:///"):
        return
    file = sqlite_file(uri)
    if file is None:
        raise UserError(f"{option}: there is no registry at {uri}; `addiffusion train` makes one")
    if not os.access(file, os.R_OK):  # MLflow would try for a minute
        raise UserError(f"{option}: {file} cannot be read; change its permissions")


def sqlite_file(uri: str) -> Path | None:
    """The file of an sqlite address, if it is there."""
    file = Path(uri.removeprefix("sqlite:///"))
    return file if uri.startswith("sqlite:///") and file.is_file() else None


def new_run(uri: str, experiment: str, run_name: str, config: Mapping[str, Any]) -> str:
    """Make an MLflow run with the options worth comparing; gives its id."""
    client = MlflowClient(tracking_uri=uri)
    run = client.create_run(_experiment_id(client, uri, experiment), run_name=run_name)
    params = [Param(name, str(value)) for name, value in filtered(config).items()]
    client.log_batch(run.info.run_id, params=params)
    return str(run.info.run_id)


def _experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """The experiment of that name, made where it is not there."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    location = None
    if uri.startswith("sqlite:///"):
        location = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
    return str(client.create_experiment(name, artifact_location=location))
