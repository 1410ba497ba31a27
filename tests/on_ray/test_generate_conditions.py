"""generate with `like` and `prompt`: the embeddings of encode, the bytes of the core, bad rows, growth."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from audiodiff_core.checkpoint import EncoderRecord
from audiodiff_core.embeddings import Encoder, load_encoder
from audiodiff_core.pipeline import AudioFiles, load_pipeline
from audiodiff_core.pipeline.conditions import embedded
from audiodiff_core.sampling import REQUEST, ExecutionProfile
from audiodiff_core.sampling.conditions import Condition
from audiodiff_platform.encode.job import EncodeOptions, encode
from audiodiff_platform.generate import condition_worker
from audiodiff_platform.generate.job import generate
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.mel_data.encodings import read_encodings
from audiodiff_platform.storage import Folder
from tests.in_process import in_process
from tests.random_models import save_conditional
from tests.servers.stores import Store

pytestmark = pytest.mark.package("transformers")


@pytest.fixture(scope="module")
def conditional(clap: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model that records the folder of its encoder, which embeds text too."""
    encoder = load_encoder(clap)
    record = EncoderRecord(name=encoder.name, digest=encoder.digest)
    return save_conditional(tmp_path_factory.mktemp("conditional") / "model", encoder.dim, record)


@pytest.fixture(scope="module")
def of_audio(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model that records the name, but not the folder, of its encoder, which embeds no text."""
    network = load_encoder(encoder)
    record = EncoderRecord(name="audio-encoder:encoder", digest=network.digest)
    return save_conditional(tmp_path_factory.mktemp("of-audio") / "model", network.dim, record)


def _file(folder: Path, rows: list[dict[str, Any]]) -> str:
    file = folder / "requests.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def _options(model: Path, out: Path, **more: Any) -> GenerateOptions:
    return GenerateOptions(**{"model": str(model), "output_dir": str(out), "num_workers": 1, "steps": 1, **more})


def _audio(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted((folder / "audio").iterdir())]


def _manifest(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "manifest").to_pylist()
    return sorted(rows, key=lambda row: str(row["id"]))


def _made_by_the_core(model: Path, rows: list[dict[str, Any]], encoder: str | None = None) -> list[bytes]:
    ExecutionProfile.here().prepare_process()
    requests = [REQUEST.validate_python({"steps": 1, **row}) for row in rows]
    loops = {loop.number: loop for loop in load_pipeline(model, encoder=encoder).generate(requests)}
    return [loops[number].file(22_050, "wav") for number in range(len(rows))]


@pytest.fixture(scope="module")
def rows(few_loops: Path) -> list[dict[str, Any]]:
    tabla, mika = str(few_loops / "loop_tabla.flac"), str(few_loops / "loop_mika.flac")
    return [
        {"like": tabla, "guidance_scale": 2.0},
        {"like": mika},
        {"like": tabla, "seed": 1},
        {},
        {"prompt": "slow drum"},
        {"kind": "vary", "source": mika, "like": tabla},
    ]


@pytest.fixture(scope="module")
def liked(
    local_ray: None, conditional: Path, rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("liked")
    with in_process():
        generate(_options(conditional, folder / "loops", requests=_file(folder, rows)))
    return folder / "loops"


def test_python_calls_give_the_bytes_of_the_job(liked: Path, conditional: Path, rows: list[dict[str, Any]]) -> None:
    assert _made_by_the_core(conditional, rows) == _audio(liked)
    assert len(set(_audio(liked))) == len(rows)
    for row, made in zip(rows, _manifest(liked), strict=True):
        assert (made["like"], made["prompt"], made["encoding"]) == (row.get("like"), row.get("prompt"), None)
        assert (made["encoding_values"] is None) == (row == {})
    assert not (liked / "_conditions").exists()


def test_the_condition_is_the_embedding_of_encode(
    local_ray: None, of_audio: Path, encoder: Path, few_loops: Path, tmp_path: Path
) -> None:
    encode(EncodeOptions(input_dir=str(few_loops), encoder=str(encoder), output_dir=str(tmp_path / "e"), num_workers=1))
    names = ["loop_tabla.flac", "sub/ambi_piano.flac"]
    rows = [{"like": str(few_loops / name)} for name in names]
    generate(_options(of_audio, tmp_path / "out", requests=_file(tmp_path, rows), encoder=str(encoder)))
    values = np.array([row["encoding_values"] for row in _manifest(tmp_path / "out")], np.float32)
    np.testing.assert_array_equal(values, read_encodings(str(tmp_path / "e")).vectors_for(names))
    named = [{"encoding": name} for name in names]
    generate(_options(of_audio, tmp_path / "named", requests=_file(tmp_path, named), encodings=str(tmp_path / "e")))
    assert _audio(tmp_path / "named") == _audio(tmp_path / "out")


def test_more_rows_do_not_embed_what_is_planned(
    liked: Path, conditional: Path, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(liked, out)
    grown = [*rows, {"like": rows[1]["like"], "seed": 9}]
    monkeypatch.delattr(condition_worker, "embedded")
    generate(_options(conditional, out, requests=_file(tmp_path, grown)))
    assert _audio(out)[:-1] == _audio(liked)
    assert _audio(out)[-1:] == _made_by_the_core(conditional, grown[-1:])


def test_audio_that_has_changed_is_an_error(conditional: Path, few_loops: Path, loops: Path, tmp_path: Path) -> None:
    take = tmp_path / "take.flac"
    shutil.copy(few_loops / "loop_tabla.flac", take)
    options = _options(conditional, tmp_path / "out", requests=_file(tmp_path, [{"like": str(take)}]))
    generate(options)
    made = _audio(tmp_path / "out")
    shutil.copy(few_loops / "loop_tabla.flac", take)
    generate(options)
    shutil.copy(loops / "loop_compus.flac", take)
    with pytest.raises(ValueError, match=r"row 1 \(0000000001\) of .* has changed \(the encoding of like .*take\.flac"):
        generate(options)
    assert _audio(tmp_path / "out") == made


def test_a_run_that_was_killed_continues_with_the_embeddings_it_has(
    liked: Path, conditional: Path, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiodiff_platform.generate.conditions.SHARD_CONDITIONS", 1)
    out = tmp_path / "out"
    options = _options(conditional, out, requests=_file(tmp_path, rows))
    taken: list[str] = []
    stops_at = 1

    def watched(network: Encoder, conditions: Sequence[Condition], files: AudioFiles) -> Iterator[tuple[Any, Any]]:
        if len(taken) == stops_at:
            raise KeyboardInterrupt
        taken.extend(condition.text for condition in conditions)
        yield from embedded(network, conditions, files)

    monkeypatch.setattr(condition_worker, "embedded", watched)
    with pytest.raises(KeyboardInterrupt):
        generate(options)
    assert not (out / "_plan").exists()
    stops_at = -1
    generate(options)
    assert sorted(taken) == sorted([rows[0]["like"], rows[1]["like"], rows[4]["prompt"]])
    assert _audio(out) == _audio(liked)


def test_a_prompt_is_a_default(local_ray: None, conditional: Path, few_loops: Path, tmp_path: Path) -> None:
    generate(_options(conditional, tmp_path / "seeds", count=2, prompt="slow drum"))
    made = _audio(tmp_path / "seeds")
    assert made == _made_by_the_core(conditional, [{"seed": seed, "prompt": "slow drum"} for seed in (0, 1)])
    assert {row["prompt"] for row in _manifest(tmp_path / "seeds")} == {"slow drum"}
    own: list[dict[str, Any]] = [
        {"seed": 1},
        {"prompt": "choir"},
        {"like": str(few_loops / "loop_mika.flac")},
        {"prompt": None},
    ]
    generate(_options(conditional, tmp_path / "rows", requests=_file(tmp_path, own), prompt="slow drum"))
    audio = _audio(tmp_path / "rows")
    assert audio == [made[1], *_made_by_the_core(conditional, own[1:])]
    assert len({made[0], *audio[1:]}) == 4
    generate(_options(conditional, tmp_path / "seeds", count=3, prompt="slow drum"))
    assert _audio(tmp_path / "seeds")[:2] == made
    with pytest.raises(ValueError, match="prompt is 'slow drum' in the folder, 'choir' in this job"):
        generate(_options(conditional, tmp_path / "seeds", count=3, prompt="choir"))


@pytest.mark.workers
@pytest.mark.soak
def test_workers_embed_many_conditions(
    local_ray: None, liked: Path, conditional: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    more = [{"prompt": f"{word} {number}"} for number in range(50) for word in ("slow", "drum", "choir")]
    file = _file(tmp_path, [*rows, *more])
    generate(_options(conditional, tmp_path / "out", requests=file, num_workers=2))
    assert _audio(tmp_path / "out")[: len(rows)] == _audio(liked)
    assert _audio(tmp_path / "out")[-3:] == _made_by_the_core(conditional, more[-3:])


@pytest.mark.soak_short
def test_audio_and_loops_on_an_object_store(
    store: Store, local_ray: None, liked: Path, conditional: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    bucket = store.make_bucket()
    Folder(bucket).write("take.flac", Path(rows[0]["like"]).read_bytes())
    file = _file(tmp_path, [{**rows[0], "like": f"{bucket}/take.flac"}, {"like": f"{bucket}/none.flac"}])
    options = _options(conditional, tmp_path, output_dir=f"{bucket}/out", requests=file, skip_bad=True)
    assert generate(options)["loops"] == 1
    assert Folder(f"{bucket}/out").read("audio/0000000001.wav") == _audio(liked)[0]
    assert not Folder(f"{bucket}/out").names("_conditions/**")
    assert generate(options)["failed"] == 1


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    file = tmp_path / "damaged.wav"
    file.write_bytes(b"RIFF, but no more")
    return file


def test_audio_that_nodes_do_not_share_is_refused(
    conditional: Path, few_loops: Path, tmp_path: Path, unshared: Path
) -> None:
    shutil.copy(few_loops / "loop_mika.flac", unshared)
    file = _file(tmp_path, [{"like": str(few_loops / "loop_tabla.flac")}, {"like": str(unshared / "loop_mika.flac")}])
    with pytest.raises(ValueError, match=f"^like {unshared} is missing on 1 of 2 nodes: use a path that"):
        generate(_options(conditional, tmp_path / "out", requests=file))
    assert not (tmp_path / "out" / "_plan").exists()


def test_bad_conditions_are_named_together(
    local_ray: None, conditional: Path, few_loops: Path, damaged: Path, tmp_path: Path
) -> None:
    take = str(few_loops / "loop_mika.flac")
    first: list[dict[str, Any]] = [
        {"like": take},
        {"like": "/none/there.wav"},
        {"like": take, "prompt": "choir"},
        {"like": take, "encoding": "one.wav"},
        {"like": "s3://key:secret@bucket/a.wav"},
        {"like": ""},
    ]
    with pytest.raises(ValueError, match="5 of 6 rows are bad") as raised:
        generate(_options(conditional, tmp_path / "out", requests=_file(tmp_path, first)))
    for words in (
        "row 2: like: /none/there.wav: no such file",
        "row 3: prompt: with like: both state the encoding",
        "row 4: like: with encoding: both state the encoding",
        "row 5: like: holds a query or a password",
        "row 6: like: string should have at least 1 character",
    ):
        assert words in str(raised.value)
    assert not (tmp_path / "out").exists()
    empty = tmp_path / "empty.wav"
    empty.write_bytes(b"")
    rows = [{"like": take}, {"like": str(damaged)}, {"like": str(empty)}]
    file = _file(tmp_path, rows)
    with pytest.raises(ValueError, match="2 of 3 rows are bad") as raised:
        generate(_options(conditional, tmp_path / "out", requests=file))
    assert f"row 2: like: {damaged}: " in str(raised.value)
    assert f"row 3: like: {empty}: " in str(raised.value)
    assert not (tmp_path / "out" / "_plan").exists()
    summary = generate(_options(conditional, tmp_path / "out", requests=file, skip_bad=True))
    assert (summary["loops"], summary["failed"]) == (1, 2)
    assert _manifest(tmp_path / "out")[1]["reason"].startswith(f"row 2: like: {damaged}: ")


def test_a_bad_condition_of_all_loops_is_named_once(
    local_ray: None, conditional: Path, of_audio: Path, encoder: Path, damaged: Path, tmp_path: Path
) -> None:
    for like, words in ((str(damaged), r"^like: .*damaged\.wav: "), ("/none.wav", r"^like /none\.wav: no such file")):
        with pytest.raises(ValueError, match=words):
            generate(_options(conditional, tmp_path / "out", count=1, like=like))
    with pytest.raises(ValueError, match=r"^prompt: the model's encoder audio-encoder:.* has no text side$"):
        generate(_options(of_audio, tmp_path / "out", count=1, prompt="choir", encoder=str(encoder)))
    file = _file(tmp_path, [{"prompt": "choir"}])
    with pytest.raises(ValueError, match=r"row 1: prompt: the model's encoder audio-encoder:.* has no text side$"):
        generate(_options(of_audio, tmp_path / "out", requests=file, encoder=str(encoder)))


def test_the_encoder_must_be_that_of_thesave_conditional(
    local_ray: None, conditional: Path, of_audio: Path, clap: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"^the encoder of the model, audio-encoder:encoder .*, cannot be loaded: set"):
        generate(_options(of_audio, tmp_path / "out", count=1, prompt="choir"))
    other, dim = tmp_path / "other", load_encoder(clap).dim
    shutil.copytree(clap, other)
    settings = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps({**settings, "hop_length": 80}))
    own, changed = (load_encoder(folder).digest for folder in (clap, other))
    with pytest.raises(ValueError, match=f"has the digest {changed}, the encoder of the model, clap:.*, has {own}: "):
        generate(_options(conditional, tmp_path / "out", count=1, prompt="choir", encoder=str(other)))
    unknown = save_conditional(tmp_path / "unknown", dim, None)
    with pytest.raises(ValueError, match="the model does not record its encoder: set encoder"):
        generate(_options(unknown, tmp_path / "out", count=1, prompt="choir"))
    generate(_options(unknown, tmp_path / "out", count=1, prompt="choir", encoder=str(clap)))
    assert _audio(tmp_path / "out") == _made_by_the_core(conditional, [{"prompt": "choir"}])
    wide = save_conditional(tmp_path / "wide", dim + 1, None)
    with pytest.raises(ValueError, match=f"computes {dim} values, the model takes {dim + 1}"):
        generate(_options(wide, tmp_path / "other-out", count=1, prompt="choir", encoder=str(clap)))


def test_unconditional_models_take_no_condition(local_ray: None, model: Path, tmp_path: Path) -> None:
    for name, value in (("like", "/a.wav"), ("prompt", "choir")):
        with pytest.raises(ValueError, match=f"^{name} {value}: the model is not conditional, omit it"):
            generate(_options(model, tmp_path / "out", count=1, **{name: value}))
        file = _file(tmp_path, [{name: value}])
        with pytest.raises(ValueError, match=f"row 1: {name}: {value}: the model is not conditional, omit it"):
            generate(_options(model, tmp_path / "out", requests=file))
    with pytest.raises(ValueError, match=r"^encoder a/e: the model is not conditional"):
        generate(_options(model, tmp_path / "out", requests=_file(tmp_path, [{}]), encoder="a/e"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 1, "like": "a.wav", "prompt": "b"}, "prompt with like: both state the encoding"),
        ({"count": 1, "encoder": "e"}, "encoder e is for like, prompt and requests"),
    ],
)
def test_options_that_contradict_each_other(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerateOptions(model="m", output_dir="o", **values)
