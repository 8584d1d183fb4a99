"""The cluster files: each is valid by its own rules, and all agree with the project and each other."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.package import PACKAGES
from tune_configs.loading import compose

PROJECT = Path(__file__).resolve().parents[2]
DEPLOY = PROJECT / "cluster" / "deploy"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".dockerignore")
PINNED = dict(re.findall(r"^([\w.-]+)==(\S+)$", (PROJECT / "constraints.txt").read_text(), re.MULTILINE))
RAY = PINNED["ray"]
DENOISER, REWARDS = "addiffusion_denoiser", "addiffusion_rewards"
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def version() -> str:
    pyproject = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    return str(pyproject["project"]["version"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_opens_with_what_it_is_for_and_the_command(path: Path) -> None:
    opening = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        opening.append(line)
    said = "\n".join(opening)
    assert "# What it is for: " in said
    assert "The command" in said


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_placeholders_are_named_in_the_opening_and_nothing_looks_like_a_secret(path: Path) -> None:
    text = path.read_text()
    opening, body = text.split("\n\n", 1)[0] if path.suffix == ".sh" else text, text
    head = "\n".join(line for line in opening.splitlines() if line.startswith("#"))
    assert set(re.findall(r"REPLACE_\w+", body)) <= set(re.findall(r"REPLACE_\w+", head))
    assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|(?i:password|token)\s*[:=]\s*[\"']?[a-z0-9]{8,}", body)


# -- Ray's cluster launcher --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_the_launchers_files_pass_rays_own_check(name: str) -> None:
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    config = fillout_defaults(read(f"{name}.yaml"))
    validate_config(config)
    types = config["available_node_types"]
    assert config["head_node_type"] == "head"
    assert sum(each.get("max_workers", 0) for each in types.values() if "max_workers" in each) >= 6
    offered = {kind: node["resources"] for kind, node in types.items()}
    assert DENOISER in offered["denoiser"]
    assert REWARDS not in offered["denoiser"]
    assert REWARDS in offered["rewards"]
    assert DENOISER not in offered["rewards"]
    assert not {"GPU", DENOISER, REWARDS} & set(offered["head"])
    assert any("--autoscaling-config=" in line for line in config["head_start_ray_commands"])
    starts = [line for line in config["head_start_ray_commands"] if "--head" in line]
    assert all("--dashboard-host=127.0.0.1" in line for line in starts)  # a tunnel leads there, nothing else
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_containers_of_the_launcher_see_their_gpus(name: str) -> None:
    """Ray itself adds `--runtime=nvidia` only, and the image's base says nothing of GPUs."""
    options = read(f"{name}.yaml")["docker"]["run_options"]
    assert "--env NVIDIA_VISIBLE_DEVICES=all" in options
    assert "--env NVIDIA_DRIVER_CAPABILITIES=compute,utility" in options


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_commands_of_the_launcher_are_shell(name: str) -> None:
    config = read(f"{name}.yaml")
    for key, commands in config.items():
        for command in commands if key.endswith("_commands") else ():
            subprocess.run(["bash", "-n", "-c", command], check=True)


@pytest.mark.parametrize("name", ["aws", "gcp", "kuberay-cluster"])
def test_what_resources_cluster_asks_for_finds_room(name: str) -> None:
    """Env runners and reward replicas of resources=cluster fit onto as many nodes as a file allows."""
    resources = compose(["resources=cluster", "backbone=sdxl"]).run.resources
    demands = {
        "denoiser": (
            resources.num_env_runners,
            resources.cpus_per_env_runner,
            resources.gpus_per_env_runner,
        ),
        "rewards": (
            resources.reward_replicas,
            resources.cpus_per_reward_replica,
            resources.gpus_per_reward_replica,
        ),
    }
    for kind, (count, cpus, gpus) in demands.items():
        node_cpus, node_gpus, most = offers(name, kind)
        each = min(node_cpus // cpus, node_gpus // gpus)
        assert each * most >= count, kind


def offers(name: str, kind: str) -> tuple[float, float, int]:
    """CPUs, GPUs of one node of this kind, and how many nodes there may be."""
    config = read(f"{name}.yaml")
    if name != "kuberay-cluster":
        node = config["available_node_types"][kind]
        return node["resources"]["CPU"], node["resources"]["GPU"], node["max_workers"]
    (group,) = [each for each in config["spec"]["workerGroupSpecs"] if each["groupName"] == kind]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return float(limits["cpu"]), float(limits["nvidia.com/gpu"]), group["maxReplicas"]


# -- KubeRay -----------------------------------------------------------------------------------------------

#: Fields of KubeRay's v1 definitions (1.6) that may be given; a server drops an unknown one silently.
CLUSTER = {
    "rayVersion",
    "authOptions",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "headGroupSpec",
    "workerGroupSpecs",
}
AUTOSCALER = {"version", "idleTimeoutSeconds", "resources", "upscalingMode", "image", "env", "envFrom"}
HEAD = {"rayStartParams", "template", "serviceType", "enableIngress", "resources", "labels", "headService"}
WORKERS = {
    "groupName",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "idleTimeoutSeconds",
    "rayStartParams",
    "template",
    "numOfHosts",
    "resources",
    "labels",
    "scaleStrategy",
}
JOB = {
    "entrypoint",
    "submissionMode",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "activeDeadlineSeconds",
    "backoffLimit",
    "rayClusterSpec",
    "runtimeEnvYAML",
    "suspend",
}


def pods(spec: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Each group: its name, itself, its pods' spec."""
    yield "head", spec["headGroupSpec"], spec["headGroupSpec"]["template"]["spec"]
    for group in spec["workerGroupSpecs"]:
        yield group["groupName"], group, group["template"]["spec"]


@pytest.fixture
def ray_cluster() -> dict[str, Any]:
    found = read("kuberay-cluster.yaml")
    assert isinstance(found, dict)
    return found


def test_the_ray_cluster_keeps_to_kuberays_definition(ray_cluster: dict[str, Any]) -> None:
    assert (ray_cluster["apiVersion"], ray_cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert DNS_LABEL.fullmatch(ray_cluster["metadata"]["name"])
    spec = ray_cluster["spec"]
    assert set(spec) <= CLUSTER
    assert set(spec["autoscalerOptions"]) <= AUTOSCALER
    assert set(spec["headGroupSpec"]) <= HEAD
    assert spec["rayVersion"] == RAY
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    names = [group["groupName"] for group in spec["workerGroupSpecs"]]
    assert sorted(names) == ["denoiser", "rewards"]
    for group in spec["workerGroupSpecs"]:
        assert set(group) <= WORKERS
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for name, group, pod in pods(spec):
        parameters = group["rayStartParams"]
        assert all(isinstance(value, str) for value in parameters.values()), name  # a map of strings
        (container, *_) = pod["containers"]
        assert container["image"] == f"addiffusion:{version()}"
        assert container["resources"]["requests"] == container["resources"]["limits"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        assert pod["securityContext"]["runAsNonRoot"] is True


def test_groups_offer_what_placement_asks_for(ray_cluster: dict[str, Any]) -> None:
    """KubeRay pastes rayStartParams into a shell line: what Ray reads is what the shell leaves of it."""
    offered = {}
    for name, group, pod in pods(ray_cluster["spec"]):
        (text,) = shlex.split(group["rayStartParams"].get("resources", "'{}'"))
        offered[name] = yaml.safe_load(text.replace("\\", ""))
        has_gpu = "nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]
        assert has_gpu == (name != "head")
    assert offered == {"head": {}, "denoiser": {DENOISER: 1}, "rewards": {REWARDS: 1}}


def test_pods_share_one_volume_that_exists(ray_cluster: dict[str, Any]) -> None:
    storage = read("kuberay-storage.yaml")
    assert storage["spec"]["accessModes"] == ["ReadWriteMany"]
    for _, _, pod in pods(ray_cluster["spec"]):
        claims = [
            volume["persistentVolumeClaim"]["claimName"]
            for volume in pod["volumes"]
            if "persistentVolumeClaim" in volume
        ]
        assert claims == [storage["metadata"]["name"]]


def test_the_ray_job_runs_a_command_that_exists_on_the_same_cluster(ray_cluster: dict[str, Any]) -> None:
    from cluster.parsing import parse

    job = read("kuberay-job.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert set(spec) <= JOB
    assert spec["rayClusterSpec"] == ray_cluster["spec"]
    assert spec["ttlSecondsAfterFinished"] == 0 or spec["shutdownAfterJobFinishes"]
    program, *words = shlex.split(spec["entrypoint"])
    parsed = parse(words)
    assert (program, parsed.path) == ("addiffusion", ("train",))
    run = compose(parsed.overrides).run
    mounts = ray_cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert any(run.runs_dir.startswith(mount["mountPath"] + "/") for mount in mounts)


# -- Docker ------------------------------------------------------------------------------------------------


def instructions(name: str) -> list[tuple[str, str]]:
    text = (DEPLOY / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def test_the_image_has_every_package_the_pinned_versions_and_no_root() -> None:
    lines = instructions("Dockerfile")
    (base,) = [rest for name, rest in lines if name == "FROM"]
    assert re.fullmatch(r"python:3\.11-slim-\w+", base)
    copied = [word for name, rest in lines if name == "COPY" for word in rest.split()[:-1]]
    for source in copied:
        assert (PROJECT / source).exists(), source
    assert set(PACKAGES) | {"pyproject.toml", "constraints.txt", "README.md"} == set(copied)
    installs = [rest for name, rest in lines if name == "RUN" and "pip install" in rest]
    assert "--constraint constraints.txt" in installs[0]
    assert [rest for name, rest in lines if name == "USER"] == [
        "1000"
    ]  # a name is no proof of not being root
    assert not any(name == "ADD" or name == "ARG" for name, _ in lines)
    seen = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in seen if line.startswith("!")} == set(copied)
    assert seen[1] == "**"


def test_the_server_has_the_clients_version() -> None:
    ((_, install),) = [line for line in instructions("mlflow.Dockerfile") if line[0] == "RUN"]
    assert f"mlflow=={PINNED['mlflow']} " in install
    assert re.search(r"psycopg2-binary==\d+\.\d+\.\d+ ", install)
    assert read("compose.yaml")["services"]["mlflow"]["image"].endswith(f":{PINNED['mlflow']}")


def test_compose_pins_images_has_no_default_password_and_listens_here_only() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    compose_file = yaml.safe_load(text)
    variables = re.findall(r"\$\{(\w+)(:?[-?]?)", text)
    assert {name for name, _ in variables} == {"MLFLOW_DB_PASSWORD", "GRAFANA_PASSWORD", "RAY_TMP"}
    assert all(rule == ":?" for name, rule in variables if name.endswith("PASSWORD"))
    volumes = set(compose_file["volumes"])
    for name, service in compose_file["services"].items():
        assert re.fullmatch(r"[\w./-]+:v?\d+(\.\d+)+(-\w+)?", service["image"]), name
        assert service["healthcheck"]["test"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        for mount in service["volumes"]:
            source = mount.partition(":")[0]
            assert source in volumes or source.startswith("${") or (DEPLOY / source).exists(), mount
        for needed in service.get("depends_on", {}):
            assert needed in compose_file["services"]
        if service.get("network_mode") == "host":
            assert "127.0.0.1" in str(service.get("command", "")) + str(service.get("environment", "")), name


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    services = read("compose.yaml")["services"]
    (source,) = read("grafana/datasources.yaml")["datasources"]
    assert (
        f"--web.listen-address={source['url'].removeprefix('http://')}" in services["prometheus"]["command"]
    )
    (provider,) = read("grafana/dashboards.yaml")["providers"]
    mounts = dict(mount.split(":")[:2] for mount in services["grafana"]["volumes"])
    (folder,) = [here for here, there in mounts.items() if there == provider["options"]["path"]]
    assert list((DEPLOY / folder).glob("*.json"))


def test_prometheus_scrapes_the_cluster_and_the_endpoint_where_serve_listens_by_itself() -> None:
    from cluster.parsing import parse

    jobs = {job["job_name"]: job for job in read("prometheus.yaml")["scrape_configs"]}
    served = parse(["serve"]).values
    targets = [target for each in jobs["addiffusion-serving"]["static_configs"] for target in each["targets"]]
    assert targets == [f"{served['host']}:{served['port']}"]
    (listed,) = jobs["ray"]["file_sd_configs"][0]["files"]
    mounts = read("compose.yaml")["services"]["prometheus"]["volumes"]
    assert any(listed.startswith(mount.split(":")[-2] + "/") for mount in mounts)


# -- SLURM -------------------------------------------------------------------------------------------------


def slurm(folder: Path, nodes: int, *, ray_starts: bool = True) -> subprocess.CompletedProcess[str]:
    """The script itself, with stand-ins for SLURM's commands, for ray's, and for ours, which exits with 7."""
    ran = 'test "$SLURM_NODEID" != 0 || { while [ "$1" != -- ]; do shift; done; shift; "$@"; }'
    stand_ins = {
        "scontrol": 'test "$1 $2 $3" = "show hostnames the-list" && printf "one\\ntwo\\nthree\\n"',
        "srun": f'echo "$*" >> {folder}/srun.txt\n'
        'while [ "${1#--}" != "$1" ]; do shift; done\n'
        "for node in $(seq 0 $((SLURM_NNODES - 1))); do\n"
        '  SLURM_NODEID=$node "$@"; found=$?; test $found = 0 || code=$found\n'
        "done\n"
        "exit ${code:-0}",
        "ray": f'echo "$*" >> {folder}/ray.txt\n'
        f'echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN" >> {folder}/token.txt\n' + (ran if ray_starts else "exit 0"),
        "addiffusion": f'printf "%s|" "$@" >> {folder}/ours.txt\nexit 7',
    }
    for name, body in stand_ins.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_NNODES": str(nodes),
        "SLURM_JOB_NODELIST": "the-list",
        "SLURM_CPUS_PER_TASK": "32",
    }
    command = ["bash", str(DEPLOY / "slurm.sh"), "train", "name=a b", "resources=cluster"]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("nodes", [1, 3])
def test_slurm_starts_ray_on_every_node_with_what_it_offers(nodes: int, tmp_path: Path) -> None:
    assert slurm(tmp_path, nodes).returncode == 7
    assert "--cpus-per-task=32 " in (tmp_path / "srun.txt").read_text()
    (token,) = set((tmp_path / "token.txt").read_text().splitlines())
    assert re.fullmatch(r"token [0-9a-f]{64}", token), "one token for all nodes"
    started = (tmp_path / "ray.txt").read_text().splitlines()
    assert len(started) == nodes
    for line in started:
        assert line.startswith(f"symmetric-run --address one:6379 --min-nodes {nodes} --num-cpus=32 ")
    assert (tmp_path / "ours.txt").read_text() == "train|name=a b|resources=cluster|", "once, word for word"
    offered = [yaml.safe_load(re.findall(r"--resources=(\{.*?\})", line)[0]) for line in started]
    expected = [{DENOISER: 1, REWARDS: 1}] if nodes == 1 else [{DENOISER: 1}, {DENOISER: 1}, {REWARDS: 1}]
    assert offered == expected


def test_slurm_where_ray_does_not_start_is_no_success(tmp_path: Path) -> None:
    """Ray's symmetric-run exits with 0 then."""
    ended = slurm(tmp_path, 3, ray_starts=False)
    assert ended.returncode == 1
    assert ended.stderr == "error: Ray did not start on one; nothing was run\n"
    assert not (tmp_path / "ours.txt").exists()


def test_shellcheck_finds_nothing_in_the_script() -> None:
    checker = Path(sys.executable).with_name("shellcheck")
    ended = subprocess.run([str(checker), str(DEPLOY / "slurm.sh")], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "")


def test_slurm_without_a_command_says_so() -> None:
    ended = subprocess.run(["bash", str(DEPLOY / "slurm.sh")], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: no command")


def test_this_ray_has_what_the_script_uses() -> None:
    from ray.scripts.symmetric_run import symmetric_run

    assert {"address", "min_nodes"} <= {parameter.name for parameter in symmetric_run.params}
