"""Datasets of the original, as save_to_disk folders and as Parquet, used directly for training."""

import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Pillow

from audiodiff_core.checkpoint import load_model
from audiodiff_core.mel import Images, Mel, MelConfig
from audiodiff_core.mel.png import SIGNATURE, encode_png
from audiodiff_core.mel.slices import Slicing, mel_slices
from audiodiff_platform.mel_data.mel_dataset import MelDataset
from audiodiff_platform.mel_data.original_datasets import GROUP_ROWS, OriginalDataset, open_dataset
from audiodiff_platform.mel_data.sample_order import DataOrder
from audiodiff_platform.train.diffusion import train
from audiodiff_platform.train.options import TrainOptions

FEATURES = Features({"image": Image(), "audio_file": Value("string"), "slice": Value("int16")})
MEL = MelConfig(x_res=32, y_res=32)
OTHER_MEL = MelConfig(x_res=32, y_res=32, hop_length=1024, sample_rate=16_000)


def _rows(contents: Sequence[bytes]) -> Dataset:
    columns = {
        "image": [{"bytes": content} for content in contents],
        "audio_file": ["one.wav"] * len(contents),
        "slice": range(len(contents)),
    }
    return Dataset.from_dict(columns, features=FEATURES)


def _png(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(np.zeros(shape, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _stating(width: int, height: int) -> bytes:
    """Return the header of a PNG, without pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        SIGNATURE
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + struct.pack(">I4sI", 0, b"IDAT", 0)
        + b"\0" * 12
    )


@pytest.fixture(scope="module")
def images(loops: Path) -> list[Images]:
    """The slices of a loop, enough for three groups."""
    mel = Mel(MEL)
    made = [piece.image for piece in mel_slices(loops / "ambi_lunar_land.flac", mel, Slicing(overlap=0.97))]
    assert 2 * GROUP_ROWS < len(made) < 3 * GROUP_ROWS
    return made


@pytest.fixture(scope="module")
def original(images: list[Images]) -> Dataset:
    return _rows([encode_png(image) for image in images])


@pytest.fixture(scope="module")
def saved(original: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Dataset as save_to_disk writes it."""
    folder = tmp_path_factory.mktemp("saved") / "dataset"
    original.save_to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def parquet(original: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows in two Parquet files, as push_to_hub writes them."""
    folder = tmp_path_factory.mktemp("parquet")
    (folder / "data").mkdir()
    for index in range(2):
        original.shard(2, index, contiguous=True).to_parquet(folder / "data" / f"train-{index:05d}-of-00002.parquet")
    return folder


def _all(dataset: OriginalDataset) -> list[Images]:
    return [dataset.image(group, row) for group, (_, _, rows) in enumerate(dataset.groups) for row in range(rows)]


def test_all_kinds_give_the_same_images_groups_and_digest(
    original: Dataset, saved: Path, parquet: Path, images: list[Images], tmp_path: Path
) -> None:
    DatasetDict({"train": original, "test": original.select(range(3))}).save_to_disk(tmp_path / "splits")
    opened = [open_dataset(str(folder)) for folder in (saved, parquet, tmp_path / "splits")]
    for dataset in opened:
        assert isinstance(dataset, OriginalDataset)
        assert dataset.mel == MEL
        assert [rows for _, _, rows in dataset.groups] == [GROUP_ROWS, GROUP_ROWS, len(images) - 2 * GROUP_ROWS]
        assert dataset.rows == len(images)
        assert np.array_equal(_all(dataset), images)
    assert len({dataset.digest for dataset in opened}) == 1
    epoch = DataOrder(opened[0], 0).batch(range(len(images))).images
    assert epoch is not None
    assert sorted(image.numpy().tobytes() for image in epoch) == sorted(image.tobytes() for image in images)


def test_the_digest_names_the_content(original: Dataset, saved: Path, tmp_path: Path) -> None:
    digests = {open_dataset(str(saved)).digest}
    changes: list[Callable[[dict[str, Any]], dict[str, Any]]] = [
        lambda row: {"slice": row["slice"] + 1},
        lambda row: {"audio_file": "another.wav"},
        lambda row: {"image": {"bytes": _png((32, 32)), "path": None}},
    ]
    for index, change in enumerate(changes):
        original.select(range(8)).map(change, load_from_cache_file=False, features=FEATURES).save_to_disk(
            tmp_path / str(index)
        )
        digests.add(open_dataset(str(tmp_path / str(index))).digest)
    original.select(range(8)).save_to_disk(tmp_path / "few")
    digests.add(open_dataset(str(tmp_path / "few")).digest)
    (tmp_path / "few" / "mel_config.json").write_text(OTHER_MEL.to_json())
    digests.add(open_dataset(str(tmp_path / "few")).digest)
    assert len(digests) == 6


def test_images_stay_on_the_disk(original: Dataset, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 256, 256), np.uint8)
    _rows([encode_png(image) for image in noise]).save_to_disk(tmp_path / "large")
    before = pa.total_allocated_bytes()
    dataset = open_dataset(str(tmp_path / "large"))
    assert dataset.digest
    assert np.array_equal(dataset.image(0, 63), noise[63])
    assert pa.total_allocated_bytes() - before < noise.nbytes / 10


def test_training_takes_a_saved_folder_and_says_what_it_assumed(
    local_ray: None, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = TrainOptions(
        dataset_name=str(saved), output_dir=str(tmp_path), max_train_steps=2, train_batch_size=4, num_workers=1
    )
    assert train(options)["steps"] == 2
    errors = capsys.readouterr().err
    assert (
        "32x32, 22050 Hz, hop length 512, n_fft 2048 "
        "(from the defaults of the original project, because it has no mel_config.json" in errors
    )
    assert load_model(tmp_path / "model").mel == MEL
    assert (
        json.loads((tmp_path / "model" / "audiodiff.json").read_text())["data_digest"]
        == open_dataset(str(saved)).digest
    )
    written = (tmp_path / "model" / "model_index.json").stat().st_mtime_ns
    train(options)
    assert (tmp_path / "model" / "model_index.json").stat().st_mtime_ns == written


def test_training_takes_parquet_with_the_mel_config_given(local_ray: None, parquet: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(OTHER_MEL.to_json())
    run = tmp_path / "run"
    train(
        TrainOptions(
            dataset_name=str(parquet),
            mel_config=str(tmp_path / "other.json"),
            output_dir=str(run),
            max_train_steps=2,
            train_batch_size=4,
            num_workers=1,
        )
    )
    assert load_model(run / "model").mel == OTHER_MEL


def test_the_mel_config_that_a_dataset_carries_counts(original: Dataset, dataset: Path, tmp_path: Path) -> None:
    original.save_to_disk(tmp_path / "carries")
    (tmp_path / "carries" / "mel_config.json").write_text(OTHER_MEL.to_json())
    (tmp_path / "mine.json").write_text(MEL.to_json())
    assert open_dataset(str(tmp_path / "carries")).mel == OTHER_MEL
    assert open_dataset(str(tmp_path / "carries"), str(tmp_path / "carries" / "mel_config.json")).mel == OTHER_MEL
    with pytest.raises(ValueError, match="sample_rate 16000 against 22050, hop_length 1024 against 512"):
        open_dataset(str(tmp_path / "carries"), str(tmp_path / "mine.json"))
    assert isinstance(open_dataset(str(dataset)), MelDataset)
    with pytest.raises(ValueError, match="hop_length 1024 against 512"):
        open_dataset(str(dataset), str(tmp_path / "mine.json"))


def test_what_prepare_made_and_the_hub_gave_back_is_the_same(dataset: Path, tmp_path: Path) -> None:
    for name in ("README.md", "mel_config.json"):
        shutil.copy(dataset / name, tmp_path)
    shutil.copytree(dataset / "data", tmp_path / "data")
    published, own = open_dataset(str(tmp_path)), MelDataset(str(dataset))
    assert isinstance(published, OriginalDataset)
    assert (published.mel, published.mel_origin) == (own.mel, "its mel_config.json")
    assert np.array_equal(_all(published), own.all_images())


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ([_png((32, 32)), _png((64, 32))], "image 1 is 32x64, not 32x32 by the defaults of the original project"),
        ([_png((32, 32)), _png((32, 32, 3))], "image 1: PNG of mode RGB"),
        ([_png((32, 32, 3))], "image 0: PNG of mode RGB"),
        ([_png((32, 32)), b"\xff\xd8\xff\xe0 a JPEG"], "image 1: 11 bytes that are not a valid PNG"),
        ([_png((4, 32))], "y_res is 4"),
        (
            [_png((32, 32)), _stating(13_000, 13_000)],
            "image 1 is 13000x13000, not 32x32 by the defaults of the original project",
        ),
        ([_stating(32, 60_000)], "y_res is 60000"),
        ([_stating(32, 32)], "image 0: 57 bytes that are not a valid PNG"),
    ],
)
def test_images_that_are_not_alike_or_no_mel_images(contents: list[bytes], words: str, tmp_path: Path) -> None:
    _rows(contents).save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match=words):
        assert open_dataset(str(tmp_path / "set")).digest


def test_datasets_that_are_none(original: Dataset, tmp_path: Path) -> None:
    original.remove_columns("image").save_to_disk(tmp_path / "no_image")
    DatasetDict({"test": original}).save_to_disk(tmp_path / "no_train")
    original.select([]).save_to_disk(tmp_path / "empty")
    original.save_to_disk(tmp_path / "part")
    next((tmp_path / "part").glob("*.arrow")).unlink()
    for name in ("names", "broken"):
        (tmp_path / name).mkdir()
    named = {"image": {"bytes": None, "path": "somewhere.png"}, "audio_file": "one.wav", "slice": 0}
    pq.write_table(pa.Table.from_pylist([named], FEATURES.arrow_schema), tmp_path / "names" / "train.parquet")
    (tmp_path / "broken" / "train.parquet").write_bytes(b"not Parquet")
    (tmp_path / "halfway" / "data").mkdir(parents=True)
    (tmp_path / "halfway" / "prepare.json").write_text("{}")
    original.to_parquet(tmp_path / "halfway" / "data" / "train-000000.parquet")
    for name, words in (
        ("missing", "no such folder"),
        ("no_image", "needs a column image that holds images, its columns are audio_file, slice"),
        ("no_train", "has no split train, only test"),
        ("part", "is not a complete folder of save_to_disk"),
        ("names", "image 0 has a path but no content"),
        ("empty", "holds no images"),
        ("broken", "cannot be loaded"),
        ("halfway", "not a finished mel dataset"),
    ):
        with pytest.raises(ValueError, match=words) as raised:
            open_dataset(str(tmp_path / name))
        assert str(tmp_path / name) in str(raised.value)


def test_a_mel_config_that_is_none(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("hop_length: 3")
    (tmp_path / "unknown.json").write_text('{"hop_lenght": 512}')
    (tmp_path / "larger.json").write_text(MelConfig().to_json())
    for name, words in (
        ("none.json", "no such file"),
        ("text.json", "is not JSON"),
        ("unknown.json", "hop_lenght is 512"),
        ("larger.json", "image 0 is 32x32, not 256x256 by the option mel_config"),
    ):
        with pytest.raises(ValueError, match=words):
            open_dataset(str(saved), str(tmp_path / name))
