"""Model card: the README.md that the Hugging Face Hub shows for a model."""

import json
from typing import Any

from audiodiff_core.checkpoint.record import ModelRecord
from audiodiff_core.mel import MelConfig
from audiodiff_core.models import UNFOLDED, beats_of, diffusers_class, fold_of

PIPELINE_TAG = "audio-to-audio"
"""Task on the Hub. The Hub has no task for unconditional audio generation, so the card names the most similar task."""

_LOADING = """from diffusers import AudioDiffusionPipeline
pipeline = AudioDiffusionPipeline.from_pretrained(SOURCE)"""
_FOLDED_LOADING = """import torch
from diffusers import DDIMPipeline
blocks = DDIMPipeline.from_pretrained(SOURCE)(num_inference_steps=50, output_type="np").images
blocks = torch.from_numpy(blocks).unflatten(3, ({bands}, {columns}))  # (1, rows, columns, *block), 0 to 1
images = blocks.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)  # (1, y_res, x_res)"""

_FOLDED_NETWORK_LOADING = """from diffusers import {network}
unet = {network}.from_pretrained(SOURCE, subfolder="unet")  # takes blocks(samples)
def blocks(samples):  # (batch, channels, height, width)
    samples = samples.unflatten(3, (-1, {columns})).unflatten(2, (-1, {bands}))
    return samples.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)"""


def text(unet: Any, scheduler: Any, mel: MelConfig, vae: Any, record: ModelRecord) -> str:
    """Write the card of a model as Markdown, with the Hub's metadata as a YAML header.

    Args:
        unet: The denoising network.
        scheduler: The scheduler that the model was trained with.
        mel: Parameters of the mel images.
        vae: The autoencoder of a latent model, or None.
        record: The record of the model's origin.
    """
    encoding_dim = unet.config.get("cross_attention_dim")
    tags = ["audiodiff", "audio", "mel-spectrogram", "audio-generation"]
    tags += ["unconditional-audio-generation"] if encoding_dim is None else ["conditional-audio-generation"]
    tags += [] if vae is None else ["latent-diffusion"]
    conditioning = "Unconditional" if encoding_dim is None else "Conditional"
    title = f"{conditioning} {'' if vae is None else 'latent '}diffusion of mel spectrograms"
    networks = f"{_parameters(unet)} parameters" + (
        "" if vae is None else f" and {_parameters(vae)} in the autoencoder"
    )
    prediction = scheduler.config.get("prediction_type", "flow")
    by = "nothing" if encoding_dim is None else f"one encoding of {encoding_dim} values per loop"
    facts = {
        "network": f"{diffusers_class(unet)}, {networks}",
        "predicts": f"{prediction} ({type(scheduler).__name__})",
        "conditioned by": by if record.conditions is None else ", ".join(record.conditions.names),
    }
    bands, columns = fold = fold_of(unet)
    if fold != UNFOLDED:
        facts["works on"] = f"blocks of {bands} bands and {columns} columns, one channel for each pixel"
    if unet.config.get("class_embed_type"):
        beats = ", and the cosine and sine of the phase of the beat at each column, as channels after the blocks"
        facts["also takes"] = "its encoding as class_labels" + (beats if beats_of(unet) else "")
    loading = _LOADING
    if fold != UNFOLDED:  # no pipeline of diffusers unfolds samples, and DDIMPipeline takes unconditional images only
        is_ddim_image = encoding_dim is None and vae is None and prediction != "flow"
        template = _FOLDED_LOADING if is_ddim_image else _FOLDED_NETWORK_LOADING
        loading = template.format(bands=bands, columns=columns, network=diffusers_class(unet))
    metadata = {"tags": tags, "library_name": "diffusers", "pipeline_tag": PIPELINE_TAG}
    metrics = {name: f"{value:g}" for name, value in record.metrics.items()}
    return f"""---
{chr(10).join(f"{key}: {json.dumps(value)}" for key, value in metadata.items())}
---
# {title}

Generates {mel.slice_duration_s:.2f} s of audio at {mel.sample_rate} Hz from {mel.x_res}x{mel.y_res} mel images.
Written by audiodiff {record.audiodiff_version}.

{_table("model", facts)}

{_table("mel configuration", mel.model_dump())}

## Loading

With audiodiff, where `SOURCE` is this folder or its Hugging Face id:

```python
from audiodiff_core import load_pipeline
from audiodiff_core.sampling import GenerateRequest
pipeline = load_pipeline(SOURCE)
```

With diffusers:

```python
{loading}
```

## Training

{_table("metric", metrics) if metrics else "No metrics are recorded."}

Data digest `{record.data_digest}`. Options:

```json
{json.dumps(record.recipe, indent=2, sort_keys=True)}
```
"""


def _table(title: str, rows: dict[str, Any]) -> str:
    return "\n".join([f"| {title} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _parameters(network: Any) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()):,}"
