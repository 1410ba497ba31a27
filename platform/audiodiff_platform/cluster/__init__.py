"""The Ray cluster of a job: connection, capacity, and the paths that its nodes share."""

from audiodiff_platform.cluster.capacity import (
    WorkerResources,
    cpus,
    cpus_beside,
    gpus,
    require_resources,
    workers_for,
)
from audiodiff_platform.cluster.connection import (
    HIDDEN_GPUS,
    WORKER_ENVIRONMENT,
    connected,
    inside_submitted_job,
    runs_locally,
)
from audiodiff_platform.cluster.gpu_kinds import runs_on_gpus
from audiodiff_platform.cluster.shared_paths import (
    encoder_source,
    holds_secret,
    is_hub_id,
    public_encoder,
    require_shared,
    require_shared_files,
    usable_encoder,
    usable_path,
)

__all__ = [
    "HIDDEN_GPUS",
    "WORKER_ENVIRONMENT",
    "WorkerResources",
    "connected",
    "cpus",
    "cpus_beside",
    "encoder_source",
    "gpus",
    "holds_secret",
    "inside_submitted_job",
    "is_hub_id",
    "public_encoder",
    "require_resources",
    "require_shared",
    "require_shared_files",
    "runs_locally",
    "runs_on_gpus",
    "usable_encoder",
    "usable_path",
    "workers_for",
]
