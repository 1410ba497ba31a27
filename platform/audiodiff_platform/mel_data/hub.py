"""Upload of finished datasets and models to the Hugging Face Hub.

`datasets.load_dataset(NAME)` and the trainer of the original audio-diffusion project read the uploaded datasets.
"""

from pathlib import Path
from typing import Literal

from audiodiff_platform.entry.terminal import say
from audiodiff_platform.mel_data.mel_dataset import DATASET_SETTINGS, MEL_CONFIG
from audiodiff_platform.storage import Folder

FILES_PER_COMMIT = 32


def claim_repository(name: str, kind: Literal["dataset", "model"] = "dataset") -> None:
    """Create the private repository OWNER/NAME if it does not exist.

    Args:
        name: Name of the repository.
        kind: Kind of the repository.

    Raises:
        ValueError: The name is not a valid repository name.
        OSError: The token (HF_TOKEN, or the token of `hf auth login`) does not permit the creation.
    """
    from huggingface_hub import HfApi  # a slow import, which most runs do not need

    HfApi().create_repo(name, repo_type=kind, private=True, exist_ok=True)


def publish(output: Folder, name: str) -> None:
    """Upload a finished mel dataset: first the data, then the configuration and the dataset card.

    The last commit removes data files of an earlier dataset from the repository.

    Args:
        output: Folder of the dataset.
        name: Name of a repository that `claim_repository` has created.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    files = [*output.names("data/*"), MEL_CONFIG, DATASET_SETTINGS, "README.md"]
    for first in range(0, len(files), FILES_PER_COMMIT):
        batch = files[first : first + FILES_PER_COMMIT]
        with output.scratch() as scratch:
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                CommitOperationAdd(file, str(output.fetch(file, scratch))) for file in batch
            ]
            if batch[-1] == files[-1]:
                uploaded = HfApi().list_repo_files(name, repo_type="dataset")
                operations += [
                    CommitOperationDelete(file) for file in uploaded if file.startswith("data/") and file not in files
                ]
            HfApi().create_commit(name, operations, repo_type="dataset", commit_message=f"{batch[0]} to {batch[-1]}")
        say(f"published {first + len(batch):,} of {len(files):,} files to {name}")


def publish_model(output: Folder, folder: str, name: str) -> None:
    """Upload the model in the subfolder `folder` of `output` to the repository `name`, in one commit."""
    from audiodiff_core.checkpoint import push_to_hub

    with output.scratch() as scratch:
        local = output.path(folder) if output.is_local else str(scratch / folder)
        if not output.is_local:
            output.download(folder, Path(local))
        push_to_hub(local, name)
    say(f"published {output.uri}/{folder} to {name}")
