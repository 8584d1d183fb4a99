"""What a training run needs from the machine, as a list of checks.

Always true here: a check never raises and changes nothing; one that failed says what to do about it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from actors.backbones.config import BackboneConfig
from actors.errors import redacted
from cluster import gpu_checks, hub_checks, ray_checks
from cluster.check import Check, guarded
from cluster.runs import existing_parent
from learner.config import RunConfig
from learner.placement import demands
from learner.resources import OBJECT_STORE_BYTES
from rewards_service.scorers_config import HUB, ScorersConfig, check_files, missing_parts
from tune_configs.admission import free_memory
from tune_configs.loading import Settings

GIB = 2**30
MEMORY_GIB = 6.0
DISK_GIB = 2.0
#: Ray refuses to work on a disk that is fuller than this.
FULL_DISK = 0.95
#: Seconds that a tracking server has for its answer.
MLFLOW_TIMEOUT_S = 5


def checks(settings: Settings) -> Iterator[Check]:
    """Everything `addiffusion train` needs with these settings, one after the other."""
    run = settings.run
    wanted = demands(run.resources, run.rewards)
    yield python()
    yield from packages()
    yield guarded("GPUs", lambda: gpu_checks.gpus(run, wanted))
    if run.backbone.device == "cpu":
        yield guarded("torch", lambda: torch_device(run.backbone.device))
    yield memory()
    yield disk("disk for runs", Path(run.runs_dir))
    yield disk("disk for Ray's files", Path(tempfile.gettempdir()))
    yield guarded("backbone", lambda: backbone_files(run.backbone))
    yield guarded("reward models", lambda: reward_files(run.backbone.scorers))
    if run.registry.enabled:
        yield guarded("MLflow registry", lambda: mlflow_store(run))
    yield guarded("prompts and actions", lambda: inputs(settings))
    if run.resources.address is None:
        yield ray_checks.object_store(OBJECT_STORE_BYTES)
    yield from ray_checks.cluster(run.resources, wanted)


def python() -> Check:
    """Python 3.11."""
    version = platform.python_version()
    return Check("Python", version.startswith("3.11."), version, "use Python 3.11: make PYTHON=python3.11")


def packages() -> Iterator[Check]:
    """Each package that the project names, against the version it asks for."""
    from packaging.requirements import Requirement

    try:
        requirements = importlib.metadata.requires("addiffusion") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check("addiffusion", False, "not installed", "pip install -e . -c constraints.txt")
        return
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        wanted = f"{requirement.name}{requirement.specifier}"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(
                requirement.name, False, "not installed", f"pip install -c constraints.txt '{wanted}'"
            )
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        yield Check(requirement.name, fits, version, f"pip install -c constraints.txt '{wanted}'")


def torch_device(device: str) -> Check:
    """torch runs, and on the device that the backbone is configured for."""
    import torch

    torch.ones(1, device=device).sum().item()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Check("torch device", True, f"{device} ({', '.join(gpus) or f'no GPU, {os.cpu_count()} cores'})")


def memory() -> Check:
    """Memory that is free now, within the container's limit if there is one."""
    available = free_memory()
    found = f"{available / GIB:.1f} GiB free"
    hint = f"{MEMORY_GIB:.0f} GiB are needed; close something, or resources.num_env_runners=1"
    return Check("memory", available >= MEMORY_GIB * GIB, found, hint)


def disk(name: str, folder: Path) -> Check:
    """Space where `folder` is, or will be."""
    existing = existing_parent(folder)
    usage = shutil.disk_usage(existing)
    writable = os.access(existing, os.W_OK)
    enough = usage.free >= DISK_GIB * GIB and usage.used / usage.total < FULL_DISK
    found = (
        f"{usage.free / GIB:.1f} GiB free in {existing}" if writable else f"{existing} cannot be written to"
    )
    hint = f"{DISK_GIB:.0f} GiB and {1 - FULL_DISK:.0%} of the disk have to be free"
    return Check(name, writable and enough, found, hint if writable else "runs_dir=FOLDER chooses another")


def backbone_files(config: BackboneConfig) -> Check:
    """The pipeline (the embedded world's, a folder's, or the hub's), and what is loaded into it."""
    folder = Path(config.name)
    if config.name == "shapes":
        from shapes import weights

        folder = Path(weights.PATH) / "pipeline"
    parts = [name for name in (config.lora, config.tiny_decoder) if name and not Path(name).exists()]
    sources: list[tuple[str, str | None]] = [(name, None) for name in parts]
    if config.name == "shapes" or folder.is_dir():
        if not (folder / "model_index.json").is_file():
            hint = "no model_index.json there; give a folder in diffusers' format"
            return Check("backbone", False, str(folder), hint)
    else:
        sources.insert(0, (config.name, "model_index.json"))
    return _of_hub("backbone", str(config.name if sources else folder), sources)


def reward_files(scorers: ScorersConfig | str | None) -> Check:
    """Every part of the reward models' folder, or every file, folder and hub repository that is named."""
    from shapes import weights

    if not isinstance(scorers, ScorersConfig):
        folder = Path(weights.PATH if scorers is None else scorers)
        lacking = missing_parts(folder)
        return Check("reward models", not lacking, str(folder), f"missing there: {', '.join(lacking)}")
    check_files(scorers, "backbone.scorers")
    return _of_hub("reward models", f"{len(scorers.sources())} sources", list(repositories(scorers)))


def _of_hub(name: str, found: str, sources: Sequence[tuple[str, str | None]]) -> Check:
    """Passes if all of it is in the hub's cache, or the hub would give it."""
    absent = sorted({repository for repository, file in sources if not hub_checks.in_cache(repository, file)})
    if not absent:
        return Check(name, True, f"{found}, in the cache" if sources else found)
    refused = hub_checks.refusal(absent)
    where = "not in the cache" if refused else "which the hub will send"
    return Check(name, not refused, f"{found}; {where}: {', '.join(absent)}", refused)


def repositories(scorers: ScorersConfig) -> Iterator[tuple[str, str | None]]:
    """The hub repositories that reward models come from, with the file needed where one is named."""
    from open_clip.pretrained import get_pretrained_cfg

    for option, value in scorers.sources().items():
        owner, _, rest = value.removeprefix(HUB).partition("/")
        if value.startswith(HUB):
            repository, _, file = rest.partition("/")
            yield f"{owner}/{repository}", file or None
        elif (
            option in ("dino.model", "pick_score.model", "pick_score.processor") and not Path(value).is_dir()
        ):
            yield value, None
    clip = scorers.clip
    if clip is not None and clip.pretrained is not None:
        tagged = get_pretrained_cfg(clip.model, clip.pretrained).get("hf_hub", "")
        if tagged:
            yield tagged.rstrip("/"), None
    if scorers.image_reward is not None:
        yield "bert-base-uncased", "vocab.txt"


def mlflow_store(run: RunConfig) -> Check:
    """The tracking store answers; an sqlite file that is not there yet is made by the first run."""
    from learner.registry import tracking_uri

    uri = run.registry.tracking_uri or tracking_uri(Path(run.runs_dir))
    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not path.exists():
        return Check("MLflow registry", True, f"{path} (made by the first run)")
    import mlflow

    with impatient():
        mlflow.MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    return Check("MLflow registry", True, redacted(uri))


@contextmanager
def impatient() -> Iterator[None]:
    """Inside, MLflow waits a few seconds for a server, once; left alone it tries for minutes."""
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT

    variables = {MLFLOW_HTTP_REQUEST_TIMEOUT: MLFLOW_TIMEOUT_S, MLFLOW_HTTP_REQUEST_MAX_RETRIES: 0}
    before = {variable: variable.get_raw() for variable in variables}
    for variable, value in variables.items():
        variable.set(value)
    try:
        yield
    finally:
        for variable, value in before.items():
            if value is None:
                variable.unset()
            else:
                variable.set(value)


def inputs(settings: Settings) -> Check:
    """Prompts of training and evaluation can be read, and the actions exist."""
    from cluster.train_command import check_inputs

    check_inputs(settings)
    found = f"{settings.run.prompts.source}, evaluation: {settings.evaluation.prompts}"
    return Check("prompts and actions", True, found)
