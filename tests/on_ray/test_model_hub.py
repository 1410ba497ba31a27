"""Models on the local Hub: published in one commit, and read with either kind of weights.

The clients run in a process that finds the Hub by the usual variables alone.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import published, tiny_clap
from tests.published import BY_NAME, Networks
from tests.servers.hub import Hub

PUBLISH_AND_READ = """
import os
import sys
from pathlib import Path

import huggingface_hub.constants
import torch
from diffusers import AudioDiffusionPipeline
from huggingface_hub import HfApi

from audiodiff_core.checkpoint import CheckpointError, load_model, load_vae, push_to_hub

torch.set_num_threads(1)
latent, pixel, pickled = (Path(folder) for folder in sys.argv[1:])
(pixel / "optimizer.bin").write_bytes(b"not for the Hub")

assert "/commit/" in push_to_hub(latent, "loops")
changes = []
model = load_model("tester/loops", changes)
assert (model.digest, changes) == (load_model(latent).digest, [])
vqvae = AudioDiffusionPipeline.from_pretrained("tester/loops").vqvae
assert torch.equal(vqvae.quant_conv.weight, model.vae.quant_conv.weight)
push_to_hub(pixel, "tester/loops", private=False)
assert load_model("tester/loops").vae is None

HfApi().create_repo("old")
HfApi().upload_folder(repo_id="tester/old", folder_path=pickled)
changes = []
assert load_model("tester/old", changes).digest == load_model(pickled).digest
assert "unet: converted a pickle to safetensors" in changes and "vqvae: converted a pickle to safetensors" in changes
assert torch.equal(load_vae("tester/old").quant_conv.weight, load_vae(pickled).quant_conv.weight)
HfApi().upload_file(path_or_fileobj=b"run me", path_in_repo="unet/diffusion_pytorch_model.bin", repo_id="tester/loops")
assert load_model("tester/loops").digest == load_model(pixel).digest
cached = {file.name for file in Path(os.environ["HF_HOME"]).glob("hub/models--tester--loops/snapshots/*/unet/*")}
assert cached == {"config.json", "diffusion_pytorch_model.safetensors"}, cached

huggingface_hub.constants.HF_HUB_OFFLINE = True
assert load_model("tester/loops").digest == load_model(pixel).digest
assert load_model("tester/old").digest == load_model(pickled).digest
huggingface_hub.constants.HF_HUB_OFFLINE = False

for name in ("tester/none", "no/such/model"):
    try:
        load_model(name)
    except CheckpointError as error:
        assert str(error).startswith(name + ": no such folder"), error
    else:
        raise AssertionError(name)
try:
    push_to_hub(pixel / "unet", "loops")
except CheckpointError as error:
    assert "model_index.json" in str(error)
else:
    raise AssertionError("no model")
"""


@pytest.mark.soak_short
def test_models_are_published_and_read(hub: Hub, tmp_path: Path) -> None:
    from audiodiff_core.checkpoint import convert

    torch.set_num_threads(1)
    folders = {}
    for kind, name in (("latent", "latent-audio-diffusion-256"), ("pixel", "audio-diffusion-256")):
        model = BY_NAME[name]
        source = published.write(tmp_path / "published" / kind, model, "D", Networks.build(model, divisor=16))
        convert(source, tmp_path / kind)
        folders[kind] = tmp_path / kind
    command = [
        sys.executable,
        "-c",
        PUBLISH_AND_READ,
        str(folders["latent"]),
        str(folders["pixel"]),
        str(tmp_path / "published" / "latent"),
    ]
    done = subprocess.run(
        command, env=os.environ | hub.environment(tmp_path / "cache"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert hub.commit_titles("models", "tester/loops")[:3] == ["initial commit", "Model", "Model"]
    assert hub.files("models", "tester/loops").keys() == {
        ".gitattributes",
        "README.md",
        "audiodiff.json",
        "model_index.json",
        "mel/mel_config.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.safetensors",
    }


READ_OTHER_WEIGHTS = """
import os
import sys
from pathlib import Path

import huggingface_hub.constants
import torch
from huggingface_hub import HfApi

from audiodiff_core.checkpoint import CheckpointError, load_model, load_vae, push_to_hub
from audiodiff_core.embeddings.encoder import load_encoder
from audiodiff_platform.cluster import usable_encoder, usable_path

torch.set_num_threads(1)
half, shards, clap = (Path(folder) for folder in sys.argv[1:])
address = os.environ["HF_ENDPOINT"]

push_to_hub(half, "half")
push_to_hub(shards, "shards")
HfApi().create_repo("clap")
HfApi().upload_folder(repo_id="tester/clap", folder_path=clap)


def read():
    for folder, name in ((half, "half"), (shards, "shards")):
        page = f"{address}/tester/{name}/tree/main?library=diffusers"
        for source in (f"tester/{name}", f"tester/{name}/", f"{address}/tester/{name}", page):
            assert load_model(source).digest == load_model(folder).digest, source
            assert usable_path("model", source, hub_id=True) == f"tester/{name}"
    assert torch.equal(load_vae(f"{address}/tester/shards").quant_conv.weight, load_vae(shards).quant_conv.weight)
    encoder = load_encoder(f"clap:{address}/tester/clap/tree/main")
    assert (encoder.digest, encoder.name) == (load_encoder(clap).digest, "clap:tester/clap")
    assert usable_encoder(f"clap:{address}/tester/clap/") == "clap:tester/clap"


read()
cached = {file.name for file in Path(os.environ["HF_HOME"]).glob("hub/models--tester--shards/snapshots/*/unet/*")}
assert cached == {file.name for file in (shards / "unet").iterdir()}, cached
cached_pickles = list(Path(os.environ["HF_HOME"]).glob("hub/models--tester--clap/snapshots/*/*.bin"))
assert not cached_pickles, "the pickle is not needed"
huggingface_hub.constants.HF_HUB_OFFLINE = True
read()
huggingface_hub.constants.HF_HUB_OFFLINE = False

push_to_hub(half, "shards")
assert load_model("tester/shards").digest == load_model(half).digest
assert {name for name in HfApi().list_repo_files("tester/shards") if "diffusion_pytorch_model" in name} == {
    "unet/diffusion_pytorch_model.fp16.safetensors", "vqvae/diffusion_pytorch_model.safetensors"
}
HfApi().delete_file("unet/diffusion_pytorch_model.fp16.safetensors", "tester/half")
try:
    load_model("tester/half")
except CheckpointError as error:
    assert "contains no diffusion_pytorch_model.safetensors" in str(error), error
else:
    raise AssertionError("no weights")
"""


@pytest.mark.soak_short
def test_half_precision_shards_and_addresses_are_read(hub: Hub, tmp_path: Path) -> None:
    from audiodiff_core.checkpoint import convert

    torch.set_num_threads(1)
    model = BY_NAME["latent-audio-diffusion-256"]
    source = published.write(tmp_path / "published", model, "D", Networks.build(model, divisor=16))
    folders = [tmp_path / "half", tmp_path / "shards"]
    for folder in folders:
        convert(source, folder)
        file = folder / "unet" / "diffusion_pytorch_model.safetensors"
        weights = {name: weight.clone() for name, weight in load_file(file).items()}
        file.unlink()
        if folder.name == "half":
            save_file(
                {name: weight.half() for name, weight in weights.items()},
                file.with_name("diffusion_pytorch_model.fp16.safetensors"),
            )
            continue
        for number in range(2):
            part = {name: weights[name] for name in sorted(weights)[number::2]}
            save_file(part, file.with_name(f"diffusion_pytorch_model-0000{number + 1}-of-00002.safetensors"))
        parts = {
            name: f"diffusion_pytorch_model-0000{index % 2 + 1}-of-00002.safetensors"
            for index, name in enumerate(sorted(weights))
        }
        file.with_name(f"{file.name}.index.json").write_text(json.dumps({"weight_map": parts}))
    tiny_clap.write(tmp_path / "clap", fused=False)
    torch.save(load_file(tmp_path / "clap" / "model.safetensors"), tmp_path / "clap" / "pytorch_model.bin")
    command = [sys.executable, "-c", READ_OTHER_WEIGHTS, *map(str, folders), str(tmp_path / "clap")]
    done = subprocess.run(
        command, env=os.environ | hub.environment(tmp_path / "cache"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
