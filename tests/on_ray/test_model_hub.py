"""Models on the local Hub, in a process that knows it by the usual variables alone: published in one commit, read in either kind of weights."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests import published
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
assert torch.equal(AudioDiffusionPipeline.from_pretrained("tester/loops").vqvae.quant_conv.weight, model.vae.quant_conv.weight)
push_to_hub(pixel, "tester/loops", private=False)
assert load_model("tester/loops").vae is None

HfApi().create_repo("old")
HfApi().upload_folder(repo_id="tester/old", folder_path=pickled)
changes = []
assert load_model("tester/old", changes).digest == load_model(pickled).digest
assert "unet: pickle -> safetensors" in changes and "vqvae: pickle -> safetensors" in changes
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


def test_models_are_published_and_read(hub: Hub, tmp_path: Path) -> None:
    from audiodiff_core.checkpoint import convert

    torch.set_num_threads(1)
    folders = {}
    for kind, name in (("latent", "latent-audio-diffusion-256"), ("pixel", "audio-diffusion-256")):
        model = BY_NAME[name]
        source = published.write(tmp_path / "published" / kind, model, "D", Networks.build(model, divisor=16))
        convert(source, tmp_path / kind)
        folders[kind] = tmp_path / kind
    command = [sys.executable, "-c", PUBLISH_AND_READ, str(folders["latent"]), str(folders["pixel"]), str(tmp_path / "published" / "latent")]
    done = subprocess.run(command, env=os.environ | hub.environment(tmp_path / "cache"), capture_output=True, text=True, check=False)
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
