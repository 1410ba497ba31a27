"""Which Ray a job runs on, whether it can do what is asked, and which paths its nodes share."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import ray
import ray._private.node
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from audiodiff_core.filesystems import OBJECT_STORES
from audiodiff_core.hub_names import repository_name

WORKER_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}  # more workers, not more threads, use more cores; the thread count moves the last bits


def inside_submitted_job() -> bool:
    return RAY_JOB_CONFIG_JSON_ENV_VAR in os.environ


@contextmanager
def connected(bare: bool = False) -> Iterator[None]:
    """A Ray to work on: the one this process is connected to, else RAY_ADDRESS or the submitted job's, else a local one; `bare`: a `_BareNode`."""
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    if inside_submitted_job() or "RAY_ADDRESS" in os.environ:
        job = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))
        stated = job.get("runtime_env", {}).get("env_vars", {})
        ray.init(runtime_env={"env_vars": {name: value for name, value in WORKER_ENVIRONMENT.items() if name not in stated}}, logging_level="ERROR")
    else:  # workers inherit this process's variables
        os.environ.update(WORKER_ENVIRONMENT)
        with _bare_node() if bare else nullcontext():
            ray.init(address="local", include_dashboard=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


class _BareNode(ray._private.node.Node):  # type: ignore[misc]  # Ray states no types
    """A node without the two processes that actors on one machine have no use for: the autoscaler, which has nothing to add, and the server of
    a dashboard that is not shown. They take a third of Ray's start and, as the autoscaler ignores the request to end, most of its end."""

    def start_monitor(self) -> None:
        pass

    def start_api_server(self, *, include_dashboard: bool, raise_on_failure: bool) -> None:
        pass


@contextmanager
def _bare_node() -> Iterator[None]:
    """Lets `ray.init` start a `_BareNode`: it has no option for that."""
    node = ray._private.node.Node
    ray._private.node.Node = _BareNode
    try:
        yield
    finally:
        ray._private.node.Node = node


def ends_with_this_process() -> bool:
    """Whether the Ray that this process is connected to is one that it began."""
    node = ray._private.worker._global_node
    return node is not None and bool(node.is_head())


def require_resources(workers: int, gpus_each: int = 0, option: str = "num_workers") -> None:
    """Raises ValueError where the cluster neither has nor can grow to a CPU (and `gpus_each` GPUs) for each worker."""
    for kind, needed in (("CPU", workers), ("GPU", workers * gpus_each)):
        available = _most(kind)
        if needed > available:
            raise ValueError(f"{option} {workers} needs {needed} {kind}s, the cluster has {available}: use at most {available // max(1, needed // workers)}")


def workers_for(asked: int | None) -> tuple[int, int]:
    """How many workers, and how many GPUs each takes: as many as are asked for, else one a GPU or, without GPUs, one a CPU.

    Raises ValueError where the cluster has not that many.
    """
    gpu = int(gpus() > 0)
    workers = asked or (gpus() if gpu else cpus())
    require_resources(workers, gpus_each=gpu)
    return workers, gpu


def cpus() -> int:
    """CPUs that the cluster has or can grow to, at least 1."""
    return max(1, _most("CPU"))


def gpus() -> int:
    """GPUs that the cluster has or can grow to."""
    return _most("GPU")


def _most(kind: str) -> int:
    """What the cluster has of a resource now, or, where its launcher file says so, can grow to."""
    return int(max(ray.cluster_resources().get(kind, 0), _limits().get(kind, 0)))


def _limits() -> dict[str, int]:
    """`AUDIODIFF_CLUSTER_LIMITS` as the launcher files export it on the head, such as '{"CPU": 160, "GPU": 4}'; empty where nothing grows."""
    limits: dict[str, int] = json.loads(os.environ.get("AUDIODIFF_CLUSTER_LIMITS", "{}"))
    return limits


def usable_path(option: str, uri: str, hub_id: bool = False) -> str:
    """Return `uri` as every process of the job can use it: paths, also with `~`, are made absolute, since workers run elsewhere.

    With `hub_id`, OWNER/NAME and the address of its page on the Hugging Face Hub stand for a repository. Raises ValueError for a relative path
    in a submitted job, whose working directory is a copy that vanishes, for a `~NAME` of no user, for a URI that holds a secret, and for an
    address on the Hub that is not a repository's.
    """
    if hub_id:
        try:
            uri = repository_name(uri, "dataset" if option == "dataset_name" else "model")
        except ValueError as error:
            raise ValueError(f"{option} {uri.partition('?')[0]}: {error}") from error
    if holds_secret(uri):
        raise ValueError(f"{option} holds a query or a password, which would be written down: use a plain URI, with credentials in the environment")
    if "://" in uri or (hub_id and is_hub_id(uri)):
        return uri
    path = os.path.expanduser(uri)
    if path.startswith("~"):
        raise ValueError(f"{option} {uri}: no such user's home: name the path itself, or ./{uri} for a folder of that name")
    if inside_submitted_job() and not Path(path).is_absolute():
        raise ValueError(f"{option} {uri} is relative: in a submitted job use an absolute path that all nodes share, or s3:// or gs://")
    return str(Path(path).absolute())


def usable_encoder(name: str) -> str:
    """An encoder's name, as `load_encoder` takes it, as every process of the job can use it: a local folder's made absolute."""
    source = encoder_source(name)
    return name.removesuffix(source) + usable_path("encoder", source, hub_id=True)


def encoder_source(name: str) -> str:
    """The folder or Hub id in an encoder's name, which may begin with its kind."""
    return name.removeprefix("audio-encoder:").removeprefix("clap:")


def holds_secret(uri: str) -> bool:
    """True where a URI has a query (a signature) or user information (a key), which would be written down and shown.

    Names on disk and on object stores may hold `?`; a query there has a value.
    """
    scheme, separator, rest = uri.partition("://")
    _, question_mark, query = rest.partition("?")
    has_query = "=" in query if scheme in OBJECT_STORES | {"file"} else bool(question_mark)
    return bool(separator) and (has_query or "@" in rest.partition("/")[0])


def is_hub_id(name: str) -> bool:
    """Whether `name` reads as OWNER/NAME on the Hugging Face Hub and is no path that exists here."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def require_shared(option: str, uri: str, witness: str) -> None:
    """Raises ValueError where a local folder of this node is not seen by another node; `witness` is a file in it."""
    file = Path(uri.removeprefix("file://")).absolute() / witness
    if ("://" in uri and not uri.startswith("file://")) or not file.exists():
        return
    if _limits():
        raise ValueError(f"{option} {uri} is local, and this cluster's nodes come and go: use s3:// or gs://")
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    probe = ray.remote(num_cpus=0)(os.path.exists)
    strategies = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]  # soft: one that has just died is asked elsewhere
    seen = ray.get([probe.options(scheduling_strategy=strategy).remote(str(file)) for strategy in strategies])
    if not all(seen):
        raise ValueError(f"{option} {uri} is not on {seen.count(False)} of {len(nodes)} nodes: use a path that all share, or s3:// or gs://")


def say(message: str) -> None:
    """Progress and warnings for a person: standard error, since standard output ends with the summary (and Ray Train repeats what is printed)."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
