"""Steps that all training jobs share: paths, run folder, disk space and model folder."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ray.train import ValidationConfig

from audiodiff_core.checkpoint import upload_model
from audiodiff_platform.cluster import require_shared, usable_path
from audiodiff_platform.entry.terminal import say
from audiodiff_platform.mel_data.mel_dataset import TrainingImages
from audiodiff_platform.mel_data.run_folder import IN_VALIDATION, MODEL, STARTS, STATE
from audiodiff_platform.storage import Folder, commits
from audiodiff_platform.storage.lease import Lease, require_token
from audiodiff_platform.train.checkpoints import newest_checkpoint, remove_superseded
from audiodiff_platform.train.run_options import TRAIN_FORMAT_VERSION, RunOptions
from audiodiff_platform.train.trackers import report_last_validations
from audiodiff_platform.train.validation.beside_training import validate_remaining
from audiodiff_platform.train.validation_marks import requeue_validations
from audiodiff_platform.train.worker_group import Group, Worker, run_workers

INPUTS = ("mel_config", "from_pretrained", "vae", "latents", "encodings")
HUB_IDS = ("dataset_name", "from_pretrained", "vae")
BYTES_PER_PARAMETER = 16  # float32 weights, averaged weights and the two moments of AdamW

OptionsT = TypeVar("OptionsT", bound=RunOptions)


def with_usable_paths(options: OptionsT) -> OptionsT:
    """Return the options with paths that all processes of the job can use.

    Raises:
        ValueError: A path cannot be used, such as a relative path in a submitted job.
    """
    uris = {name: getattr(options, name, None) for name in ("dataset_name", "output_dir", *INPUTS)}
    usable = {name: usable_path(name, uri, hub_id=name in HUB_IDS) for name, uri in uris.items() if uri is not None}
    return options.model_copy(update=usable)


def require_own_folder(options: RunOptions, output: Folder, name: str, settings: Mapping[str, Any]) -> None:
    """Check that the run folder is empty or holds this training run, and that `resume` permits it.

    Args:
        options: Options of the run.
        output: The run folder.
        name: Name of the settings file in the run folder.
        settings: Settings of this training run.

    Raises:
        ValueError: The run folder holds another training run, or `resume` does not permit its checkpoints.
    """
    if output.exists(name) and (version := output.read_json(name).get("format_version")) != TRAIN_FORMAT_VERSION:
        raise ValueError(
            f"{output.uri} holds a training run of format version {version}, and this version of audiodiff (format "
            f"version {TRAIN_FORMAT_VERSION}) draws other noise or timesteps: use another folder, or the version that "
            "began the run"
        )
    commits.require_same(output, name, settings)
    if options.resume == "auto":
        return
    newest = newest_checkpoint(output)
    if options.resume == "never" and newest is not None:
        raise ValueError(
            f"resume never: {output.uri} holds a checkpoint ({newest}): "
            "use another folder, or set resume auto to continue from the checkpoint"
        )
    if options.resume == "must" and newest is None:
        raise ValueError(f"resume must: {output.uri} holds no whole checkpoint: set resume auto to start from step 0")


def require_space(options: RunOptions, output: Folder, parameters: int) -> None:
    """Check that the disk has space for the checkpoints that training keeps.

    The size of the existing checkpoints is deducted, because new checkpoints replace them.

    Args:
        options: Options of the run.
        output: The run folder.
        parameters: Number of parameters of the network.

    Raises:
        ValueError: The free space is too small.
    """
    checkpoint_bytes = parameters * BYTES_PER_PARAMETER
    state = Folder(f"{output.uri}/{STATE}")
    existing_bytes = sum(entry.size for entry in state.walk()) if output.exists(STATE) else 0
    # In addition to the newest: the best checkpoint, a checkpoint in validation, and the checkpoint being written.
    needed_bytes = checkpoint_bytes * (options.checkpoints_kept + 3) - existing_bytes
    output.require_free_space(max(checkpoint_bytes, needed_bytes), "training")


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
    """Claim the run folder and run the workers until training ends. Ray must be connected.

    Args:
        worker: Function that each worker runs.
        options: Options of the run.
        dataset: The training data.
        claimed: Name and contents of the settings file that claims the run folder.
        versions: Contents of version files by name. With these files, the run keeps its rows when rows are added later.
        lease: Lease of the run folder.
        group: Size and device of the worker group.
        validation: Validation of checkpoints, or None.

    Raises:
        ValueError: Another training run has claimed the run folder, or the nodes do not share an input.
        JobError: Training failed.
        LeaseLostError: Another job has taken over the run folder.
    """
    output = Folder(options.output_dir)
    require_shared("dataset_name", options.dataset_name, dataset.probe_file)
    for name in INPUTS:
        if (uri := getattr(options, name, None)) is not None:
            require_shared(name, uri, probe_file="")
    commits.claim(output, *claimed)
    for name, version in versions.items():
        if version is not None:
            output.create(name, version)
    if dataset.added:
        added = f"{dataset.added:,} rows were added after this run began and are not used"
        say(f"dataset_name {options.dataset_name}: {added}: train in another run folder to use them")
    require_shared("output_dir", options.output_dir, claimed[0])
    output.remove("_tmp")  # files of killed workers
    output.remove(STARTS)  # starts of a previous job do not count
    if validation is None:
        output.remove(IN_VALIDATION)
    else:
        requeue_validations(output)
    remove_superseded(output, options.checkpoints_kept, options.best_metric)
    run_workers(worker, options, group, validation, lease.token)
    require_token(output, lease.token)
    if validation is not None:
        validate_remaining(validation, output)
    report_last_validations(options)


@contextmanager
def model_folder(output: Folder) -> Iterator[Path]:
    """Provide a local folder to write the model into.

    On an object store, the folder is uploaded to OUTPUT_DIR/model when the context ends without an error.
    """
    if output.is_local:
        yield Path(output.path(MODEL))
        return
    with output.scratch() as scratch:
        yield scratch / MODEL
        upload_model(scratch / MODEL, f"{output.uri}/{MODEL}")


def describe_dataset(dataset: TrainingImages) -> str:
    """Return the mel parameters of a dataset and their origin as text for the console."""
    mel = dataset.mel
    parameters = f"{mel.sample_rate} Hz, hop length {mel.hop_length}, n_fft {mel.n_fft}"
    return f"{mel.x_res}x{mel.y_res}, {parameters} (from {dataset.mel_origin})"
