"""Files of cluster/: values that Ray and the clouds refuse, and access for strangers.

No cluster is started.
"""

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import ray.autoscaler
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler.sdk import fillout_defaults
from ray.runtime_env import RuntimeEnv

from audiodiff_platform.serve.exposition import ReplicaMetrics, exposition
from audiodiff_platform.serve.metrics import EncodingMetrics, GenerationMetrics, HttpMetrics
from audiodiff_platform.serve.options import ServeOptions

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHERS = ("local", "aws", "gcp")
CLOUDS = ("aws", "gcp")

# Ray's schema accepts any key of a provider and of a node_config. A misspelled key would be ignored, or be noticed only
# by the cloud.
PROVIDER_KEYS = {
    "local": {"type", "head_ip", "worker_ips"},
    "aws": {"type", "region", "availability_zone", "use_internal_ips", "cache_stopped_nodes"},
    "gcp": {"type", "project_id", "region", "availability_zone", "use_internal_ips", "cache_stopped_nodes"},
}
GCP_KEYS = {
    "": {
        "machineType",
        "disks",
        "networkInterfaces",
        "serviceAccounts",
        "scheduling",
        "guestAccelerators",
        "labels",
        "metadata",
    },
    "disks": {"boot", "autoDelete", "type", "initializeParams"},
    "disks.initializeParams": {"diskSizeGb", "diskType", "sourceImage"},
    "networkInterfaces": {"subnetwork"},
    "serviceAccounts": {"email", "scopes"},
    "scheduling": {"provisioningModel", "instanceTerminationAction", "onHostMaintenance", "automaticRestart"},
}


def read(name: str) -> dict[str, Any]:
    content = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    assert isinstance(content, dict)
    return content


def commands(config: dict[str, Any], kind: str) -> list[str]:
    return [command for key, listed in config.items() if key.endswith(kind) for command in listed]


def starts(config: dict[str, Any]) -> list[str]:
    """Return the commands that start Ray: the head's, then the workers'."""
    return [command for command in commands(config, "start_ray_commands") if "ray start" in command]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_takes_the_launcher_file(name: str) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    config = read(name) if name == "local" else fillout_defaults(read(name))  # Ray has no defaults for local machines
    jsonschema.validate(config, schema)
    assert set(config["provider"]) <= PROVIDER_KEYS[name]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_demands_the_token_and_is_closed_to_strangers(name: str) -> None:
    config = read(name)
    head, workers = starts(config)
    assert "--head" in head
    assert "--address=$RAY_HEAD_IP:6379" in workers
    for command in (head, workers):
        assert re.search(r"\bRAY_AUTH_MODE=token ray start ", command)
    assert re.findall(r"--dashboard-host=(\S+)", head) == ["127.0.0.1"]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    assert not re.search(r"0\.0\.0\.0|::/0|8265|10001|8000", json.dumps(config))


@pytest.mark.parametrize("name", CLOUDS)
def test_no_node_of_a_cloud_has_a_public_address(name: str) -> None:
    config = read(name)
    assert config["provider"]["use_internal_ips"] is True
    assert config["auth"]["ssh_proxy_use_node_id"] is True
    for node in config["available_node_types"].values():
        assert "NetworkInterfaces" not in node["node_config"]
        assert all("accessConfigs" not in interface for interface in node["node_config"].get("networkInterfaces", []))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_shell_can_read_all_commands(name: str) -> None:
    for command in commands(read(name), "_commands"):
        parsed = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
        assert (parsed.returncode, parsed.stderr) == (0, ""), command


@pytest.mark.parametrize("name", LAUNCHERS)
def test_nodes_get_what_the_install_needs_in_the_pinned_versions(name: str) -> None:
    config = read(name)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    find = project["tool"]["setuptools"]["packages"]["find"]
    packages = [path for root in find["where"] for pattern in find["include"] for path in (ROOT / root).glob(pattern)]
    folders = {path.relative_to(ROOT).parts[0] for path in packages if (path / "__init__.py").exists()}
    needed = {
        "pyproject.toml",
        "constraints.txt",
        project["project"]["readme"],
        *project["project"]["license-files"],
        *folders,
    }
    mounts = {remote: local for remote, local in config["file_mounts"].items() if remote != "~/.ray/auth_token"}
    assert mounts == {f"~/audiodiff/{name}": name for name in needed}
    assert "cd ~/audiodiff && ~/audiodiff-venv/bin/pip install -q -c constraints.txt ." in config["setup_commands"]
    assert all(
        "-c constraints.txt" in command for command in commands(config, "setup_commands") if "/pip install" in command
    )


@pytest.mark.parametrize("name", [*LAUNCHERS, "runtime-env"])
def test_no_file_states_another_ray(name: str) -> None:
    (pin,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    stated = re.findall(
        r"\bray(?:\[[^]]*\])?==([\w.]+)|rayproject/ray:(\d+\.\d+\.\d+)", (CLUSTER / f"{name}.yaml").read_text()
    )
    assert {version for pair in stated for version in pair if version} <= {pin}


@pytest.mark.parametrize("name", CLOUDS)
def test_node_types_grow_as_intended(name: str) -> None:
    """Check the resources, priorities and limits of the node types.

    The head does no work. A spot node comes before its on-demand twin. No node is kept idle. The cluster can reach the
    stated limits.
    """
    config = read(name)
    nodes = config["available_node_types"]
    head, spot, twin, gpu = (nodes[kind] for kind in (config["head_node_type"], "cpu_spot", "cpu_on_demand", "gpu"))
    assert config["idle_timeout_minutes"] == 5
    assert head["resources"] == {"CPU": 0}
    assert all(node.get("min_workers", 0) == 0 for node in nodes.values())
    assert spot["priority"] > twin["priority"]
    assert {key: spot[key] for key in ("resources", "max_workers")} == {
        key: twin[key] for key in ("resources", "max_workers")
    }
    market = {"aws": "InstanceMarketOptions", "gcp": "scheduling"}[name]
    assert spot["node_config"] == twin["node_config"] | {market: spot["node_config"][market]}
    assert market not in twin["node_config"]
    assert market not in head["node_config"]
    assert "spot" in str(spot["node_config"][market]).lower()
    cpu_nodes = config["max_workers"] - gpu["max_workers"]
    assert cpu_nodes == spot["max_workers"]


def test_ec2_takes_the_node_types() -> None:
    shape = botocore.session.Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for kind, node in read("aws")["available_node_types"].items():
        # Ray turns SubnetIds into one SubnetId.
        request = {key: value for key, value in node["node_config"].items() if key != "SubnetIds"}
        report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **request}, shape)
        assert not report.has_errors(), f"{kind}: {report.generate_report()}"
        assert request["MetadataOptions"]["HttpTokens"] == "required"
        assert ("HEAD" in request["IamInstanceProfile"]["Name"]) == (kind == "head")
        assert all(
            (disk["Ebs"]["Encrypted"], disk["Ebs"]["VolumeType"]) == (True, "gp3")
            for disk in request["BlockDeviceMappings"]
        )


def test_compute_engine_knows_the_keys_of_the_node_types() -> None:
    def check(value: Any, path: str) -> None:
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                assert set(item) <= GCP_KEYS[path], f"{path}: {set(item) - GCP_KEYS[path]}"
                for key, inner in item.items():
                    check(inner, f"{path}.{key}".strip("."))

    for node in read("gcp")["available_node_types"].values():
        check(node["node_config"], "")
        assert {"machineType", "disks", "networkInterfaces", "serviceAccounts"} <= set(node["node_config"])


def test_runtime_env_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the runtime environment: Ray reads it, and its paths exist below the project's root.

    The file states no variables. The jobs state them, and Ray refuses variables from both.
    """
    monkeypatch.chdir(ROOT)
    stated = read("runtime-env")
    parsed = RuntimeEnv(**stated)
    assert parsed.to_dict() == stated
    assert set(stated) == {"py_modules", "excludes"}
    assert all((ROOT / module / "__init__.py").is_file() for module in parsed.py_modules())
    assert {"/.git", "/.venv", "/runs", "/tests/data"} <= set(stated["excludes"])
    assert not (ROOT / "platform" / "__init__.py").exists()


def test_the_dashboard_shows_metrics_that_exist() -> None:
    generation, encoding = GenerationMetrics(), EncodingMetrics()
    families = [*HttpMetrics().families(), *generation.families({}), *encoding.families()]
    text, _ = exposition(["ingress"], [ReplicaMetrics("ingress", "one", families)], "")
    names = {line.split()[2] for line in text.decode().splitlines() if line.startswith("# TYPE")}
    panels = json.loads((CLUSTER / "grafana.json").read_text())["panels"]
    shown = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"\b(?:audiodiff|process)_[a-z_]+", target["expr"])
    }
    assert shown <= names, shown - names
    assert {name for name in names if name.startswith("audiodiff_")} - shown <= {
        "audiodiff_batch_rows_total",
        "audiodiff_real_time_factor",
        "audiodiff_running_requests",
        "audiodiff_steps_total",
        "audiodiff_encoded_audio_seconds_total",
        "audiodiff_encoding_batch_rows",
    }


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launchers_say_how_to_serve(name: str) -> None:
    text = (CLUSTER / f"{name}.yaml").read_text()
    assert re.search(r"^#   RAY_AUTH_MODE=token serve deploy --address \S+ cluster/serve.yaml", text, re.MULTILINE)
    assert f"ray attach cluster/{name}.yaml --port-forward {ServeOptions(model=('a=b',)).port}" in text
