"""The model card: what the Hub shows of a model, and how it is loaded."""

import json
from typing import Any

from audiodiff_core.checkpoint.record import ModelRecord
from audiodiff_core.mel import MelConfig

PIPELINE_TAG = "audio-to-audio"
"""The nearest of the Hub's tasks: variations, in-painting and extension of audio; none of them is generation from nothing."""


def text(unet: Any, scheduler: Any, mel: MelConfig, vae: Any, record: ModelRecord) -> str:
    """Markdown with the Hub's metadata before it."""
    encoding_dim = unet.config.get("cross_attention_dim")
    tags = ["audiodiff", "audio", "mel-spectrogram", "audio-generation"]
    tags += ["unconditional-audio-generation"] if encoding_dim is None else ["conditional-audio-generation"]
    tags += [] if vae is None else ["latent-diffusion"]
    kind = f"{'Unconditional' if encoding_dim is None else 'Conditional'} {'' if vae is None else 'latent '}diffusion of mel spectrograms"
    networks = f"{_parameters(unet)} parameters" + (
        "" if vae is None else f" and {_parameters(vae)} in the autoencoder"
    )
    prediction = scheduler.config.get("prediction_type", "flow")
    facts = {
        "network": f"{type(unet).__name__}, {networks}",
        "predicts": f"{prediction} ({type(scheduler).__name__})",
        "conditioned by": "nothing"
        if encoding_dim is None
        else f"one encoding of {encoding_dim} numbers for each loop",
    }
    index = {"tags": tags, "library_name": "diffusers", "pipeline_tag": PIPELINE_TAG}
    return f"""---
{chr(10).join(f"{key}: {json.dumps(value)}" for key, value in index.items())}
---
# {kind}

Generates {mel.slice_duration_s:.2f} s of audio at {mel.sample_rate} Hz from {mel.x_res}x{mel.y_res} mel images.
Written by audiodiff {record.audiodiff_version}.

{_table("model", facts)}

{_table("mel configuration", mel.model_dump())}

## Loading

With audiodiff, where `SOURCE` is this folder or its Hugging Face id:

```python
from audiodiff_core.checkpoint import load_pipeline
from audiodiff_core.sampling import GenerateRequest
pipeline = load_pipeline(SOURCE)
```

With diffusers:

```python
from diffusers import AudioDiffusionPipeline
pipeline = AudioDiffusionPipeline.from_pretrained(SOURCE)
```

## Training

{_table("metric", {name: f"{value:g}" for name, value in record.metrics.items()}) if record.metrics else "No metrics are recorded."}

Data digest `{record.data_digest}`. Options:

```json
{json.dumps(record.recipe, indent=2, sort_keys=True)}
```
"""


def _table(title: str, rows: dict[str, Any]) -> str:
    return "\n".join([f"| {title} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _parameters(network: Any) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()):,}"
