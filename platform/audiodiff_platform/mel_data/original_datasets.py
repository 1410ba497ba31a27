"""Any dataset that training takes, opened by its name: what prepare finished, or what the original published.

The original's datasets have the columns `image` (PNG, mode L), `audio_file` and `slice`, and come as a folder of `save_to_disk` (a
Dataset, or a DatasetDict with a train split), as a folder of Parquet files, or as a repository of those on the Hugging Face Hub. The
`datasets` library opens all of them as memory-mapped Arrow files (it copies Parquet into its cache once), so memory does not grow with
the dataset. They say nothing of how their images were made; a `mel_config.json` beside them does, or else the option mel_config.
"""

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import datasets
import pyarrow.compute as pc
import pydantic
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

from audiodiff_core.files.filesystems import filesystem_of
from audiodiff_core.mel import Images, MelConfig
from audiodiff_core.mel.png import decode_png, png_shape
from audiodiff_platform.cluster import is_hub_id
from audiodiff_platform.mel_data.mel_dataset import (
    DATASET_SETTINGS,
    DATASET_VERSION,
    MEL_CONFIG,
    MelDataset,
    TrainingImages,
)
from audiodiff_platform.mel_data.plain_names import plainly_named
from audiodiff_platform.storage import Folder, commits

COLUMNS = ("image", "audio_file", "slice")
GROUP_ROWS = 128
CHECKED_ROWS = 4_096  # rows that the digest's pass holds at a time
PNG_HEAD_BYTES = 26  # signature, width, height, bit depth, colour type
T = TypeVar("T")
SAVED = ("dataset_dict.json", "state.json")  # the files by which folders of save_to_disk are known


def open_dataset(name: str, mel_config: str | None = None, run: Folder | None = None) -> TrainingImages:
    """The dataset of a path, URI or Hub id. `mel_config` is the file of a MelConfig, for a dataset that carries none.

    A run folder `run` may hold the version of the dataset that its training began with, which is then opened.
    Raises ValueError where there is no dataset that training can take, or where `mel_config` is not what it carries.
    """
    given = None if mel_config is None else given_mel(mel_config)
    if is_hub_id(name):
        return OriginalDataset(name, "", _loaded(name, name), _carried_on_hub(name), given)
    folder = Folder(name)
    if folder.exists(commits.SUCCESS) or (run is not None and run.exists(DATASET_VERSION)):
        finished = MelDataset(name, run=run)
        _require_same(name, finished.mel, given)
        return finished
    if not folder.exists():
        raise ValueError(f"dataset_name {name}: no such folder")
    probe_file = _witness(folder) if folder.is_local and not folder.exists(DATASET_SETTINGS) else None
    if probe_file is None:
        raise ValueError(
            f"dataset_name {name}: not a finished mel dataset (no {commits.SUCCESS}: run jobs/prepare.py to its end), "
            "nor one of the original's kinds (a local folder of save_to_disk or of Parquet files)"
        )
    rows = _saved(name, plainly_named(folder)) if probe_file in SAVED else _loaded(name, plainly_named(folder))
    carried = _config(f"{name}/{MEL_CONFIG}", folder.read(MEL_CONFIG)) if folder.exists(MEL_CONFIG) else None
    return OriginalDataset(name, probe_file, rows, carried, given)


class OriginalDataset:
    """A dataset of the original's kind, read in groups of GROUP_ROWS rows; `carried` is the mel configuration found with it."""

    added, version = 0, None

    def __init__(
        self, name: str, probe_file: str, rows: Any, carried: MelConfig | None, given: MelConfig | None
    ) -> None:
        self.name, self.probe_file = name, probe_file
        if not isinstance(rows.features.get("image"), datasets.Image):
            raise ValueError(
                f"dataset_name {name}: has no column image of images, its columns are {', '.join(rows.column_names)}"
            )
        _require_same(name, carried, given)
        read = [column for column in COLUMNS if column in rows.column_names]
        self._rows = rows.select_columns(read).cast_column("image", datasets.Image(decode=False))
        self.rows = len(rows)
        self.groups = [
            (0, index, min(GROUP_ROWS, self.rows - first))
            for index, first in enumerate(range(0, self.rows, GROUP_ROWS))
        ]
        height, width = self._shape(0)
        if stated := carried or given:
            self.mel, self.mel_origin = stated, f"its {MEL_CONFIG}" if carried else "the mel_config given"
        else:
            self.mel = _config(f"dataset_name {name}", json.dumps({"x_res": width, "y_res": height}).encode())
            self.mel_origin = (
                f"the original's defaults, since it carries no {MEL_CONFIG}: the option mel_config says otherwise"
            )
        self._require_size(0)

    @cached_property
    def digest(self) -> str:
        """Names the content: file names, slice numbers and image sizes of all rows, and the mel configuration.

        The pass over the rows raises ValueError where an image is not like the first.
        """
        total = hashlib.sha256(self.mel.digest.encode())
        known: set[bytes | None] = set()
        for index, batch in enumerate(self._rows.with_format("arrow").iter(CHECKED_ROWS)):
            images = pc.struct_field(batch["image"], "bytes")
            heads = pc.binary_slice(images, 0, PNG_HEAD_BYTES).to_pylist()
            for head in set(heads) - known:
                self._require_size(index * CHECKED_ROWS + heads.index(head))
            known.update(heads)
            named = [batch[column].to_pylist() for column in COLUMNS[1:] if column in batch.column_names]
            total.update(json.dumps([*named, pc.binary_length(images).to_pylist()]).encode())
        return total.hexdigest()[:16]

    def image(self, group: int, row: int) -> Images:
        """The image (y_res, x_res) at a row of a row group, an index into `groups`."""
        return self._require_size(group * GROUP_ROWS + row)

    def audio_file(self, group: int, row: int) -> str:
        """The file that the image at a row of a row group was cut from."""
        return str(self._rows[group * GROUP_ROWS + row]["audio_file"])

    def audio_files(self) -> set[str]:
        """All files that the images were cut from; raises ValueError where the dataset does not say."""
        if "audio_file" not in self._rows.column_names:
            raise ValueError(
                f"dataset_name {self.name}: has no column audio_file, by which images find their encodings"
            )
        return set(self._rows.unique("audio_file"))

    def _require_size(self, number: int) -> Images:
        """Decode image `number`. Raises ValueError, before pixels are decompressed, for an image of another size than the mel configuration states."""
        height, width = self._shape(number)
        if (width, height) != (self.mel.x_res, self.mel.y_res):
            raise ValueError(
                f"dataset_name {self.name}: image {number} is {width}x{height}, not {self.mel.x_res}x{self.mel.y_res} by {self.mel_origin}"
            )
        return self._of_image(number, decode_png)

    def _shape(self, number: int) -> tuple[int, int]:
        """Read the (height, width) that the header of image `number` states."""
        return self._of_image(number, png_shape)

    def _of_image(self, number: int, read: Callable[[bytes], T]) -> T:
        """Apply `read` to the bytes of image `number`; its ValueError names the dataset and the image."""
        content = self._rows[number]["image"]["bytes"]
        if content is None:
            raise ValueError(
                f"dataset_name {self.name}: image {number} is only named, not held: save the dataset with its images"
            )
        try:
            return read(content)
        except ValueError as error:
            raise ValueError(f"dataset_name {self.name}: image {number}: {error}") from error


def _witness(folder: Folder) -> str | None:
    """The file by which a folder is known as one of the original's kinds."""
    return next((name for name in (*SAVED, *folder.names("**/*.parquet")) if folder.exists(name)), None)


def _saved(name: str, path: str) -> Any:
    """The rows of a folder of save_to_disk."""
    try:
        rows = datasets.load_from_disk(path, keep_in_memory=False)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"dataset_name {name}: is no whole folder of save_to_disk ({error})") from error
    except IndexError as error:  # what datasets raises where there is no row
        raise ValueError(f"dataset_name {name}: holds no images") from error
    if isinstance(rows, datasets.DatasetDict):
        if "train" not in rows:
            raise ValueError(f"dataset_name {name}: has no split train, only {', '.join(rows)}")
        return rows["train"]
    return rows


def _loaded(name: str, source: str) -> Any:
    """The rows of a folder of Parquet files or of a Hub repository."""
    try:
        if is_hub_id(name):
            return datasets.load_dataset(source, split="train", keep_in_memory=False)
        # By its files: the cache of a folder with a card goes by the card alone, and would give what the folder held once.
        files = {
            str(split): list(files) for split, files in datasets.load_dataset_builder(source).config.data_files.items()
        }
        return datasets.load_dataset("parquet", data_files=files, split="train", keep_in_memory=False)
    except DatasetNotFoundError as error:
        raise ValueError(
            f"dataset_name {name}: no such folder, and no such dataset on the Hugging Face Hub ({error})"
        ) from error
    except ConnectionError as error:
        raise ConnectionError(
            f"dataset_name {name}: no such folder, and the Hugging Face Hub cannot be reached ({error})"
        ) from error
    except (
        DatasetsError,
        FileNotFoundError,
        RuntimeError,
        ValueError,
    ) as error:  # RuntimeError: the repository needs its own code
        raise ValueError(f"dataset_name {name}: cannot be loaded ({error.__cause__ or error})") from error


def _carried_on_hub(name: str) -> MelConfig | None:
    """The mel configuration in a Hub repository; where the Hub cannot be reached, what its cache knows."""
    try:
        file = hf_hub_download(name, MEL_CONFIG, repo_type="dataset")
    except RemoteEntryNotFoundError:
        return None
    except LocalEntryNotFoundError as error:
        if try_to_load_from_cache(name, MEL_CONFIG, repo_type="dataset") is _CACHED_NO_EXIST:
            return None
        raise ConnectionError(
            f"dataset_name {name}: whether it has a {MEL_CONFIG} is unknown, since the Hugging Face Hub cannot be reached"
        ) from error
    with open(file, "rb") as opened:
        return _config(f"{name}/{MEL_CONFIG}", opened.read())


def given_mel(mel_config: str) -> MelConfig:
    """The configuration in the file that the option mel_config names."""
    try:
        filesystem, path = filesystem_of(mel_config)
        with filesystem.open(path, "rb") as file:
            return _config(f"mel_config {mel_config}", file.read())
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ValueError(f"mel_config {mel_config}: no such file") from error


def _config(origin: str, content: bytes) -> MelConfig:
    try:
        return MelConfig.from_json(content.decode())
    except pydantic.ValidationError as error:
        mistakes = (
            f"{'.'.join(map(str, problem['loc']))} is {problem['input']!r}: {problem['msg']}"
            for problem in error.errors()
        )
        raise ValueError(f"{origin}: {'; '.join(mistakes)}") from None
    except ValueError as error:
        raise ValueError(f"{origin}: is not JSON ({error})") from error


def _require_same(name: str, carried: MelConfig | None, given: MelConfig | None) -> None:
    if carried and given and carried != given:
        raise ValueError(
            f"dataset_name {name} carries another mel configuration than mel_config: {carried.difference(given)}"
        )
