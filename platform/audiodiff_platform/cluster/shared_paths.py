"""Paths and URIs in a form that works in every process of a job, on every node."""

import os
from collections.abc import Iterable
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from audiodiff_core.files.builtin import is_builtin
from audiodiff_core.files.filesystems import OBJECT_STORES
from audiodiff_core.files.hub_names import repository_name
from audiodiff_platform.cluster.capacity import grows
from audiodiff_platform.cluster.connection import inside_submitted_job

MODEL_OPTIONS = ("model", "from_pretrained")
"""Options that take a model."""
MAX_PROBED_FOLDERS = 16
"""Number of folders of local files that are looked for on all nodes. A probe is a task on each node."""


def usable_path(option: str, uri: str, hub_id: bool = False) -> str:
    """Return `uri` in a form that works in every process of a job.

    Relative paths and paths with `~` become absolute, because workers have other working directories. URIs stay
    unchanged, and so do the names of models that are installed with audiodiff (`builtin:NAME`).

    Args:
        option: The option that holds the path, for error messages.
        uri: A path or a URI.
        hub_id: Accept OWNER/NAME, or the address of its page on the Hugging Face Hub, as the id of a repository.

    Raises:
        ValueError: The URI holds a secret. Or the path is relative in a submitted job, whose working directory is a
            temporary copy. Or the path begins with `~NAME` and there is no such user. Or an address on the Hub is not
            the address of a repository.
    """
    if hub_id:
        try:
            uri = repository_name(uri, "dataset" if option == "dataset_name" else "model")
        except ValueError as error:
            raise ValueError(f"{option} {uri.partition('?')[0]}: {error}") from error
    if holds_secret(uri):
        raise ValueError(
            f"{option} holds a query or a password, which the job would write to its files: "
            "use a URI without them, and set credentials in the environment"
        )
    if "://" in uri or (option in MODEL_OPTIONS and is_builtin(uri)) or (hub_id and is_hub_id(uri)):
        return uri
    path = os.path.expanduser(uri)
    if path.startswith("~"):
        raise ValueError(
            f"{option} {uri}: no home folder for this user: use the full path, or ./{uri} for a folder with this name"
        )
    if inside_submitted_job() and not Path(path).is_absolute():
        raise ValueError(
            f"{option} {uri} is relative: in a submitted job use an absolute path that all nodes share, "
            "or s3:// or gs://"
        )
    return str(Path(path).absolute())


def usable_encoder(name: str) -> str:
    """Return an encoder name that works in every process of a job.

    Args:
        name: The name for `load_encoder`: a local folder or a Hub id, with an optional prefix for the kind of the
            encoder. The path of a local folder becomes absolute.

    Raises:
        ValueError: The path or Hub id cannot be used. See `usable_path`.
    """
    source = encoder_source(name)
    return name.removesuffix(source) + usable_path("encoder", source, hub_id=True)


def encoder_source(name: str) -> str:
    """Return the folder or Hub id in an encoder name, without the kind of the encoder."""
    return name.removeprefix("audio-encoder:").removeprefix("clap:")


def public_encoder(name: str) -> str:
    """Return the name of an encoder with only the last part of a local path, for files that may be published."""
    source = encoder_source(name)
    return name.removesuffix(source) + Path(source).name if Path(source).is_absolute() else name


def holds_secret(uri: str) -> bool:
    """Return True if a URI has a query, such as a signature, or user information, such as a key.

    Jobs write URIs to their files and print them, so a URI must not hold a secret. Names of files on disk and on object
    stores can contain `?`: in their URIs, only text with `=` after the `?` is a query.
    """
    scheme, separator, rest = uri.partition("://")
    _, question_mark, query = rest.partition("?")
    has_query = "=" in query if scheme in OBJECT_STORES | {"file"} else bool(question_mark)
    return bool(separator) and (has_query or "@" in rest.partition("/")[0])


def is_hub_id(name: str) -> bool:
    """Return True if `name` has the form OWNER/NAME of the Hub and is not an existing local path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def require_shared_files(option: str, files: Iterable[str]) -> None:
    """Require that every node of the cluster can read the folders of local files of this node.

    One existing file is looked for in each folder, in at most MAX_PROBED_FOLDERS folders. Files on object stores are
    not checked.

    Args:
        option: The option or field that holds the files, for error messages.
        files: Absolute paths or URIs.

    Raises:
        ValueError: A node lacks a file, or the cluster can add nodes.
    """
    if not ray.is_initialized():
        return
    probed: set[str] = set()
    for file in files:
        parent, _, name = file.rpartition("/")
        if len(probed) < MAX_PROBED_FOLDERS and parent not in probed and _is_local(file) and _path(file).exists():
            probed.add(parent)
            require_shared(option, parent or "/", name)


def require_shared(option: str, uri: str, probe_file: str) -> None:
    """Require that every node of the cluster can read a local folder of this node.

    URIs of object stores, and folders without `probe_file`, are not checked.

    Args:
        option: The option that holds the path, for error messages.
        uri: A path or a URI.
        probe_file: The name of a file in the folder that each node looks for; empty for the folder itself.

    Raises:
        ValueError: A node lacks the file, or the cluster can add nodes.
    """
    if not ray.is_initialized():
        return
    file = _path(uri) / probe_file
    if not _is_local(uri) or not file.exists():
        return
    if grows():
        raise ValueError(f"{option} {uri} is local, and this cluster adds and removes nodes: use s3:// or gs://")
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    probe = ray.remote(num_cpus=0)(os.path.exists)
    # soft=True: the probe of a node that has just died runs on another node.
    strategies = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]
    seen = ray.get([probe.options(scheduling_strategy=strategy).remote(str(file)) for strategy in strategies])
    if not all(seen):
        raise ValueError(
            f"{option} {uri} is missing on {seen.count(False)} of {len(nodes)} nodes: "
            "use a path that all nodes share, or s3:// or gs://"
        )


def _is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


def _path(uri: str) -> Path:
    return Path(uri.removeprefix("file://")).absolute()
