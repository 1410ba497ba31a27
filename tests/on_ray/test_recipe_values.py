"""Options in a recipe and on the command line: the same text has the same meaning or error."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from audiodiff_platform.entry.options import SECTIONS, Options, from_command_line, load_recipe, read_recipe
from audiodiff_platform.generate.options import GenerateOptions
from audiodiff_platform.prepare.job import PrepareOptions
from audiodiff_platform.serve.options import ServeOptions
from audiodiff_platform.train.options import TrainOptions

Value = str | Sequence[str]
Stated = Mapping[str, Value]

SLICING: Stated = {"overlap": ".5", "tail": "pad", "reference": "track", "silence_threshold_db": "-6e1"}
RUN: Stated = {
    "validate_in": "task",
    "dataset_name": "2026-11-25",
    "mel_config": "on",
    "output_dir": "010",
    "resume": "must",
    "max_train_steps": "1_000",
    "num_epochs": "010",
    "max_train_minutes": "1e-1",
    "train_batch_size": "8",
    "gradient_accumulation_steps": "+2",
    "learning_rate": "1e-3",
    "lr_warmup_steps": "0",
    "mixed_precision": "bf16",
    "checkpoint_minutes": "2.",
    "checkpoints_kept": "3",
    "report_to": ["mlflow", "trackio"],
    "seed": "010",
    "num_workers": "2:8",
    "device": "cpu",
    "accelerator_type": "1e3",
    "data_workers": "0",
    "take_over": "true",
    "lr_scheduler": "linear",
    "ema_decay": ".9",
    "gradient_checkpointing": "true",
}
NOT_THE_DEFAULT: Mapping[str, Stated] = {
    "prepare": {
        **SLICING,
        "input_dir": "yes",
        "output_dir": "1:30",
        "resolution": "64,64",
        "sample_rate": "44_100",
        "hop_length": "0256",
        "n_fft": "1024",
        "validation_fraction": ".1",
        "drop_duplicates": "true",
        "measure": "false",
        "max_bad_fraction": "1e-2",
        "shard_minutes": "1e1",
        "num_workers": "2",
        "take_over": "true",
        "verify": "true",
        "push_to_hub": "owner/name",
    },
    "train": {
        **RUN,
        "preset": "ddpm-64",
        "from_pretrained": "off",
        "vae": "0x10",
        "latents": "n",
        "encodings": "y",
        "condition": ["brightness", "key,tempo"],
        "prediction_type": "v_prediction",
        "zero_terminal_snr": "yes",
        "beta_schedule": "squaredcos_cap_v2",
        "min_snr_gamma": "5e0",
        "timestep_sampling": "uniform",
        "conditioning_dropout": ".2",
        "scheduler": "ddpm",
        "optimizer": "adamw_8bit",
        "max_gradient_norm": "5e-1",
        "torch_compile": "true",
        "fsdp": "true",
        "keep": "best",
        "best_by": "frechet",
        "push_to_hub": "owner/name",
        "preview_count": "0",
    },
    "train_vae": {
        **RUN,
        "preset": "vae-tiny",
        "kl_weight": "1e-3",
        "spectral_weight": ".25",
        "adversarial_weight": "0",
        "adversarial_start": "1_000",
    },
    "encode": {
        "dataset_name": "2026-11-25",
        "input_dir": "no",
        "output_dir": "=",
        "encoder": "on",
        "latents": "true",
        "vae": "off",
        "max_bad_fraction": "1e-2",
        "num_workers": "2",
        "device": "cpu",
        "take_over": "true",
    },
    "generate": {
        "model": "12:30:45",
        "output_dir": "010",
        "requests": "off",
        "skip_bad": "true",
        "verify": "true",
        "report": "true",
        "sweep": ["eta=0"],
        "input_dir": "no",
        "strength": ".5",
        "encodings": "1e3",
        "like": "0x10",
        "prompt": "no",
        "encoder": "1:30",
        "count": "1_000",
        "seed": "010",
        "format": "flac",
        "normalize": "lufs:-14",
        "name": "take-{id}",
        "pictures": "true",
        "reject": ["silence,clipping", "seam"],
        "min_level_db": "-6e1",
        "max_clipped_share": ".01",
        "max_seam_score": "2e0",
        "min_duplicate_distance": ".1",
        "reference": "no",
        "min_copy_distance": ".2",
        "copy_quantile": ".05",
        "best_of": "0_4",
        "best_by": "level",
        "batch_size": "4",
        "precision": "bf16",
        "compiled": "true",
        "num_workers": "2",
        "device": "cpu",
        "node_price": "1.5e0",
        "take_over": "true",
        "steps": "1_0",
        "scheduler": "ddpm",
        "eta": ".5",
        "guidance_scale": "2e0",
        "guidance_rescale": ".7",
        "width": "064",
        "duration_s": "1_0.5",
        "bars": "0_4",
        "bpm": "120",
        "key": "f#m",
        "loudness": "-2e1",
        "brightness": "1_500",
        "seamless": "true",
    },
    "evaluate": {
        "reference": "no",
        "candidate": "yes",
        "held_out": "off",
        "embedder": "on",
        "mel_config": "1.5",
        "model": "010",
        "output_dir": "=",
        "round_trips": "1_0",
        "num_workers": "2",
        "device": "cpu",
        "take_over": "true",
    },
    "serve": {
        "model": ["a=no", "b=2:8"],
        "encoder": ["c=off", "d=1:30"],
        "min_encoding_replicas": "0",
        "max_encoding_replicas": "2",
        "host": "0.0.0.0",
        "port": "08001",
        "batch_size": "4",
        "precision": "fp16",
        "device": "gpu",
        "compiled": "true",
        "min_replicas": "0",
        "max_replicas": "2",
        "gpus_per_replica": ".25",
        "max_models": "2",
        "queue_batches": "0",
        "max_wait_s": "2.5",
        "request_timeout_s": "1e2",
        "max_steps": "500",
        "max_duration_s": "60",
        "max_upload_mb": "64",
        "key_file": "keys",
        "requests_per_minute": "6e1",
        "concurrent_requests": "3",
        "audio_s_per_minute": "60.5",
        "audio_s_per_hour": "1_000",
        "results_dir": "=results",
        "results_ttl_s": "3600",
        "results_gb": ".5",
        "allow_origin": ["https://example.com", "http://127.0.0.1:3000"],
        "yaml": "on",
    },
}
REQUIRED: Mapping[str, Stated] = {
    "prepare": {"input_dir": "in", "output_dir": "out"},
    "train": {"dataset_name": "data", "output_dir": "out"},
    "train_vae": {"dataset_name": "data", "output_dir": "out"},
    "encode": {"input_dir": "in", "encoder": "e", "output_dir": "out"},
    "generate": {"model": "m", "output_dir": "out", "count": "3"},
    "evaluate": {"reference": "r", "candidate": "c"},
    "serve": {"model": ["m=path"]},
}
BESIDE: Mapping[tuple[str, str], Stated] = {
    ("train", "latents"): {"vae": "v"},
    ("train", "best_by"): {"preview_count": "64"},
    ("encode", "vae"): {"latents": "true"},
    ("generate", "requests"): {"count": "none"},
    ("generate", "skip_bad"): {"input_dir": "in"},
    ("generate", "strength"): {"input_dir": "in"},
    ("generate", "encodings"): {"requests": "r.jsonl", "count": "none"},
    ("generate", "encoder"): {"like": "a.wav"},
    ("generate", "bars"): {"bpm": "120"},
    ("generate", "min_level_db"): {"reject": ["silence"]},
    ("generate", "max_clipped_share"): {"reject": ["clipping"]},
    ("generate", "max_seam_score"): {"reject": ["seam"]},
    ("generate", "min_duplicate_distance"): {"reject": ["duplicate"]},
    ("generate", "reference"): {"reject": ["copy"]},
    ("generate", "min_copy_distance"): {"reject": ["copy"], "reference": "data"},
    ("generate", "copy_quantile"): {"reject": ["copy"], "reference": "data"},
    ("generate", "best_by"): {"best_of": "4"},
    ("generate", "bpm"): {"bars": "4"},
    ("train", "conditioning_dropout"): {"preset": "tiny-conditional"},
}
ENCODE_LATENTS: Stated = {"dataset_name": "data", "output_dir": "out", "latents": "true", "vae": "v"}
SPELLINGS = (
    *("2:8", "8:2", "1:30", "12:30:45", "2026-11-25", "2026-11-25 10:00:00"),
    *(
        "no",
        "No",
        "NO",
        "off",
        "yes",
        "on",
        "y",
        "n",
        "true",
        "True",
        "false",
        "FALSE",
        "none",
        "None",
        "null",
        "NULL",
        "~",
        "=",
        "<<",
    ),
    *("010", "0o17", "0x10", "0b11", "1_000", "+5", "-1", "0", "1", "16", "64,64", "256", "64.0"),
    *("1e-4", "1E-4", "1.0e-3", "1e3", "-6e1", "-.5", ".1", "5.", ".inf", "-.inf", ".nan", "inf", "nan"),
)


@cache
def _options(section: str) -> type[Options]:
    module, _, name = SECTIONS[section].partition(":")
    options: type[Options] = getattr(import_module(module), name)
    return options


def _valued(section: str) -> list[str]:
    """Return the options that take a value; the others are switches."""
    return [name for name, field in _options(section).model_fields.items() if field.annotation is not bool]


def _recipe(folder: Path, section: str, stated: Stated, quote: str = "") -> Path:
    """Write a recipe with one section, its scalars plain or quoted."""

    def written(value: Value) -> str:
        return (
            f"{quote}{value}{quote}"
            if isinstance(value, str)
            else "".join(f"\n    - {quote}{item}{quote}" for item in value)
        )

    file = folder / "recipe.yaml"
    file.write_text(f"{section}:\n" + "".join(f"  {name}: {written(value)}\n" for name, value in stated.items()))
    return file


def _flags(section: str, stated: Stated) -> list[str]:
    flags: list[str] = []
    for name, value in stated.items():
        if _options(section).model_fields[name].annotation is bool:
            flags.append({"true": f"--{name}", "false": f"--no-{name}"}[str(value)])
        else:
            for text in [value] if isinstance(value, str) else value:
                flags += [f"--{name}", text]
    return flags


def _outcome(section: str, arguments: list[str], origin: str) -> Options | str:
    """Return the options, or the error message without the place of the values."""
    try:
        return from_command_line(_options(section), section, arguments, "")
    except ValueError as mistake:
        message = str(mistake)
    assert "\n" not in message
    assert origin in message
    return message.replace(origin, "")


def _from_flags(section: str, stated: Stated) -> Options | str:
    return _outcome(section, _flags(section, stated), "command line")


def _from_recipe(folder: Path, section: str, stated: Stated, quote: str = "") -> Options | str:
    file = _recipe(folder, section, stated, quote)
    return _outcome(section, ["--recipe", str(file)], f"{file}, section {section}")


def _types(options: Options | str) -> str:
    """Return values with their types, so that 1 differs from True."""
    return options if isinstance(options, str) else json.dumps(options.model_dump(mode="json"))


@pytest.mark.parametrize("section", SECTIONS)
def test_every_option_has_a_value_in_the_table(section: str) -> None:
    assert set(NOT_THE_DEFAULT[section]) == set(_options(section).model_fields)


@pytest.mark.parametrize(
    ("section", "name"), [(section, name) for section, stated in NOT_THE_DEFAULT.items() for name in stated]
)
@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_a_value_is_the_same_in_a_recipe_and_as_a_flag(tmp_path: Path, section: str, name: str, quote: str) -> None:
    beside = BESIDE.get((section, name), {})
    stated = {
        **(ENCODE_LATENTS if section == "encode" and "latents" in {name, *beside} else REQUIRED[section]),
        **beside,
        name: NOT_THE_DEFAULT[section][name],
    }
    flags = _from_flags(section, stated)
    assert isinstance(flags, Options), flags
    field = _options(section).model_fields[name]
    assert field.is_required() or getattr(flags, name) != field.get_default(call_default_factory=True)
    assert _types(_from_recipe(tmp_path, section, stated, quote)) == _types(flags)
    (loaded,) = load_recipe(tmp_path / "recipe.yaml").values()
    assert loaded == flags


@cache
def _one_of_each_type() -> dict[str, list[str]]:
    """Return an option of each type by section, of those that have the type the first one."""
    found: dict[str, tuple[str, str]] = {}
    for section in SECTIONS:
        fields = _options(section).model_fields
        for name in _valued(section):
            found.setdefault(str((fields[name].annotation, fields[name].metadata)), (section, name))
    return {section: [name for place, name in found.values() if place == section] for section in SECTIONS}


@pytest.mark.parametrize("section", SECTIONS)
def test_any_spelling_has_the_same_outcome_in_a_recipe_and_as_a_flag(tmp_path: Path, section: str) -> None:
    for name in _one_of_each_type()[section]:
        for text in SPELLINGS:
            stated = {**REQUIRED[section], name: text}
            assert _types(_from_recipe(tmp_path, section, stated)) == _types(_from_flags(section, stated)), (name, text)


@pytest.mark.parametrize("section", SECTIONS)
def test_values_left_out_and_empty_ones(tmp_path: Path, section: str) -> None:
    for name in _valued(section):
        stated = {**REQUIRED[section], name: ""}
        assert _types(_from_recipe(tmp_path, section, stated)) == _types(
            _from_flags(section, {**stated, name: "null"})
        ), name
        assert (
            _from_recipe(tmp_path, section, stated, "'")
            == _from_flags(section, stated)
            == f": {name} is empty: set a value, or none to unset the option"
        )


def test_what_spellings_mean() -> None:
    def trained(**stated: str) -> TrainOptions:
        options = _from_flags("train", {**REQUIRED["train"], **stated})
        assert isinstance(options, TrainOptions), options
        return options

    assert trained(num_workers="2:8").num_workers == (2, 8)
    assert trained(num_workers="None").num_workers is None
    assert trained(mixed_precision="no").mixed_precision == "no"
    assert trained(learning_rate="1e-4").learning_rate == 1e-4
    assert trained(seed="010", max_train_steps="1_000").seed == 10
    assert trained(max_train_steps="1_000").max_train_steps == 1_000
    assert trained(vae="~", preset="null").vae is None
    assert trained(report_to="none").report_to == trained(report_to="null").report_to == ()
    assert "report_to.0 is 'off': input should be 'tensorboard'" in str(
        _from_flags("train", {**REQUIRED["train"], "report_to": "off"})
    )
    assert "output_dir is None: input should be a valid string" in str(
        _from_flags("train", {**REQUIRED["train"], "output_dir": "none"})
    )


@pytest.mark.parametrize("section", SECTIONS)
def test_switches(tmp_path: Path, section: str) -> None:
    for name in _options(section).model_fields.keys() - set(_valued(section)):
        stated = ENCODE_LATENTS if name == "latents" else REQUIRED[section]
        for text, flag in (
            ("true", "true"),
            ("True", "true"),
            ("false", "false"),
            ("no", "false"),
            ("off", "false"),
            ("yes", "true"),
        ):
            assert _from_recipe(tmp_path, section, {**stated, name: text}) == _from_flags(
                section, {**stated, name: flag}
            )
        assert f"{name} is 'maybe': input should be a valid boolean" in str(
            _from_recipe(tmp_path, section, {**stated, name: "maybe"})
        )


def test_values_that_begin_with_a_dash(tmp_path: Path) -> None:
    stated = {**REQUIRED["prepare"], "input_dir": "-music", "silence_threshold_db": "-6e1"}
    options = _from_flags("prepare", stated)
    assert isinstance(options, PrepareOptions)
    assert (options.input_dir, options.silence_threshold_db) == ("-music", -60)
    assert _from_recipe(tmp_path, "prepare", stated) == options
    with pytest.raises(ValueError, match="argument --input_dir: expected one argument"):
        from_command_line(PrepareOptions, "prepare", ["--input_dir", "--verify"], "")


def test_several_values_by_commas_lists_and_flags(tmp_path: Path) -> None:
    names = ("mlflow", "trackio")
    for value in (names, "mlflow,trackio"):
        stated = {**REQUIRED["train"], "report_to": value}
        for options in (_from_recipe(tmp_path, "train", stated), _from_flags("train", stated)):
            assert isinstance(options, TrainOptions)
            assert options.report_to == names
    for value in ("{tensorboard: 1}", "[[tensorboard]]"):
        assert "report_to" in str(_from_recipe(tmp_path, "train", {**REQUIRED["train"], "report_to": value}))
    served = _from_recipe(tmp_path, "serve", {"model": "a=no"})
    assert isinstance(served, ServeOptions)
    assert served.model == ("a=no",)


def test_a_list_or_mapping_for_one_value(tmp_path: Path) -> None:
    for value in ("[1, 2]", "{a: 1}", "[[[]]]"):
        for name in ("count", "model", "steps", "format", "compiled"):
            assert f"{name} is " in str(_from_recipe(tmp_path, "generate", {**REQUIRED["generate"], name: value}))


def test_a_mistake_is_said_to_be_where_it_is(tmp_path: Path) -> None:
    file = _recipe(tmp_path, "generate", {"model": "m", "output_dir": "out", "count": "many", "eta": "1"})
    with pytest.raises(ValueError, match="count is 'many'") as raised:
        from_command_line(GenerateOptions, "generate", ["--recipe", str(file), "--steps", "few", "--eta", "2"], "")
    origins = {problem.partition(" is ")[0] for problem in str(raised.value).split("; ")}
    assert origins == {f"{file}, section generate: count", "command line: steps", "command line: eta"}


def test_flow_style_anchors_and_merge_keys(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "train: &run {dataset_name: data, output_dir: one, num_workers: 2:8, mixed_precision: no, vae: }\n"
        "train_vae:\n  <<: *run\n  output_dir: two\n  preset: vae-tiny\n  vae: &nothing null\n"
    )
    sections = read_recipe(file)
    assert sections["train"] == {
        "dataset_name": "data",
        "output_dir": "one",
        "num_workers": "2:8",
        "mixed_precision": "no",
        "vae": "null",
    }
    assert sections["train_vae"] == {**sections["train"], "output_dir": "two", "preset": "vae-tiny"}
    assert load_recipe(_recipe(tmp_path, "generate", {"<<": "{model: m, count: 3}", "output_dir": "out"})) == {
        "generate": GenerateOptions(model="m", output_dir="out", count=3)
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_of_a_recipe(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes("prepare: {input_dir: Größe, output_dir: out}\n".encode(encoding))
    assert read_recipe(file) == {"prepare": {"input_dir": "Größe", "output_dir": "out"}}


@pytest.mark.parametrize("text", ["", "# nothing\n", "\ufeff", "---\n...\n", "---\n# nothing\n"])
def test_an_empty_recipe_has_no_sections(tmp_path: Path, text: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(text.encode())
    assert read_recipe(file) == {}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"train: {seed: 1, vae: a, seed: 2}", "line 1, column 26: key seed is repeated"),
        (b"train:\n  seed: 1\n  'seed': 2\n", "line 3, column 3: key seed is repeated"),
        (b"train: {seed: 1}\nprepare: {}\ntrain: {seed: 2}\n", "line 3, column 1: key train is repeated"),
        (b"train: {? [a] : 1}", "found unhashable key"),
        (b"train: {vae: !!python/object:os.system x}", "could not determine a constructor for the tag"),
        (b"train: {vae: !!binary aGk=}", "could not determine a constructor for the tag"),
        (b"train: {vae: !env HOME}", "could not determine a constructor for the tag '!env'"),
        (b"train: {vae: *nowhere}", "found undefined alias"),
        (b"train: {}\n---\ntrain: {}\n", "found another document"),
        (b"train: {vae: " + b"[" * 5_000, "nested too deeply"),
        (b"train: {vae: @x}", "cannot start any token"),
        ("train: {vae: Größe}".encode("latin1"), "save it as UTF-8"),
        (b"train: {vae: \0}", "position 13"),
        (b"train:\n", "section train is a text: must be a mapping of options"),
        (b"train: [1]", "section train is a list"),
        (b"- train", "is a list, must be a mapping of sections"),
        (b"train", "is a text, must be a mapping of sections"),
        (b"1: {}", "section 1 is unknown"),
        (b"2026-11-25: {}", "section 2026-11-25 is unknown"),
    ],
)
def test_recipes_that_cannot_be_read(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="recipe ") as raised:
        read_recipe(file)
    message = str(raised.value)
    assert message.startswith(f"recipe {file}: ")
    assert words in message
    assert "\n" not in message


def test_keys_that_are_not_names(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("generate: {1: x, yes: y, ~: z}")
    with pytest.raises(ValueError, match=r"1 is unknown.*yes is unknown.*~ is unknown"):
        load_recipe(file)
