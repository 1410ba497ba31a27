"""encode: the outputs of the networks in the dataset's order, with the same bytes after any failure."""

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from ray import cloudpickle

from audiodiff_core.audio import Samples, decode_audio
from audiodiff_core.checkpoint import load_vae, save_vae
from audiodiff_core.embeddings import load_encoder
from audiodiff_core.latents.posteriors import moments_in_batches
from audiodiff_core.mel import to_model
from audiodiff_core.models import network_digest
from audiodiff_platform.audio_files import AudioItem
from audiodiff_platform.encode import embeddings as embeddings_module
from audiodiff_platform.encode import job as encode_module
from audiodiff_platform.encode.embeddings import EmbeddingsWorker
from audiodiff_platform.encode.job import EncodeOptions, encode
from audiodiff_platform.encode.latents import LatentsWorker
from audiodiff_platform.entry.errors import JobError
from audiodiff_platform.mel_data.encodings import read_encodings
from audiodiff_platform.mel_data.latents import LatentsDataset
from audiodiff_platform.mel_data.mel_dataset import VALIDATION_SPLIT, MelDataset
from audiodiff_platform.prepare.job import PrepareOptions, prepare
from audiodiff_platform.storage import Folder
from audiodiff_platform.work.attempts import Attempts
from audiodiff_platform.work.engine import Record
from tests.in_process import in_process
from tests.poison import expanding_flac
from tests.servers.stores import Store

FILES = ["bass_hit_c.flac", "loop_mika.flac", "loop_tabla.flac", "sub/ambi_piano.flac"]

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this module


@pytest.fixture(scope="module")
def latents(held_out: Path, vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents") / "latents"
    encode(_asked(held_out, vae, folder, num_workers=2))
    return folder


def _asked(dataset: Path, vae: Path, folder: Path, num_workers: int = 1) -> EncodeOptions:
    return EncodeOptions(
        dataset_name=str(dataset), latents=True, vae=str(vae), output_dir=str(folder), num_workers=num_workers
    )


def _data(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "data").iterdir())}


def test_latents_are_those_of_the_dataset_in_its_order(latents: Path, held_out: Path, vae: Path) -> None:
    dataset, stored, network = MelDataset(str(held_out)), LatentsDataset(str(latents)), load_vae(vae)
    assert (stored.groups, stored.rows, stored.mel, stored.shape) == (
        dataset.groups,
        dataset.rows,
        dataset.mel,
        (2, 8, 8),
    )
    assert (stored.dataset_digest, stored.vae_digest) == (dataset.digest, network_digest(network))
    names = iter(dataset.column("audio_file"))
    for group, (_, _, rows) in enumerate(dataset.groups):
        for row in range(rows):
            with torch.inference_mode():
                posterior = network.encode(
                    torch.from_numpy(to_model(dataset.image(group, row)))[None, None]
                ).latent_dist
            moments = stored.moments(group, row)
            assert moments.shape == (2, 2, 8, 8)
            np.testing.assert_allclose(moments[0], posterior.mean[0], atol=1e-5)
            np.testing.assert_allclose(moments[1], posterior.std[0], atol=1e-5)
            assert stored.audio_file(group, row) == next(names)
    part = pq.read_table(next((latents / "data").glob("train-*.parquet")))
    assert part.schema.metadata[b"audiodiff_latent_shape"] == b"[2, 8, 8]"
    assert part.schema.metadata[b"audiodiff_vae_digest"].decode() == stored.vae_digest


def test_held_out_tracks_stay_apart(latents: Path, held_out: Path) -> None:
    stored = LatentsDataset(str(latents), VALIDATION_SPLIT)
    files = {
        name
        for file in (held_out / "data").glob("validation-*")
        for name in pq.read_table(file)["audio_file"].to_pylist()
    }
    assert {
        stored.audio_file(group, row) for group, (_, _, rows) in enumerate(stored.groups) for row in range(rows)
    } == files
    assert stored.rows == sum(pq.read_metadata(file).num_rows for file in (held_out / "data").glob("validation-*"))


def test_bits_of_a_latent_do_not_depend_on_its_neighbours(vae: Path, held_out: Path) -> None:
    images = MelDataset(str(held_out)).all_images()[:5]
    network = load_vae(vae)
    alone = np.concatenate([moments_in_batches(network, image[np.newaxis], 4) for image in images])
    np.testing.assert_array_equal(moments_in_batches(network, images, 4), alone)


class Mortal(LatentsWorker):
    """Worker that kills itself once, before it commits a shard; later workers survive."""

    def shard(self, shard: int, attempts: Attempts) -> Record:
        record = super().shard(shard, attempts)
        probe_file = Path(self.output.path("died"))
        if not probe_file.exists():
            probe_file.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return record


@pytest.mark.soak_short
@pytest.mark.workers
def test_a_worker_that_dies_changes_nothing(
    latents: Path, held_out: Path, vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "latents"
    monkeypatch.setattr(encode_module, "LatentsWorker", Mortal)
    encode(_asked(held_out, vae, out))
    assert (out / "died").exists()
    assert _data(out) == _data(latents)
    assert LatentsDataset(str(out)).digest == LatentsDataset(str(latents)).digest


def test_a_rerun_makes_only_what_is_missing(latents: Path, held_out: Path, vae: Path, tmp_path: Path) -> None:
    out = tmp_path / "latents"
    shutil.copytree(latents, out)
    first, *others = sorted((out / "_commits").iterdir())
    first.unlink()
    (out / "_SUCCESS").unlink()
    (out / "data" / "train-999999.parquet").write_bytes(b"of a worker that died")
    times = {file.name: file.stat().st_mtime_ns for file in others}
    with pytest.raises(ValueError, match="not finished latents"):
        LatentsDataset(str(out))
    summary = encode(_asked(held_out, vae, out))
    assert _data(out) == _data(latents)
    assert {file.name: file.stat().st_mtime_ns for file in others} == times
    assert summary["latents"] == LatentsDataset(str(out)).rows + LatentsDataset(str(out), VALIDATION_SPLIT).rows


def test_another_autoencoder_in_the_same_folder_is_refused(
    latents: Path, held_out: Path, vae: Path, tmp_path: Path
) -> None:
    network = load_vae(vae)
    with torch.no_grad():
        next(network.parameters()).add_(1)
    save_vae(tmp_path / "other", network)
    with pytest.raises(ValueError, match=r"vae_digest is '\w+' in the folder, '\w+' in this job"):
        encode(_asked(held_out, tmp_path / "other", latents))


@pytest.fixture(scope="module")
def embeddings(local_ray: None, few_loops: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embeddings") / "embeddings"
    with in_process():
        encode(EncodeOptions(input_dir=str(few_loops), encoder=str(encoder), output_dir=str(folder), num_workers=1))
    return folder


def test_embeddings_join_the_dataset_that_was_prepared_from_the_same_folder(
    embeddings: Path, dataset: Path, few_loops: Path, encoder: Path
) -> None:
    encodings, network = read_encodings(str(embeddings)), load_encoder(encoder)
    assert (encodings.name, encodings.digest, encodings.dim, len(encodings)) == (network.name, network.digest, 100, 4)
    names = MelDataset(str(dataset)).column("audio_file")
    vectors = encodings.vectors_for(names)
    for name in set(names):
        expected = network.encode([decode_audio(few_loops / name, network.sample_rate)], network.sample_rate)[0]
        np.testing.assert_allclose(vectors[names.index(name)], expected, atol=1e-6)
    assert len(np.unique(vectors, axis=0)) == 4


def test_embeddings_of_a_datasets_files(
    dataset: Path, few_loops: Path, loops: Path, encoder: Path, tmp_path: Path
) -> None:
    options = {
        "dataset_name": str(dataset),
        "encoder": str(encoder),
        "output_dir": str(tmp_path / "out"),
        "num_workers": 1,
    }
    with pytest.raises(
        ValueError,
        match=r"names its audio files relative to a folder \(bass_hit_c.flac\): pass this folder as input_dir",
    ):
        encode(EncodeOptions(**options))
    with pytest.raises(ValueError, match=r"lacks 1 of the 4 files of dataset_name .* such as sub/ambi_piano.flac"):
        encode(EncodeOptions(**options, input_dir=str(loops)))
    assert not (tmp_path / "out").exists()
    more = tmp_path / "more"
    shutil.copytree(few_loops, more)
    shutil.copy(loops / "bass_drop_c.flac", more)
    assert encode(EncodeOptions(**options, input_dir=str(more)))["embeddings"] == 4


def test_files_named_absolutely_are_found_again(
    local_ray: None, few_loops: Path, encoder: Path, embeddings: Path, tmp_path: Path
) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text("".join(f"{few_loops / name}\n" for name in ("loop_mika.flac", "bass_hit_c.flac")))
    prepare(
        PrepareOptions(
            input_dir=str(listing), output_dir=str(tmp_path / "mel"), resolution="32", hop_length=1024, num_workers=1
        )
    )
    encode(
        EncodeOptions(
            dataset_name=str(tmp_path / "mel"), encoder=str(encoder), output_dir=str(tmp_path / "out"), num_workers=1
        )
    )
    encodings = read_encodings(str(tmp_path / "out"))
    np.testing.assert_array_equal(
        encodings.vectors_for([str(few_loops / "loop_mika.flac")]),
        read_encodings(str(embeddings)).vectors_for(["loop_mika.flac"]),
    )


def test_members_of_listed_containers_need_the_list(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_module, "_tracks", lambda _: {f"{tmp_path}/a.tar/mika.flac"})
    options = {"dataset_name": str(tmp_path / "mel"), "encoder": str(encoder), "output_dir": str(tmp_path / "out")}
    with pytest.raises(
        ValueError, match=r"mel names members of containers \(.*/a\.tar/mika\.flac\): pass the list from which"
    ):
        encode(EncodeOptions(**options))
    assert not (tmp_path / "out").exists()


def test_a_track_that_is_too_long_is_named_with_the_reason_and_the_remedy(
    dataset: Path, few_loops: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings_module, "LONGEST_EMBEDDED_S", 9.0)
    options = {"dataset_name": str(dataset), "input_dir": str(few_loops), "encoder": str(encoder)}
    with pytest.raises(
        JobError,
        match=r"^1 files of dataset_name .* such as loop_tabla\.flac \(lasts \d+ s or more, at most 9 s .*\): "
        "replace or split these files, prepare them into another folder",
    ):
        encode(EncodeOptions(**options, output_dir=str(tmp_path / "out"), num_workers=1))


def test_files_that_cannot_be_embedded(
    embeddings: Path, few_loops: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(few_loops, tmp_path / "audio")
    (tmp_path / "audio" / "broken.wav").write_bytes(b"RIFF")
    sound = 0.1 * np.random.default_rng(0).standard_normal(60_000)
    expanding_flac(tmp_path / "audio" / "poison.flac")
    soundfile.write(tmp_path / "audio" / "cancelled.wav", np.stack([sound, -sound], axis=1), 22_050)
    options = {
        "input_dir": str(tmp_path / "audio"),
        "encoder": f"audio-encoder:{encoder}",
        "output_dir": str(tmp_path / "out"),
        "num_workers": 1,
    }
    summary = encode(EncodeOptions(**options))
    assert (summary["embeddings"], summary["unusable"]) == (4, 3)
    assert "unusable: poison.flac: expands to more than" in capsys.readouterr().err
    np.testing.assert_array_equal(
        read_encodings(str(tmp_path / "out")).vectors_for(FILES), read_encodings(str(embeddings)).vectors_for(FILES)
    )
    assert encode(EncodeOptions(**options))["digest"] == summary["digest"]
    with pytest.raises(JobError, match=r"3 of 7 files cannot be used \(max_bad_fraction 0.1\)"):
        encode(EncodeOptions(**options, max_bad_fraction=0.1))


def _upload(local: Path, uri: str) -> None:
    for file in local.rglob("*"):
        if file.is_file():
            Folder(uri).write(str(file.relative_to(local)), file.read_bytes())


@pytest.mark.parametrize("store", ["gs"], indirect=True)
def test_latents_on_an_object_store(store: Store, latents: Path, held_out: Path, vae: Path) -> None:
    bucket = store.make_bucket()
    _upload(held_out, f"{bucket}/mel")
    out = f"{bucket}/latents"
    lost = store.fail_write("lose", f"{out}/_commits/000001.json")
    encode(EncodeOptions(dataset_name=f"{bucket}/mel", latents=True, vae=str(vae), output_dir=out, num_workers=1))
    assert lost.fired == 1
    assert {Path(name).name: content for name, content in Folder(out).read_all("data/*").items()} == _data(latents)
    assert LatentsDataset(out).digest == LatentsDataset(str(latents)).digest
    np.testing.assert_array_equal(LatentsDataset(out).moments(1, 0), LatentsDataset(str(latents)).moments(1, 0))


@pytest.mark.parametrize("store", ["gs"], indirect=True)
def test_a_local_autoencoder_that_nodes_do_not_share_is_refused(
    store: Store, held_out: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = store.make_bucket()
    _upload(held_out, f"{bucket}/mel")
    monkeypatch.setattr("audiodiff_platform.cluster.shared_paths.grows", lambda: True)
    with pytest.raises(
        ValueError, match=f"^vae {vae} is local, and this cluster adds and removes nodes: use s3:// or gs://$"
    ):
        encode(
            EncodeOptions(
                dataset_name=f"{bucket}/mel", latents=True, vae=str(vae), output_dir=f"{bucket}/latents", num_workers=1
            )
        )
    assert not Folder(f"{bucket}/latents").exists("encode.json")


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_embeddings_on_an_object_store(store: Store, embeddings: Path, few_loops: Path, encoder: Path) -> None:
    bucket = store.make_bucket()
    _upload(few_loops, f"{bucket}/music")
    cut = store.fail_read("cut", f"{bucket}/music/loop_tabla.flac")
    encode(EncodeOptions(input_dir=f"{bucket}/music", encoder=str(encoder), output_dir=f"{bucket}/out", num_workers=1))
    assert cut.fired == 1
    encodings = read_encodings(f"{bucket}/out")
    np.testing.assert_array_equal(encodings.vectors_for(FILES), read_encodings(str(embeddings)).vectors_for(FILES))
    Folder(bucket).write("one.parquet", Folder(f"{bucket}/out").read("data/000000.parquet"))
    assert set(read_encodings(f"{bucket}/one.parquet").audio_files) <= set(FILES)
    with pytest.raises(ValueError, match=f"encodings {bucket}/none.parquet: no such file or folder"):
        read_encodings(f"{bucket}/none.parquet")


class Deadly(EmbeddingsWorker):
    """Worker that kills itself at one file, as a fault of the decoder would."""

    def _embedded(self, item: AudioItem, scratch: Path) -> Samples:
        if item.name == "loop_mika.flac":
            with (Path(self.output.path("deaths"))).open("a") as deaths:
                deaths.write(".")
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._embedded(item, scratch)


@pytest.mark.soak_short
@pytest.mark.workers
def test_a_file_that_ends_its_workers_is_given_up(
    embeddings: Path,
    few_loops: Path,
    encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(encode_module, "EmbeddingsWorker", Deadly)
    summary = encode(
        EncodeOptions(input_dir=str(few_loops), encoder=str(encoder), output_dir=str(tmp_path / "out"), num_workers=1)
    )
    assert (summary["embeddings"], summary["unusable"]) == (3, 1)
    assert "unusable: loop_mika.flac: killed 2 worker processes" in capsys.readouterr().err
    assert (tmp_path / "out" / "deaths").read_text() == ".."
    rest = [name for name in FILES if name != "loop_mika.flac"]
    np.testing.assert_array_equal(
        read_encodings(str(tmp_path / "out")).vectors_for(rest), read_encodings(str(embeddings)).vectors_for(rest)
    )
    assert not (tmp_path / "out" / "_attempts").exists()


@pytest.mark.soak_short
def test_interrupted_runs_say_nothing_against_a_file(
    local_ray: None, few_loops: Path, encoder: Path, tmp_path: Path
) -> None:
    options = EncodeOptions(
        input_dir=str(few_loops), encoder=str(encoder), output_dir=str(tmp_path / "out"), num_workers=1
    )
    output = Folder(options.output_dir)
    for shard in range(len(FILES)):
        output.write_json(
            f"_attempts/{shard:06d}.json",
            {"deaths": [*FILES, *FILES], "process": "", "node": "", "item": "", "token": None},
        )
        assert Attempts(output, shard, "this process").gives_up(FILES[0])
    assert encode(options)["embeddings"] == len(FILES)


class Erring(EmbeddingsWorker):
    """Worker that raises an error at each file but survives."""

    def _embedded(self, item: AudioItem, scratch: Path) -> Samples:
        raise OSError(f"no space left for {item.name}")


def test_an_error_is_no_death(
    local_ray: None, few_loops: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_module, "EmbeddingsWorker", Erring)
    with pytest.raises(JobError, match=r"storage failed at .* shards, .*no space left for"):
        encode(
            EncodeOptions(
                input_dir=str(few_loops), encoder=str(encoder), output_dir=str(tmp_path / "out"), num_workers=1
            )
        )
    assert not Folder(str(tmp_path / "out")).read_all("_attempts/*.json")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"latents": True, "dataset_name": "d"}, "latents needs dataset_name and vae"),
        ({"latents": True, "dataset_name": "d", "vae": "v", "encoder": "e"}, "neither encoder nor input_dir"),
        ({"encoder": "e"}, "embeddings need encoder, and input_dir or dataset_name"),
        ({"input_dir": "i"}, "embeddings need encoder"),
        ({"input_dir": "i", "encoder": "e", "vae": "v"}, "vae is for latents only"),
    ],
)
def test_what_is_asked_for_must_be_one_thing(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EncodeOptions(output_dir="o", **options)
