"""Models on disk: every published layout is read, diffusers' pipeline folder is written, safetensors only.

load_model, load_pipeline, load_vae     from a folder, a URI or the Hub
save_model, upload_model, push_to_hub   to a folder, then a URI or the Hub
record_metrics                          into the record and the card of a model that is there
convert                                 from any layout to the one written here; also `python -m audiodiff_core.checkpoint`
"""

from audiodiff_core.checkpoint.convert import convert
from audiodiff_core.checkpoint.evaluated import record_metrics
from audiodiff_core.checkpoint.hub import push_to_hub
from audiodiff_core.checkpoint.load import Model, load_model, load_pipeline, load_vae
from audiodiff_core.checkpoint.record import MODEL_FORMAT_VERSION, ModelRecord
from audiodiff_core.checkpoint.save import save_model, save_vae, upload_model
from audiodiff_core.files.model_files import MODEL_INDEX, RECORD, CheckpointError

__all__ = [
    "MODEL_FORMAT_VERSION",
    "MODEL_INDEX",
    "RECORD",
    "CheckpointError",
    "Model",
    "ModelRecord",
    "convert",
    "load_model",
    "load_pipeline",
    "load_vae",
    "push_to_hub",
    "record_metrics",
    "save_model",
    "save_vae",
    "upload_model",
]
