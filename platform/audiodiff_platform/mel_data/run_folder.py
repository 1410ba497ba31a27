"""Names of the files and folders in the output folder of a training run."""

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"

STATE = "state"
VALIDATION_RESULTS = "validation"
IN_VALIDATION = "_in_validation"
PROGRESS = "progress.json"
EMA_WEIGHTS = "ema.safetensors"

MODEL = "model"

STARTS = "_starts.json"
