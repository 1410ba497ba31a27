"""Repositories of the Hugging Face Hub by the names that users write and paste."""

from pathlib import Path

import pytest

from audiodiff_core.checkpoint import CheckpointError, load_model
from audiodiff_core.embeddings import load_encoder
from audiodiff_core.files.hub_names import repository_name


@pytest.mark.parametrize(
    "source",
    [
        "owner/name",
        "owner/name/",
        "owner/name//",
        "https://huggingface.co/owner/name",
        "https://huggingface.co/owner/name/",
        "http://huggingface.co/owner/name",
        "https://www.huggingface.co/owner/name",
        "HTTPS://HuggingFace.co/owner/name",
        "https://hf.co/owner/name",
        "huggingface.co/owner/name",
        "hf.co/owner/name/tree/main",
        "https://huggingface.co/models/owner/name",
        "https://huggingface.co/owner/name/tree/main",
        "https://huggingface.co/owner/name/tree/main/",
        "https://huggingface.co/owner/name?library=diffusers",
        "https://huggingface.co/owner/name/tree/main?not-for-all-audiences=true#files",
        "https://huggingface.co/owner/name#usage",
    ],
)
def test_a_repository_is_known(source: str) -> None:
    assert repository_name(source) == "owner/name"


def test_datasets_have_addresses_of_their_own() -> None:
    assert repository_name("https://huggingface.co/datasets/owner/name/tree/main", "dataset") == "owner/name"
    assert repository_name("owner/name/", "dataset") == "owner/name"
    with pytest.raises(
        ValueError, match="address of a model on the Hugging Face Hub: must be the address of a dataset"
    ):
        repository_name("https://huggingface.co/owner/name", "dataset")
    with pytest.raises(
        ValueError, match="address of a dataset on the Hugging Face Hub: must be the address of a model"
    ):
        repository_name("https://huggingface.co/datasets/owner/name")


@pytest.mark.parametrize(
    "source",
    [
        "",
        ".",
        "/",
        "~",
        "name",
        "./name",
        "../name/",
        "/owner/name/",
        "~/name/",
        "a/b/c",
        "a/b/c/",
        "s3://bucket/model/",
        "hf://owner/name",
        "C:/x/y",
    ],
)
def test_other_sources_stay_as_they_are(source: str) -> None:
    assert repository_name(source) == source


def test_a_folder_comes_before_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("owner/name", "huggingface.co/owner/name"):
        (tmp_path / name).mkdir(parents=True)
        assert repository_name(name) == name
    assert repository_name("owner/name/") == "owner/name/"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("https://huggingface.co/owner/name/tree/v1.0", "page inside owner/name: write owner/name"),
        ("https://huggingface.co/owner/name/tree/main/unet", "page inside owner/name: write owner/name"),
        ("https://huggingface.co/owner/name/blob/main/model_index.json", "page inside owner/name: write owner/name"),
        ("https://huggingface.co/owner/name/resolve/main/unet/config.json", "page inside owner/name: write owner/name"),
        ("https://huggingface.co/owner/name/discussions", "page inside owner/name: write owner/name"),
        ("https://huggingface.co/owner", "not the address of a model on the Hugging Face Hub: write OWNER/NAME"),
        ("https://huggingface.co", "not the address of a model on the Hugging Face Hub: write OWNER/NAME"),
        (
            "https://huggingface.co/spaces/owner/name",
            "address of a space on the Hugging Face Hub: must be the address of a model",
        ),
    ],
)
def test_other_addresses_are_refused_by_all_that_load(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        repository_name(address)
    with pytest.raises(CheckpointError, match=f"^{address}: .*{message}"):
        load_model(address)
    with pytest.raises(ValueError, match=f"^encoder clap:{address}: .*{message}|^encoder {address}: .*{message}"):
        load_encoder(f"clap:{address}")
