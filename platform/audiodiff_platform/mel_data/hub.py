"""A finished dataset or model -> the Hugging Face Hub: the one as `datasets.load_dataset(NAME)` and the original's trainer read it."""

from pathlib import Path
from typing import Literal

from audiodiff_platform.entry.terminal import say
from audiodiff_platform.mel_data.mel_dataset import DATASET_SETTINGS, MEL_CONFIG
from audiodiff_platform.storage import Folder

FILES_PER_COMMIT = 32


def claim_repository(name: str, kind: Literal["dataset", "model"] = "dataset") -> None:
    """Makes the repository OWNER/NAME, private, where there is none; raises ValueError for a name that cannot be one, OSError where the
    token (HF_TOKEN, or of `hf auth login`) does not allow it."""
    from huggingface_hub import HfApi  # its import takes a while that the other runs need not wait

    HfApi().create_repo(name, repo_type=kind, private=True, exist_ok=True)


def publish(output: Folder, name: str) -> None:
    """Uploads the data, then configuration and card, to a repository that is claimed; with these go the shards of an earlier dataset."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    files = [*output.names("data/*"), MEL_CONFIG, DATASET_SETTINGS, "README.md"]
    for first in range(0, len(files), FILES_PER_COMMIT):
        batch = files[first : first + FILES_PER_COMMIT]
        with output.scratch() as scratch:
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                CommitOperationAdd(file, str(output.fetch(file, scratch))) for file in batch
            ]
            if batch[-1] == files[-1]:
                there = HfApi().list_repo_files(name, repo_type="dataset")
                operations += [
                    CommitOperationDelete(file) for file in there if file.startswith("data/") and file not in files
                ]
            HfApi().create_commit(name, operations, repo_type="dataset", commit_message=f"{batch[0]} to {batch[-1]}")
        say(f"published {first + len(batch):,} of {len(files):,} files to {name}")


def publish_model(output: Folder, folder: str, name: str) -> None:
    """Uploads the model in a folder of `output`, in one commit."""
    from audiodiff_core.checkpoint import push_to_hub

    with output.scratch() as scratch:
        local = output.path(folder) if output.is_local else str(scratch / folder)
        if not output.is_local:
            output.download(folder, Path(local))
        push_to_hub(local, name)
    say(f"published {output.uri}/{folder} to {name}")
