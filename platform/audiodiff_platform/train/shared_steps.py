"""What the jobs that train do around the training itself: paths, claims, resources, the run, the finished model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ray.train import ValidationConfig

from audiodiff_core.checkpoint import upload_model
from audiodiff_platform.cluster import require_resources, require_shared, usable_path
from audiodiff_platform.cluster.capacity import free, total, uses_gpus
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.mel_data.mel_dataset import TrainingImages
from audiodiff_platform.mel_data.run_folder import IN_VALIDATION, MODEL, STARTS, STATE
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.lease import Lease, require_token
from audiodiff_platform.train.checkpoints import newest_checkpoint, remove_superseded
from audiodiff_platform.train.options import RunOptions
from audiodiff_platform.train.trackers import tell_last_validations
from audiodiff_platform.train.validation.beside_training import validate_left
from audiodiff_platform.train.validation_marks import requeue_validations
from audiodiff_platform.train.worker_group import Group, Worker, run_workers

INPUTS = ("mel_config", "from_pretrained", "vae", "latents", "encodings")
HUB_IDS = ("dataset_name", "from_pretrained", "vae")
BYTES_PER_PARAMETER = 16  # float32 weights, their average and AdamW's two moments

OptionsT = TypeVar("OptionsT", bound=RunOptions)


def with_usable_paths(options: OptionsT) -> OptionsT:
    """The options with paths that every process of the job can use."""
    stated = {name: getattr(options, name, None) for name in ("dataset_name", "output_dir", *INPUTS)}
    places = {name: usable_path(name, uri, hub_id=name in HUB_IDS) for name, uri in stated.items() if uri is not None}
    return options.model_copy(update=places)


def require_own_folder(options: RunOptions, output: Folder, name: str, settings: Mapping[str, Any]) -> None:
    """Raises ValueError where the run folder holds another training, or does not suit the option resume."""
    commits.require_same(output, name, settings)
    if options.resume == "auto":
        return
    newest = newest_checkpoint(output)
    if options.resume == "never" and newest is not None:
        raise ValueError(
            f"resume never: {output.uri} holds a checkpoint ({newest}): use another folder, or resume auto to go on from it"
        )
    if options.resume == "must" and newest is None:
        raise ValueError(
            f"resume must: {output.uri} holds no whole checkpoint to go on from: use resume auto to start anew"
        )


def require_space(options: RunOptions, output: Folder, parameters: int) -> None:
    """Raises ValueError where the checkpoints of so many parameters would not fit beside those that are there."""
    each = parameters * BYTES_PER_PARAMETER
    there = sum(entry.size for entry in Folder(f"{output.uri}/{STATE}").walk()) if output.exists(STATE) else 0
    output.require_free_space(max(each, each * (options.checkpoints_kept + 3) - there), "training")


def group_for(options: RunOptions) -> Group:
    """Choose the workers: those asked for, or as many as nothing else has reserved room for.

    Raises:
        ValueError: The cluster can never have the least number of workers.
    """
    gpu = uses_gpus(options.device)
    workers = options.num_workers or min(options.train_batch_size, max(1, free("GPU" if gpu else "CPU")))
    if isinstance(workers, tuple):
        workers = workers[0], min(workers[1], options.train_batch_size)
    group = Group(workers, gpu)
    require_resources(group.least, gpus_each=int(gpu))
    kind = "GPU" if gpu else "CPU"
    number = str(group.least) if group.least == group.most else f"{group.least} to {group.most}"
    say(f"{number} workers, a {kind} each ({free(kind)} of {total(kind)} {kind}s are free)")
    if options.mixed_precision == "fp16" and not gpu:
        raise ValueError("mixed_precision fp16 needs a GPU, and the cluster has none: use bf16 or no")
    return group


def run_training(
    worker: Worker,
    options: RunOptions,
    dataset: TrainingImages,
    *,
    claimed: tuple[str, Mapping[str, Any]],
    versions: Mapping[str, bytes | None],
    lease: Lease,
    group: Group,
    validation: ValidationConfig | None = None,
) -> None:
    """Claim the run folder for its settings (a file's name and what it states), then run the workers to the end. Ray is connected to.

    `versions` are the files by which the run finds the same data when more is added.
    """
    output = Folder(options.output_dir)
    require_shared("dataset_name", options.dataset_name, dataset.probe_file)
    for place in INPUTS:
        if (uri := getattr(options, place, None)) is not None:
            require_shared(place, uri, probe_file="")
    commits.claim(output, *claimed)
    for name, version in versions.items():
        if version is not None:
            output.create(name, version)
    if dataset.added:
        news = f"{dataset.added:,} rows were added after this run began and are not used"
        say(f"dataset_name {options.dataset_name}: {news}: train in another folder to use them")
    require_shared("output_dir", options.output_dir, claimed[0])
    output.remove("_tmp")  # what killed workers left
    output.remove(STARTS)  # of a job that was stopped
    if validation is None:
        output.remove(IN_VALIDATION)
    else:
        requeue_validations(output)
    remove_superseded(output, options.checkpoints_kept, options.judged_by)
    run_workers(worker, options, group, validation, lease.token)
    require_token(output, lease.token)
    if validation is not None:
        validate_left(validation, output)
    tell_last_validations(options)


@contextmanager
def model_folder(output: Folder) -> Iterator[Path]:
    """OUTPUT_DIR/model, or for an object store a local folder that is then uploaded to it."""
    if output.is_local:
        yield Path(output.path(MODEL))
        return
    with output.scratch() as scratch:
        yield scratch / MODEL
        upload_model(scratch / MODEL, f"{output.uri}/{MODEL}")


def described(dataset: TrainingImages) -> str:
    mel = dataset.mel
    return f"{mel.x_res}x{mel.y_res}, {mel.sample_rate} Hz, hop length {mel.hop_length}, n_fft {mel.n_fft} (by {dataset.mel_origin})"
