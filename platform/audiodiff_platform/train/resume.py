"""Resuming from the newest intact checkpoint: each node downloads the checkpoint once, for all its workers."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from audiodiff_platform.entry.terminal import say
from audiodiff_platform.storage import Folder
from audiodiff_platform.train.checkpoints import damaged_files, local_checkpoint, whole_checkpoints
from audiodiff_platform.train.learner import Learner
from audiodiff_platform.train.validation_marks import finish_validation


@dataclass(frozen=True)
class NodeCopy:
    """Copy of a checkpoint that the workers of a node share.

    Args:
        node: Rank of the node.
        folder: Local folder of the files.
        progress: JSON values of the checkpoint.
        damaged: Names of the files that do not match their digests.
    """

    node: int
    folder: Path
    progress: Mapping[str, Any]
    damaged: list[str]


def load_newest(output: Folder, accelerator: Accelerator, learner: Learner) -> tuple[str, Mapping[str, Any]] | None:
    """Restore the learner from the newest intact checkpoint, on all workers together.

    A line on the terminal names each damaged checkpoint that is skipped. A checkpoint whose files are damaged on every
    node is removed. Otherwise it would remain the newest, and the intact ones would be removed as superseded.

    Args:
        output: The run folder.
        accelerator: Accelerator of this worker.
        learner: The learner to restore.

    Returns:
        The name and the JSON values of the checkpoint, or None if there is no intact checkpoint.
    """
    names: list[str] = []
    if accelerator.is_main_process:
        names = list(reversed(whole_checkpoints(output)))
    (names,) = broadcast_object_list([names])
    for name in names:
        with _node_copies(output, name, accelerator) as copies:
            damaged = sorted({file for copy in copies for file in copy.damaged})
            if not damaged:
                own = next(copy for copy in copies if copy.node == ray.train.get_context().get_node_rank())
                learner.load(own.folder, own.progress)
                return name, own.progress
        if accelerator.is_main_process:
            say(
                f"checkpoint {output.uri}/{name} is damaged ({', '.join(damaged)}): "
                "resuming from the checkpoint before it"
            )
            if all(copy.damaged for copy in copies):
                output.remove(name)
                finish_validation(output, name)
    return None


@contextmanager
def _node_copies(output: Folder, name: str, accelerator: Accelerator) -> Iterator[list[NodeCopy]]:
    """Provide a copy of a checkpoint on each node. A folder that all nodes share is used in place."""
    with ExitStack() as stack:
        own = None
        if accelerator.is_local_main_process:
            folder, progress = stack.enter_context(local_checkpoint(output, name))
            node = ray.train.get_context().get_node_rank()
            own = NodeCopy(node, folder, progress, damaged_files(folder, progress))
        yield [copy for copy in gather_object([own]) if copy is not None]
        accelerator.wait_for_everyone()
