"""Options of the evaluate job."""

import pydantic

from audiodiff_core.evaluation.features import EMBEDDER
from audiodiff_platform.cluster.capacity import Device
from audiodiff_platform.entry.options import OutputOptions

REPORT = "report.json"
REFERENCE, CANDIDATE, HELD_OUT = "reference", "candidate", "held_out"


class EvaluateOptions(OutputOptions):
    """Options of the evaluate job: the sides to compare, and the method of the comparison."""

    reference: str = pydantic.Field(
        description="real audio, preferably the training data of the model: a mel dataset, or any audio input of "
        "prepare (path, s3://, gs://)"
    )
    candidate: str = pydantic.Field(
        description="generated audio: the output of generate, a folder of audio, or a mel dataset"
    )
    held_out: str | None = pydantic.Field(
        None,
        description="real audio that was not used for training, to measure how close new audio comes to the reference; "
        "of a mel dataset, the validation split is used if it has one; none: the validation split of the reference",
    )
    embedder: str = pydantic.Field(
        EMBEDDER, description=f"features of a slice: {EMBEDDER}, or an encoder, named as for encode"
    )
    mel_config: str | None = pydantic.Field(
        None,
        description="mel_config.json by which audio is cut and analyzed; none: that of a compared mel dataset or of "
        "the model",
    )
    model: str | None = pydantic.Field(
        None,
        description="folder of the model that generated the candidate (path, s3://, gs://); the figures are written to "
        "its record and its model card",
    )
    output_dir: str | None = pydantic.Field(
        None,
        description=f"folder for {REPORT}, which also lists the closest pairs of the samples; none: no report",
    )
    round_trips: int = pydantic.Field(
        128,
        ge=0,
        le=10_000,
        description="number of reference slices converted to audio by the vocoder and analyzed again, to measure the "
        "distance that the vocoder alone causes",
    )
    num_workers: int | None = pydantic.Field(
        None, ge=1, description="parallel workers with one CPU or GPU each; none: all that are not reserved"
    )
    device: Device = pydantic.Field(
        "auto", description="device of the workers: cpu, gpu, or auto to use GPUs if the cluster has any now"
    )
