"""The splits of a mel dataset: each split reads its own files."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audiodiff_core.mel.png import decode_png
from audiodiff_platform.mel_data.mel_dataset import TRAIN_SPLIT, VALIDATION_SPLIT, MelDataset
from audiodiff_platform.prepare.job import PrepareOptions, prepare


@pytest.fixture(scope="module")
def mixed(local_ray: None, loops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose only shard has both splits."""
    folder = tmp_path_factory.mktemp("mixed") / "mel"
    options = {"resolution": "32", "hop_length": 1024, "validation_fraction": 0.3, "num_workers": 1}
    prepare(PrepareOptions(input_dir=str(loops), output_dir=str(folder), **options))
    return folder


@pytest.mark.parametrize("kind", ["held_out", "mixed"])
def test_each_split_reads_its_own_files(kind: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    shards = {
        split: [file.stem.split("-")[1] for file in sorted((folder / "data").glob(f"{split}-*"))]
        for split in (TRAIN_SPLIT, VALIDATION_SPLIT)
    }
    assert bool(set(shards[TRAIN_SPLIT]) & set(shards[VALIDATION_SPLIT])) == (kind == "mixed")
    for split in (TRAIN_SPLIT, VALIDATION_SPLIT):
        content = pa.concat_tables(
            [pq.read_table(folder / "data" / f"{split}-{shard}.parquet") for shard in shards[split]]
        ).to_pylist()
        data = MelDataset(str(folder), split)
        names = [row["audio_file"] for row in content]
        assert data.rows == len(content)
        assert np.array_equal(data.all_images(), np.stack([decode_png(row["image"]["bytes"]) for row in content]))
        assert (
            [data.audio_file(group, row) for group, (_, _, rows) in enumerate(data.groups) for row in range(rows)]
            == data.column("audio_file")
            == names
        )
        assert data.audio_files() == set(names)
