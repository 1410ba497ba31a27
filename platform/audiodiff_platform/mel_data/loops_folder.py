"""The format of a folder of generated loops.

The job generate writes the folder. The job evaluate, reports and servers read it.
"""

import pyarrow as pa

LOOPS_FORMAT_VERSION = 4
LOOPS_SETTINGS = "generate.json"

MANIFEST_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.string()),
        ("kind", pa.string()),  # the columns up to `overlap` are the request; null where its kind has no such field
        ("seed", pa.int64()),
        ("steps", pa.int32()),
        ("scheduler", pa.string()),
        ("eta", pa.float64()),
        ("guidance_scale", pa.float64()),
        ("guidance_rescale", pa.float64()),
        ("width", pa.int32()),
        ("bars", pa.int32()),
        ("bpm", pa.float64()),
        ("requested_duration_s", pa.float64()),
        ("seamless", pa.bool_()),
        ("encoding", pa.string()),  # name of the encoding
        ("like", pa.string()),
        ("prompt", pa.string()),
        ("encoding_values", pa.list_(pa.float32())),
        ("source", pa.string()),
        ("sources", pa.list_(pa.string())),
        ("seeds", pa.list_(pa.int64())),
        ("position", pa.float64()),
        ("slice", pa.int64()),
        ("strength", pa.float64()),
        ("start_step", pa.int32()),
        ("regenerate", pa.list_(pa.list_(pa.float64()))),
        ("refinements", pa.int32()),
        ("overlap", pa.float64()),
        ("batch_size", pa.int32()),
        ("precision", pa.string()),
        ("device", pa.string()),
        ("compiled", pa.bool_()),
        ("threads", pa.int32()),
        ("model_digest", pa.string()),
        ("mel_digest", pa.string()),
        ("sha256", pa.string()),
        ("duration_s", pa.float64()),
        ("tempo_bpm", pa.float64()),  # null if no tempo was detected
        ("tempo_confidence", pa.float64()),
        ("seam_score", pa.float64()),
        ("level_db", pa.float64()),
        ("reason", pa.string()),  # why the loop could not be generated; such a loop has no file
    ],
    metadata={"audiodiff_format_version": str(LOOPS_FORMAT_VERSION)},
)
