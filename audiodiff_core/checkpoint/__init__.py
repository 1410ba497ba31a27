"""Loading and saving of models.

All published layouts can be loaded. Models are saved as diffusers pipeline folders, with weights as safetensors.

load_model, load_vae, load_outline      Load from a folder, a URI or the Hub.
save_model, save_vae                    Save to a local folder.
upload_model, push_to_hub               Upload a saved folder to a URI or to the Hub.
record_metrics                          Add metrics to the record and the card of a saved model.
convert                                 Convert any layout to the saved layout. Also available on the command line:
                                        `python -m audiodiff_core.checkpoint`
"""

from audiodiff_core.checkpoint.convert import convert
from audiodiff_core.checkpoint.evaluated import record_metrics
from audiodiff_core.checkpoint.hub import push_to_hub
from audiodiff_core.checkpoint.load import Model, ModelOutline, load_model, load_outline, load_vae
from audiodiff_core.checkpoint.record import MODEL_FORMAT_VERSION, EncoderRecord, ModelRecord
from audiodiff_core.checkpoint.save import save_model, save_vae, upload_model
from audiodiff_core.files.model_files import MODEL_INDEX, RECORD, CheckpointError

__all__ = [
    "MODEL_FORMAT_VERSION",
    "MODEL_INDEX",
    "RECORD",
    "CheckpointError",
    "EncoderRecord",
    "Model",
    "ModelOutline",
    "ModelRecord",
    "convert",
    "load_model",
    "load_outline",
    "load_vae",
    "push_to_hub",
    "record_metrics",
    "save_model",
    "save_vae",
    "upload_model",
]
