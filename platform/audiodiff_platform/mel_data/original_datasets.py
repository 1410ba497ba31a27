"""Datasets for training: mel datasets, and datasets of the original audio-diffusion project.

A dataset of the original project has the columns `image` (PNG, mode L), `audio_file` and `slice`. It is a folder of
`save_to_disk` (a Dataset, or a DatasetDict with a train split), a folder of Parquet files, or a repository of Parquet
files on the Hugging Face Hub. The `datasets` library opens all of them as memory-mapped Arrow files and copies
Parquet files into its cache once, so memory does not grow with the dataset. A dataset that prepare has published is
read in this way too, with its measured features.

These datasets do not state their mel configuration. The configuration is read from a `mel_config.json` in the
dataset, or from the file that the option mel_config names. Otherwise, the defaults of the original project are used.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import datasets
import pyarrow.compute as pc
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

from audiodiff_core.embeddings.measured import ConditionName
from audiodiff_core.mel import Images, MelConfig
from audiodiff_core.mel.png import decode_png, png_shape
from audiodiff_platform.cluster import is_hub_id
from audiodiff_platform.mel_data.feature_values import FeatureValues
from audiodiff_platform.mel_data.mel_configs import parsed, read_mel_config
from audiodiff_platform.mel_data.mel_dataset import (
    DATASET_SETTINGS,
    DATASET_VERSION,
    MEL_CONFIG,
    MelDataset,
    TrainingImages,
)
from audiodiff_platform.mel_data.plain_names import plainly_named
from audiodiff_platform.mel_data.slice_schema import MEASURED, SliceFeatures
from audiodiff_platform.storage import Folder, commits

COLUMNS = ("image", "audio_file", "slice")
GROUP_ROWS = 128
BATCH_ROWS = 4_096
PNG_HEAD_BYTES = 26  # signature, width, height, bit depth, color type
T = TypeVar("T")
SAVE_TO_DISK_FILES = ("dataset_dict.json", "state.json")  # one of them is in each folder of save_to_disk


def open_dataset(name: str, mel_config: str | None = None, run: Folder | None = None) -> TrainingImages:
    """Open a dataset for training.

    Args:
        name: Path, URI or Hub id of the dataset.
        mel_config: Path or URI of a mel_config.json, for a dataset that does not hold one.
        run: Folder of a training run. If it holds a version of the mel dataset, this version is opened.

    Raises:
        ValueError: There is no dataset that training can read, or `mel_config` differs from the mel configuration
            in the dataset.
        ConnectionError: The Hugging Face Hub cannot be reached.
    """
    option_mel = None if mel_config is None else read_mel_config(mel_config)
    if is_hub_id(name):
        return OriginalDataset(name, "", _loaded(name, name), _hub_mel(name), option_mel)
    folder = Folder(name)
    if folder.exists(commits.SUCCESS) or (run is not None and run.exists(DATASET_VERSION)):
        finished = MelDataset(name, run=run)
        _require_same(name, finished.mel, option_mel)
        return finished
    if not folder.exists():
        raise ValueError(f"dataset_name {name}: no such folder")
    probe_file = _known_file(folder) if folder.is_local and not folder.exists(DATASET_SETTINGS) else None
    if probe_file is None:
        raise ValueError(
            f"dataset_name {name}: not a finished mel dataset (no {commits.SUCCESS}: run jobs/prepare.py to its end), "
            "and not a local folder of save_to_disk or of Parquet files"
        )
    path = plainly_named(folder)
    rows = _saved(name, path) if probe_file in SAVE_TO_DISK_FILES else _loaded(name, path)
    own_mel = parsed(f"{name}/{MEL_CONFIG}", folder.read(MEL_CONFIG)) if folder.exists(MEL_CONFIG) else None
    return OriginalDataset(name, probe_file, rows, own_mel, option_mel)


class OriginalDataset:
    """A dataset of the original project, read in groups of GROUP_ROWS rows.

    Args:
        name: Path or Hub id of the dataset.
        probe_file: A file that each node looks for, to check that it can read the dataset.
        rows: The rows, as a `datasets.Dataset`.
        own_mel: Mel configuration in the dataset, or None if the dataset holds none.
        option_mel: Mel configuration that the option mel_config names, or None if the option is not set.

    Raises:
        ValueError: The dataset has no images, the two mel configurations differ, or the first image has another size
            than the mel configuration states.
    """

    added, version = 0, None

    def __init__(
        self, name: str, probe_file: str, rows: Any, own_mel: MelConfig | None, option_mel: MelConfig | None
    ) -> None:
        self.name, self.probe_file = name, probe_file
        if not isinstance(rows.features.get("image"), datasets.Image):
            raise ValueError(
                f"dataset_name {name}: needs a column image that holds images, "
                f"its columns are {', '.join(rows.column_names)}"
            )
        _require_same(name, own_mel, option_mel)
        self.measured = set(MEASURED) <= set(rows.column_names)
        columns = [column for column in (*COLUMNS, *MEASURED) if column in rows.column_names]
        self._rows = rows.select_columns(columns).cast_column("image", datasets.Image(decode=False))
        self.rows = len(rows)
        self.groups = [
            (0, index, min(GROUP_ROWS, self.rows - first))
            for index, first in enumerate(range(0, self.rows, GROUP_ROWS))
        ]
        height, width = self._shape(0)
        if stated := own_mel or option_mel:
            self.mel, self.mel_origin = stated, f"its {MEL_CONFIG}" if own_mel else "the option mel_config"
        else:
            self.mel = parsed(f"dataset_name {name}", json.dumps({"x_res": width, "y_res": height}).encode())
            self.mel_origin = (
                f"the defaults of the original project, because it has no {MEL_CONFIG}: "
                "set mel_config if they are wrong"
            )
        self._checked_image(0)

    @cached_property
    def digest(self) -> str:
        """Digest of the mel configuration, and of file name, slice number, image size and features of all rows.

        Raises:
            ValueError: An image has another size or mode than the mel configuration states.
        """
        total = hashlib.sha256(self.mel.digest.encode())
        known: set[bytes | None] = set()
        columns = (*COLUMNS[1:], *(MEASURED if self.measured else ()))
        for index, batch in enumerate(self._rows.with_format("arrow").iter(BATCH_ROWS)):
            images = pc.struct_field(batch["image"], "bytes")
            heads = pc.binary_slice(images, 0, PNG_HEAD_BYTES).to_pylist()
            for head in set(heads) - known:
                self._checked_image(index * BATCH_ROWS + heads.index(head))
            known.update(heads)
            named = [batch[column].to_pylist() for column in columns if column in batch.column_names]
            total.update(json.dumps([*named, pc.binary_length(images).to_pylist()]).encode())
        return total.hexdigest()[:16]

    def image(self, group: int, row: int) -> Images:
        """Return an image (y_res, x_res). See `TrainingImages.image`."""
        return self._checked_image(group * GROUP_ROWS + row)

    def audio_file(self, group: int, row: int) -> str:
        """Return the file from which the slice of an image was cut."""
        return str(self._rows[group * GROUP_ROWS + row]["audio_file"])

    def audio_files(self) -> set[str]:
        """Return all files from which slices were cut.

        Raises:
            ValueError: The dataset has no column `audio_file`.
        """
        if "audio_file" not in self._rows.column_names:
            raise ValueError(f"dataset_name {self.name}: has no column audio_file, which assigns encodings to images")
        return set(self._rows.unique("audio_file"))

    @cached_property
    def _measured_columns(self) -> Any:
        return self._rows.select_columns(list(MEASURED))

    def features(self, group: int, row: int) -> SliceFeatures:
        """Return the measured features of a slice. See `TrainingImages.features`."""
        features: SliceFeatures = self._measured_columns[group * GROUP_ROWS + row]
        return features

    def feature_values(self, names: Sequence[ConditionName]) -> dict[ConditionName, FeatureValues]:
        """Scan the columns of measured features. See `TrainingImages.feature_values`."""
        found = {name: FeatureValues(f"dataset_name {self.name}", name) for name in names}
        for batch in self._rows.select_columns(list(names)).with_format("arrow").iter(BATCH_ROWS):
            for name, values in found.items():
                values.add_column(batch[name])
        return found

    def _checked_image(self, number: int) -> Images:
        """Decode image `number`. Its size is checked before pixels are decompressed."""
        height, width = self._shape(number)
        if (width, height) != (self.mel.x_res, self.mel.y_res):
            raise ValueError(
                f"dataset_name {self.name}: image {number} is {width}x{height}, "
                f"not {self.mel.x_res}x{self.mel.y_res} by {self.mel_origin}"
            )
        return self._read_image(number, decode_png)

    def _shape(self, number: int) -> tuple[int, int]:
        """Return the (height, width) that the header of image `number` states."""
        return self._read_image(number, png_shape)

    def _read_image(self, number: int, read: Callable[[bytes], T]) -> T:
        """Apply `read` to the bytes of image `number`, and name the dataset and the image in its ValueError."""
        content = self._rows[number]["image"]["bytes"]
        if content is None:
            raise ValueError(
                f"dataset_name {self.name}: image {number} has a path but no content: save the dataset with its images"
            )
        try:
            return read(content)
        except ValueError as error:
            raise ValueError(f"dataset_name {self.name}: image {number}: {error}") from error


def _known_file(folder: Folder) -> str | None:
    """Return a file that identifies a folder of save_to_disk or of Parquet files, or None."""
    return next((name for name in (*SAVE_TO_DISK_FILES, *folder.names("**/*.parquet")) if folder.exists(name)), None)


def _saved(name: str, path: str) -> Any:
    """Load the rows of a folder of save_to_disk."""
    try:
        rows = datasets.load_from_disk(path, keep_in_memory=False)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"dataset_name {name}: is not a complete folder of save_to_disk ({error})") from error
    except IndexError as error:  # datasets raises it if there are no rows
        raise ValueError(f"dataset_name {name}: holds no images") from error
    if isinstance(rows, datasets.DatasetDict):
        if "train" not in rows:
            raise ValueError(f"dataset_name {name}: has no split train, only {', '.join(rows)}")
        return rows["train"]
    return rows


def _loaded(name: str, source: str) -> Any:
    """Load the rows of a folder of Parquet files or of a Hub repository."""
    try:
        if is_hub_id(name):
            return datasets.load_dataset(source, split="train", keep_in_memory=False)
        # Load the files by name: the cache of a folder with a dataset card depends only on the card and can be stale.
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
    # datasets raises RuntimeError for a repository that would run its own code.
    except (DatasetsError, FileNotFoundError, RuntimeError, ValueError) as error:
        raise ValueError(f"dataset_name {name}: cannot be loaded ({error.__cause__ or error})") from error


def _hub_mel(name: str) -> MelConfig | None:
    """Return the mel configuration in a Hub repository, from the cache if the Hub cannot be reached."""
    try:
        file = hf_hub_download(name, MEL_CONFIG, repo_type="dataset")
    except RemoteEntryNotFoundError:
        return None
    except LocalEntryNotFoundError as error:
        if try_to_load_from_cache(name, MEL_CONFIG, repo_type="dataset") is _CACHED_NO_EXIST:
            return None
        raise ConnectionError(
            f"dataset_name {name}: its {MEL_CONFIG} is unknown, because the Hugging Face Hub cannot be reached"
        ) from error
    with open(file, "rb") as opened:
        return parsed(f"{name}/{MEL_CONFIG}", opened.read())


def _require_same(name: str, own_mel: MelConfig | None, option_mel: MelConfig | None) -> None:
    if own_mel and option_mel and own_mel != option_mel:
        raise ValueError(
            f"dataset_name {name} has another mel configuration than mel_config: {own_mel.difference(option_mel)}"
        )
