"""Upload of models to the Hugging Face Hub."""

from pathlib import Path

from huggingface_hub import HfApi

from audiodiff_core.files.model_files import MODEL_INDEX, CheckpointError
from audiodiff_core.files.source import DESCRIPTIONS, NETWORK_FOLDERS
from audiodiff_core.files.weight_files import DIFFUSERS


def push_to_hub(folder: str | Path, repo_id: str, private: bool = True) -> str:
    """Upload a model folder to a repository on the Hub, in one commit.

    The commit also removes weights and configurations of an earlier model that are not in `folder`.

    Args:
        folder: A local folder that `save_model` wrote.
        repo_id: Repository, as OWNER/NAME or NAME. It is created if it does not exist.
        private: Whether a new repository is private.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: If `folder` is not a model.
        ValueError: If `repo_id` is not a valid name.
        OSError: If the access token (from HF_TOKEN or `hf auth login`) does not allow the upload.
    """
    if not (Path(folder) / MODEL_INDEX).is_file():
        raise CheckpointError(f"{folder}: not a model folder: {MODEL_INDEX} is missing")
    all_weights = [(Path(part) / f"{DIFFUSERS.safetensors}*").as_posix() for part in NETWORK_FOLDERS]
    weights = [pattern + ending for pattern in all_weights for ending in (".safetensors", ".safetensors.index*.json")]
    api = HfApi()
    name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    commit = api.upload_folder(
        repo_id=name,
        folder_path=folder,
        commit_message="Model",
        allow_patterns=[*DESCRIPTIONS, "README.md", *weights],
        delete_patterns=[*DESCRIPTIONS, *all_weights],
    )
    return str(commit.commit_url)
