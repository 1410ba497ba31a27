"""A model folder -> the Hugging Face Hub, in one commit, as diffusers and `load_model` read it."""

from pathlib import Path

from huggingface_hub import HfApi

from audiodiff_core.files.model_files import MODEL_INDEX, CheckpointError
from audiodiff_core.files.source import DESCRIPTIONS, NETWORK_FOLDERS
from audiodiff_core.files.weight_files import DIFFUSERS


def push_to_hub(folder: str | Path, repo_id: str, private: bool = True) -> str:
    """Uploads a model folder to the model repository OWNER/NAME (made, private, where there is none); returns the commit's address.

    Weights and configurations of an earlier model there, which this one does not have, are removed in the same commit. Raises CheckpointError
    where `folder` is no model, ValueError for a name that cannot be one, OSError where the token (HF_TOKEN, or of `hf auth login`) does not allow it.
    """
    if not (Path(folder) / MODEL_INDEX).is_file():
        raise CheckpointError(f"{folder}: is not a model folder: it holds no {MODEL_INDEX}")
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
