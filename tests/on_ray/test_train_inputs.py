"""Inputs of training, checked against each other before any work on the cluster.

Each mistake is one line that names both sides.
"""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from audiodiff_core.checkpoint import EncoderRecord, ModelRecord, save_model, save_vae
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import build_network, build_vae, objective_for
from audiodiff_platform.entry.options import from_command_line, validated
from audiodiff_platform.mel_data.encodings import encoded_table
from audiodiff_platform.mel_data.mel_dataset import TRAIN_SPLIT, VALIDATION_SPLIT, MelDataset
from audiodiff_platform.mel_data.run_folder import PROGRESS
from audiodiff_platform.storage import Folder
from audiodiff_platform.train.autoencoder import train_vae
from audiodiff_platform.train.checkpoints import checkpoint_name, put_checkpoint
from audiodiff_platform.train.diffusion import require_device, train
from audiodiff_platform.train.inputs import load_training_inputs
from audiodiff_platform.train.options import TrainOptions, TrainVaeOptions
from audiodiff_platform.train.shared_steps import BYTES_PER_PARAMETER, require_space
from audiodiff_platform.train.worker_group import Group

DIM = 8


def _options(dataset: Path, output: Path, **changes: Any) -> TrainOptions:
    return validated(TrainOptions, {"dataset_name": str(dataset), "output_dir": str(output), **changes}, "test")


def _refused(dataset: Path, output: Path, words: str, **changes: Any) -> None:
    """Check that training is refused in one line with these words and writes nothing."""
    with pytest.raises(ValueError, match=words) as raised:
        train(_options(dataset, output, **changes))
    assert "\n" not in str(raised.value)
    assert not (output / "train.json").exists()


def _encodings(file: Path, names: list[str]) -> str:
    vectors = np.random.default_rng(0).standard_normal((len(names), DIM)).astype(np.float32)
    file.write_bytes(encoded_table(names, vectors, "clap:/home/me/mine", "0"))
    return str(file)


def _model(folder: Path, mel: MelConfig, preset: Any = "tiny", encoding_dim: int | None = None) -> str:
    torch.manual_seed(1)
    network = build_network(preset, mel, encoding_dim=encoding_dim)
    save_model(
        folder,
        network,
        objective_for(preset, prediction_type="epsilon").scheduler("ddpm"),
        mel,
        ModelRecord(recipe={}, data_digest="", metrics={}),
    )
    return str(folder)


def test_encodings_that_miss_files_are_named(dataset: Path, tmp_path: Path) -> None:
    names = sorted(MelDataset(str(dataset)).audio_files())
    partial = _encodings(tmp_path / "some.parquet", names[1:])
    _refused(
        dataset,
        tmp_path / "run",
        rf"^encodings {partial}: no encoding for {names[0]}: encode the dataset",
        preset="tiny-conditional",
        encodings=partial,
    )


def test_encodings_that_miss_held_out_files_are_named(held_out: Path, tmp_path: Path) -> None:
    trained, apart = (
        sorted(MelDataset(str(held_out), split).audio_files()) for split in (TRAIN_SPLIT, VALIDATION_SPLIT)
    )
    partial = _encodings(tmp_path / "some.parquet", trained + apart[1:])
    _refused(
        held_out,
        tmp_path / "run",
        rf"^encodings {partial}: no encoding for {apart[0]}: encode the dataset",
        preset="tiny-conditional",
        encodings=partial,
    )


def test_samples_come_with_the_encodings_of_their_files(dataset: Path, tmp_path: Path) -> None:
    data = MelDataset(str(dataset))
    names = sorted(data.audio_files())
    start = load_training_inputs(
        _options(dataset, tmp_path, preset="tiny-conditional", encodings=_encodings(tmp_path / "all.parquet", names))
    )
    batch = start.order(seed=0).batch(range(data.rows))
    assert start.of_files is not None
    assert batch.encodings is not None
    assert batch.images is not None
    own = {
        data.image(group, row).tobytes(): data.audio_file(group, row)
        for group, (_, _, rows) in enumerate(data.groups)
        for row in range(rows)
    }
    assert start.encoder == EncoderRecord(name="clap:mine", digest="0")
    expected = start.of_files.vectors_for([own[image.numpy().tobytes()] for image in batch.images])
    assert np.array_equal(batch.encodings, expected)
    assert data.audio_files() == set(data.column("audio_file"))


def test_conditional_presets_and_encodings_need_each_other(dataset: Path, tmp_path: Path) -> None:
    encodings = _encodings(tmp_path / "all.parquet", sorted(MelDataset(str(dataset)).audio_files()))
    _refused(dataset, tmp_path / "run", "preset tiny takes no encodings", encodings=encodings)
    _refused(
        dataset,
        tmp_path / "run",
        "preset tiny-conditional is conditional: pass encodings",
        preset="tiny-conditional",
    )
    model = _model(tmp_path / "conditional", MelDataset(str(dataset)).mel, "tiny-conditional", encoding_dim=5)
    _refused(
        dataset,
        tmp_path / "run",
        rf"^encodings {encodings} with from_pretrained {model}: the encodings have 8 values, the model takes 5: use",
        from_pretrained=model,
        encodings=encodings,
    )
    _refused(dataset, tmp_path / "run", "the model takes encodings of 5 values, set encodings$", from_pretrained=model)


def test_a_model_or_vae_of_another_mel_is_refused_with_both_values(dataset: Path, tmp_path: Path) -> None:
    mel = MelDataset(str(dataset)).mel
    other = mel.model_copy(update={"hop_length": 512, "n_iter": 1})
    model = _model(tmp_path / "model", other)
    _refused(
        dataset,
        tmp_path / "run",
        r"other mel parameters than those of the dataset \(hop_length 512, dataset: 1024\)",
        from_pretrained=model,
    )
    save_vae(tmp_path / "vae", build_vae("vae-tiny", mel))
    (tmp_path / "vae" / "mel_config.json").write_text(other.to_json())
    _refused(
        dataset,
        tmp_path / "run",
        r"hop_length 512, dataset: 1024",
        preset="tiny-latent",
        vae=str(tmp_path / "vae"),
    )


def test_a_model_is_gone_on_from_with_its_weights_and_objective(dataset: Path, tmp_path: Path) -> None:
    mel = MelDataset(str(dataset)).mel
    model = _model(tmp_path / "model", mel)
    start = load_training_inputs(_options(dataset, tmp_path, from_pretrained=model))
    torch.manual_seed(1)
    expected = build_network("tiny", mel).state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in start.network.state_dict().items())
    assert (start.objective.prediction_type, start.objective.zero_terminal_snr) == ("epsilon", False)
    changed = load_training_inputs(_options(dataset, tmp_path, from_pretrained=model, prediction_type="flow")).objective
    assert (changed.prediction_type, changed.clip_sample) == ("flow", False)
    _refused(dataset, tmp_path / "run", "leave preset out", from_pretrained=model, preset="tiny")
    words = (
        rf"^condition tempo with from_pretrained {model}: the model was trained with no measured conditions: "
        "omit condition, or train a conditional preset from scratch$"
    )
    _refused(dataset, tmp_path / "run", words, from_pretrained=model, condition="tempo")


def test_latents_need_the_vae_and_presets_their_kind(dataset: Path, tmp_path: Path) -> None:
    _refused(dataset, tmp_path / "run", "works on latents: pass the VAE that encodes them", preset="tiny-latent")
    save_vae(tmp_path / "vae", build_vae("vae-tiny", MelDataset(str(dataset)).mel))
    _refused(dataset, tmp_path / "run", "preset tiny works on images", vae=str(tmp_path / "vae"))
    _refused(dataset, tmp_path / "run", "the model also needs the vae", latents=str(tmp_path))


def test_other_inputs_of_the_same_name_are_another_training(dataset: Path, tmp_path: Path) -> None:
    names = sorted(MelDataset(str(dataset)).audio_files())
    options = _options(
        dataset, tmp_path, preset="tiny-conditional", encodings=_encodings(tmp_path / "all.parquet", names)
    )
    before = options.settings(**load_training_inputs(options).digests)
    (tmp_path / "all.parquet").write_bytes(encoded_table(names, np.ones((len(names), DIM), np.float32), "test", "0"))
    after = options.settings(**load_training_inputs(options).digests)
    assert {name for name in before if before[name] != after[name]} == {"encodings_digest"}


def test_dropout_without_encodings_is_refused(dataset: Path, tmp_path: Path) -> None:
    model = _model(tmp_path / "model", MelDataset(str(dataset)).mel)
    words = (
        f"^conditioning_dropout 0.1 with from_pretrained {model}: "
        "the model takes no encodings, leave conditioning_dropout out$"
    )
    _refused(dataset, tmp_path / "run", words, from_pretrained=model, conditioning_dropout=0.1)


def test_an_optimizer_that_no_worker_can_make_is_refused(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"optimizer": "adamw_8bit", "num_workers": 1}
    _refused(
        dataset,
        tmp_path / "run",
        "^optimizer adamw_8bit needs a CUDA GPU, and the cluster has none: use adamw$",
        **settings,
    )
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=r"^optimizer adamw_8bit needs the package bitsandbytes: pip install"):
        require_device(_options(dataset, tmp_path / "run", **settings), Group(workers=1, gpu=True))
    with pytest.raises(ValueError, match="adamw_8bit with fsdp: bitsandbytes cannot shard moments, use adamw"):
        _options(dataset, tmp_path / "run", fsdp=True, **settings)


def test_sharding_over_cpus_is_refused(local_ray: None, dataset: Path, tmp_path: Path) -> None:
    words = "^fsdp needs GPUs, and the workers run on CPUs: omit fsdp$"
    _refused(dataset, tmp_path / "run", words, fsdp=True, num_workers=1)


def test_images_that_the_discriminator_cannot_judge_are_refused(dataset: Path, tmp_path: Path) -> None:
    mel = json.loads((dataset / "mel_config.json").read_text())
    shutil.copytree(dataset, tmp_path / "small")
    (tmp_path / "small" / "mel_config.json").write_text(json.dumps({**mel, "y_res": 16}))
    options = {
        "dataset_name": str(tmp_path / "small"),
        "output_dir": str(tmp_path / "run"),
        "preset": "vae-tiny",
        "num_workers": 1,
    }
    with pytest.raises(
        ValueError,
        match=r"^images of 32x16 are too small for the discriminator, which needs 24: set adversarial_weight 0$",
    ):
        train_vae(validated(TrainVaeOptions, options, "test"))
    assert not (tmp_path / "run").exists()


def test_a_scheduler_that_does_not_suit_the_objective_is_refused_at_once(dataset: Path, tmp_path: Path) -> None:
    _refused(
        dataset,
        tmp_path / "run",
        "^scheduler ddim does not fit prediction_type flow: use flow_euler",
        prediction_type="flow",
        scheduler="ddim",
    )
    model = _model(tmp_path / "model", MelDataset(str(dataset)).mel)
    _refused(
        dataset,
        tmp_path / "run",
        "^scheduler flow_euler does not fit prediction_type epsilon",
        from_pretrained=model,
        scheduler="flow_euler",
    )


@pytest.mark.parametrize(
    "stated",
    [
        {"preset": "tiny"},
        {
            "prediction_type": "v_prediction",
            "zero_terminal_snr": True,
            "beta_schedule": "linear",
            "conditioning_dropout": 0.0,
        },
    ],
)
def test_a_default_and_its_statement_are_one_training(dataset: Path, tmp_path: Path, stated: dict[str, Any]) -> None:
    options, started = _options(dataset, tmp_path), {"data_digest": "0"}
    plain, spelled = options.resolved(options.objective()), _options(dataset, tmp_path, **stated)
    assert spelled.resolved(spelled.objective()).settings(**started) == plain.settings(**started)
    assert spelled.resolved(spelled.objective()).recipe() == plain.recipe()
    assert TrainOptions.model_validate(plain.model_dump(mode="json")).objective() == options.objective()
    other = _options(dataset, tmp_path, prediction_type="flow")
    assert other.resolved(other.objective()).settings(**started) != plain.settings(**started)


def test_what_is_learned_from_a_model_is_stated_too(dataset: Path, tmp_path: Path) -> None:
    names = sorted(MelDataset(str(dataset)).audio_files())
    model = _model(tmp_path / "model", MelDataset(str(dataset)).mel, "tiny-conditional", encoding_dim=DIM)
    given = {"from_pretrained": model, "encodings": _encodings(tmp_path / "all.parquet", names)}
    options = _options(dataset, tmp_path, **given)
    start = load_training_inputs(options)
    resolved = options.resolved(start.objective)
    assert (resolved.preset, resolved.prediction_type, resolved.conditioning_dropout) == (None, "epsilon", 0.1)
    assert (
        load_training_inputs(TrainOptions.model_validate(resolved.model_dump(mode="json"))).objective == start.objective
    )
    spelled = _options(dataset, tmp_path, **given, prediction_type="epsilon", conditioning_dropout=0.1)
    assert spelled.resolved(load_training_inputs(spelled).objective) == resolved


def test_another_scheduler_is_another_model_of_the_same_training(dataset: Path, tmp_path: Path) -> None:
    one, other = _options(dataset, tmp_path), _options(dataset, tmp_path, scheduler="ddpm", keep="best")
    assert one.settings(data_digest="0") == other.settings(data_digest="0")
    assert {name for name, value in one.recipe().items() if other.recipe()[name] != value} == {"scheduler", "keep"}


def test_the_best_needs_held_out_tracks(dataset: Path, tmp_path: Path) -> None:
    _refused(dataset, tmp_path / "run", f"^keep best: {dataset} has no held-out tracks", keep="best")


def test_the_best_by_distance_needs_previews(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="best_by frechet with preview_count 4: the Fréchet distance needs preview_count 64 or more"
    ):
        _options(dataset, tmp_path, keep="best", best_by="frechet")


def test_previews_that_cannot_be_compared_are_refused(dataset: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(dataset, other)
    (other / "mel_config.json").write_text(MelDataset(str(dataset)).mel.model_copy(update={"y_res": 24}).to_json())
    words = (
        "^preview_count 64: the Fréchet distance of 64 or more previews needs a multiple of 16 mel bands, "
        f"but {other} has 24: use at most 63$"
    )
    _refused(other, tmp_path / "run", words, preview_count=64)


def test_checkpoints_that_are_there_need_no_more_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, output = _options(tmp_path, tmp_path / "run"), Folder(str(tmp_path / "run"))
    checkpoint_bytes = 100 * BYTES_PER_PARAMETER
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * checkpoint_bytes))
    with pytest.raises(ValueError, match="training needs about"):
        require_space(options, output, parameters=100)
    for step in (10, 20, 30):
        put_checkpoint(
            output,
            checkpoint_name(step, "aaaa"),
            lambda folder: _fill(folder / "weights", checkpoint_bytes),
            {"step": step},
        )
    require_space(options, output, parameters=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=checkpoint_bytes - 1))
    with pytest.raises(ValueError, match="training needs about"):
        require_space(options, output, parameters=100)


def _fill(file: Path, size: int) -> None:
    file.write_bytes(bytes(size))


def test_resume_says_what_it_finds(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    _refused(dataset, run, "^resume must: .* holds no whole checkpoint: set resume auto", resume="must")
    put_checkpoint(Folder(str(run)), checkpoint_name(7, "aaaa"), lambda folder: None, {"step": 7})
    _refused(
        dataset,
        run,
        "^resume never: .* holds a checkpoint .state/step-000000007-aaaa.: use another folder",
        resume="never",
    )
    assert (run / "state" / "step-000000007-aaaa" / PROGRESS).exists()


@pytest.mark.parametrize(
    ("workers", "batch", "usable"),
    [("2:8", 16, [2, 3, 4, 5, 6, 7, 8]), ("3:5", 4, [3, 4]), ("3:3", 6, [3])],
)
def test_an_elastic_range_uses_every_number_up_to_the_batch(
    tmp_path: Path, workers: str, batch: int, usable: list[int]
) -> None:
    options = TrainOptions(dataset_name="x", output_dir=str(tmp_path), num_workers=workers, train_batch_size=batch)
    assert isinstance(options.num_workers, tuple)
    assert list(options.usable_workers(*options.num_workers)) == usable
    assert TrainOptions.model_validate(json.loads(options.model_dump_json())) == options
    assert TrainOptions.model_validate(options.model_dump()) == options


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--num_workers", "17:20", "--train_batch_size", "16"],
            r"num_workers 17: must be at most train_batch_size \(16\)",
        ),
        (["--num_workers", "4:2"], "num_workers 4:2: must be LOW:HIGH"),
        (["--num_workers", "0"], "num_workers 0: must be at least 1"),
        (["--num_workers", "5"], r"num_workers 5 needs 5 CPUs, the cluster has 4: use at most 4"),
        (
            ["--num_workers", "3", "--data_workers", "1"],
            r"num_workers 3 needs 6 CPUs, the cluster has 4: use at most 2$",
        ),
        (
            ["--num_workers", "1", "--data_workers", "4"],
            r"num_workers 1 needs 5 CPUs, the cluster has 4: set data_workers lower$",
        ),
        (["--accelerator_type", "A100"], "accelerator_type A100 needs GPUs, and the workers run on CPUs"),
        (["--device", "gpu"], "num_workers 1 needs 1 GPUs, the cluster has 0: set device cpu"),
        (
            ["--mixed_precision", "fp16"],
            "mixed_precision fp16 needs a GPU, and the workers run on CPUs: use bf16 or no, in another folder if",
        ),
        (
            ["--num_workers", "17", "--train_batch_size", "16"],
            r"num_workers 17: must be at most train_batch_size \(16\), because each worker needs a sample",
        ),
        (
            ["--report_to", "wandb"],
            "report_to wandb: wandb cannot be imported: pip install 'audiodiff\\[wandb\\]', or set report_to none",
        ),
        (["--prediction_type", "epsilon", "--zero_terminal_snr", "true"], "epsilon cannot have zero_terminal_snr"),
        (["--prediction_type", "flow", "--min_snr_gamma", "5"], r"prediction_type flow cannot have min_snr_gamma 5\.0"),
    ],
)
def test_mistakes_of_the_command_line(dataset: Path, tmp_path: Path, flags: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        train(
            from_command_line(
                TrainOptions,
                "train",
                ["--dataset_name", str(dataset), "--output_dir", str(tmp_path / "run"), *flags],
                "",
            )
        )
    assert not (tmp_path / "run" / "train.json").exists()


def test_names_of_trackers_in_one_or_several_flags(tmp_path: Path) -> None:
    def trackers(*flags: str) -> tuple[str, ...]:
        return from_command_line(
            TrainOptions, "train", ["--dataset_name", "x", "--output_dir", str(tmp_path), *flags], ""
        ).report_to

    assert trackers() == ("tensorboard",)
    assert trackers("--report_to", "none") == ()
    assert (
        trackers("--report_to", "tensorboard,mlflow")
        == trackers("--report_to", "tensorboard", "--report_to", "mlflow")
        == ("tensorboard", "mlflow")
    )


def test_an_unreachable_bucket_is_named(dataset: Path, stores: Any) -> None:
    for uri in ("s3://no-such-bucket-anywhere/run", "gs://no-such-bucket-anywhere/run"):
        with pytest.raises(OSError, match="no-such-bucket-anywhere"):
            train(_options(dataset, Path("unused"), num_workers=1).model_copy(update={"output_dir": uri}))
