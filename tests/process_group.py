"""Processes that form a gloo group, and a small training state that can be sharded over them by FSDP 2."""

import os
import socket

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType

from audiodiff_core.diffusion.objectives import Objective
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import build_network
from audiodiff_core.training import TrainState, sharding


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def joined(rank: int, port: int, workers: int) -> Accelerator:
    """Join this process to the group and return its accelerator."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(workers),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
    )
    torch.set_num_threads(1)
    return Accelerator(cpu=True)


def joined_with_fsdp(rank: int, port: int, workers: int) -> Accelerator:
    """Join this process to the group and return an accelerator with FSDP.

    accelerate offers FSDP on GPUs only, but gloo supports it.
    """
    accelerator = joined(rank, port, workers)
    PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = sharding()
    return accelerator


def tiny_state(accelerator: Accelerator, seed: int = 0) -> TrainState:
    """Return a new training state for images of 16x16, with weights of the seed."""
    torch.manual_seed(seed)
    return TrainState(accelerator, build_network("tiny", MelConfig(x_res=16, y_res=16)), Objective(), 1e-3, seed=0)
