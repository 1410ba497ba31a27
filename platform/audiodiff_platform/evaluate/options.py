"""Options of the evaluate job."""

import pydantic

from audiodiff_core.evaluation.features import EMBEDDER
from audiodiff_platform.cluster.options import WorkerOptions
from audiodiff_platform.entry.options import OutputOptions
from audiodiff_platform.mel_data.loops_folder import EVALUATION

REPORT = EVALUATION
REFERENCE, CANDIDATE, HELD_OUT = "reference", "candidate", "held_out"


class EvaluateOptions(WorkerOptions, OutputOptions):
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
        description="real audio that was not used for training, which shows how near new audio is to the reference; "
        "only the validation split of a mel dataset is used, if it exists; none: the validation split of reference",
    )
    embedder: str = pydantic.Field(
        EMBEDDER, description=f"method that computes the features of slices: {EMBEDDER}, or an encoder as for encode"
    )
    mel_config: str | None = pydantic.Field(
        None,
        description="mel_config.json with the parameters for the analysis of audio files; none: the parameters of the "
        "compared mel datasets or of the model",
    )
    model: str | None = pydantic.Field(
        None,
        description="folder of the model that generated the candidate (path, s3://, gs://); the figures are written to "
        "its record and its model card",
    )
    output_dir: str | None = pydantic.Field(
        None,
        description=f"folder for {REPORT}, with the figures and the closest pairs of slices; none: no report",
    )
    round_trips: int = pydantic.Field(
        128,
        ge=0,
        le=10_000,
        description="number of reference slices that are converted to audio by the vocoder and analyzed again, to "
        "measure the distance that the vocoder alone causes",
    )
