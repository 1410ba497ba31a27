"""Names taken from Ray's private modules exist and have the meaning that this project assumes."""

import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from audiodiff_platform.cluster import private_ray

ROOT = Path(__file__).parents[2]


def test_only_one_module_names_private_modules_of_ray() -> None:
    sources = [file for folder in ("audiodiff_core", "platform", "jobs") for file in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 50
    named = [file.name for file in sources if re.search(r"_private|_internal", file.read_text())]
    assert named == ["__init__.py", "private_ray.py"] or named == ["private_ray.py"]


def test_the_job_server_sets_this_variable() -> None:
    constants = import_module("ray._private.runtime_env.constants")
    assert constants.RAY_JOB_CONFIG_JSON_ENV_VAR == private_ray.JOB_CONFIG_VARIABLE


def test_the_limits_of_a_cluster_are_asked_without_arguments() -> None:
    state = import_module("ray._private.state").state
    assert list(inspect.signature(state.get_max_resources_from_cluster_config).parameters) == []


def test_a_local_ray_is_started_here_and_does_not_know_limits(local_ray: None) -> None:
    assert private_ray.started_here()
    assert private_ray.largest_cluster() is None


def test_a_process_without_ray_has_started_none() -> None:
    script = "from audiodiff_platform.cluster import private_ray\nassert not private_ray.started_here()"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_head_node_has_this_resource(local_ray: None) -> None:
    import ray

    (head,) = ray.nodes()
    assert head["Resources"][private_ray.HEAD_RESOURCE] == 1


def test_without_a_server_there_are_no_http_options(local_ray: None) -> None:
    context = import_module("ray.serve.context")
    assert "raise_if_no_controller_running" in inspect.signature(context._get_global_client).parameters
    assert private_ray.serve_http_options() is None
