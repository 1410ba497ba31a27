"""Paths as every process of a job can use them."""

import os
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from audiodiff_core.files.filesystems import OBJECT_STORES
from audiodiff_core.files.hub_names import repository_name
from audiodiff_platform.cluster.capacity import grows
from audiodiff_platform.cluster.connection import inside_submitted_job


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
        raise ValueError(
            f"{option} holds a query or a password, which would be written down: use a plain URI, with credentials in the environment"
        )
    if "://" in uri or (hub_id and is_hub_id(uri)):
        return uri
    path = os.path.expanduser(uri)
    if path.startswith("~"):
        raise ValueError(
            f"{option} {uri}: no such user's home: name the path itself, or ./{uri} for a folder of that name"
        )
    if inside_submitted_job() and not Path(path).is_absolute():
        raise ValueError(
            f"{option} {uri} is relative: in a submitted job use an absolute path that all nodes share, or s3:// or gs://"
        )
    return str(Path(path).absolute())


def usable_encoder(name: str) -> str:
    """An encoder's name, as `load_encoder` takes it, as every process of the job can use it: a local folder's made absolute."""
    source = encoder_source(name)
    return name.removesuffix(source) + usable_path("encoder", source, hub_id=True)


def encoder_source(name: str) -> str:
    """The folder or Hub id in an encoder's name, which may begin with its kind."""
    return name.removeprefix("audio-encoder:").removeprefix("clap:")


def holds_secret(uri: str) -> bool:
    """Return True for a URI with a query (a signature) or user information (a key), which would be written down and shown.

    Names on disk and on object stores may hold `?`; a query there has a value.
    """
    scheme, separator, rest = uri.partition("://")
    _, question_mark, query = rest.partition("?")
    has_query = "=" in query if scheme in OBJECT_STORES | {"file"} else bool(question_mark)
    return bool(separator) and (has_query or "@" in rest.partition("/")[0])


def is_hub_id(name: str) -> bool:
    """Whether `name` reads as OWNER/NAME on the Hugging Face Hub and is no path that exists here."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def require_shared(option: str, uri: str, probe_file: str) -> None:
    """Raise ValueError if a local folder of this node is not on another node of a cluster; `witness` is a file in it."""
    if not ray.is_initialized():
        return
    file = Path(uri.removeprefix("file://")).absolute() / probe_file
    if ("://" in uri and not uri.startswith("file://")) or not file.exists():
        return
    if grows():
        raise ValueError(f"{option} {uri} is local, and this cluster adds and removes nodes: use s3:// or gs://")
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    probe = ray.remote(num_cpus=0)(os.path.exists)
    strategies = [
        NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes
    ]  # soft: one that has just died is asked elsewhere
    seen = ray.get([probe.options(scheduling_strategy=strategy).remote(str(file)) for strategy in strategies])
    if not all(seen):
        raise ValueError(
            f"{option} {uri} is not on {seen.count(False)} of {len(nodes)} nodes: use a path that all share, or s3:// or gs://"
        )
