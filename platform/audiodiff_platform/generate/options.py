"""Options of the verb `generate`."""

import math
from typing import Any, Self

import pydantic

from audiodiff_core.audio import AudioFormat
from audiodiff_core.checkpoint import Model
from audiodiff_core.loops.loudness import TargetLevel
from audiodiff_core.sampling import SamplingParameters
from audiodiff_core.sampling.conditions import Conditioned
from audiodiff_core.sampling.requests import SEEDS
from audiodiff_platform.cluster.options import ProfileOptions, WorkerOptions
from audiodiff_platform.entry.options import OutputOptions
from audiodiff_platform.generate.file_names import NameTemplate
from audiodiff_platform.generate.gate_options import GateOptions
from audiodiff_platform.mel_data.loops_folder import LOOPS_FORMAT_VERSION, LOOPS_PAGE

MAX_LOOPS = 10_000_000
"""Maximum number of loops in a folder. The driver keeps a list of their shards."""
SETTINGS = {"format", "normalize", "name", "pictures", "batch_size", "precision", "compiled"}
"""Options that determine the files of requests."""


class GenerateOptions(Conditioned, SamplingParameters, GateOptions, ProfileOptions, WorkerOptions, OutputOptions):
    """Options of generate: model, requests and their defaults, quality gate, output folder, workers."""

    model: str = pydantic.Field(
        "",
        description="model: a folder (train writes OUTPUT_DIR/model), an s3:// or gs:// URI, a Hugging Face id, or "
        "builtin:loops, the model that is installed with audiodiff; verify and report need none",
    )
    output_dir: str = pydantic.Field(description="folder for the audio files and the manifest: a path, s3:// or gs://")
    count: int | None = pydantic.Field(
        None, ge=1, le=MAX_LOOPS, description="number of seeds; instead of requests. A larger count adds loops"
    )
    seed: int = pydantic.Field(
        0,
        ge=SEEDS[0],
        le=SEEDS[-1],
        description="the first seed; the following seeds count up from it",
    )
    requests: str | None = pydantic.Field(
        None,
        description="file of requests of any kind, one per row: .jsonl, .csv or .parquet, a path or URI. Sampling "
        "options are the defaults of its rows. A longer file adds loops",
    )
    verify: bool = pydantic.Field(
        False,
        description="read all files of the finished output_dir and compare their digests: name those that are missing, "
        "changed or in no commit, change nothing, and end with status 1 if there are any; without verify, missing "
        "files are generated again",
    )
    report: bool = pydantic.Field(
        False,
        description=f"only write {LOOPS_PAGE} of the finished output_dir again, from its manifest and audio: needs no "
        "model and no requests",
    )
    skip_bad: bool = pydantic.Field(
        False, description="list bad rows of the requests in the manifest, and generate the other rows"
    )
    sweep: tuple[str, ...] = pydantic.Field(
        (),
        description="values of a sampling option, such as steps=20,50; repeat the flag for more options: each seed is "
        "generated with every combination",
    )
    input_dir: str | None = pydantic.Field(
        None, description="folder of audio files, each of which is varied once per seed: a path, s3:// or gs://"
    )
    strength: float | None = pydantic.Field(
        None,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="fraction of the steps to take of variations and remixes: 1 keeps almost nothing of the source",
    )
    encodings: str | None = pydantic.Field(
        None, description="encodings (encode writes them) that requests name in the field encoding: a path or URI"
    )
    encoder: str | None = pydantic.Field(
        None,
        description="encoder of the model, for like and prompt: a folder or a Hugging Face id; none: the encoder "
        "that is recorded with the model",
    )
    format: AudioFormat = pydantic.Field("wav", description="file format: wav, flac, ogg or mp3")
    normalize: str | None = pydantic.Field(
        None,
        description="level of the files: peak:DB, such as peak:-1 (dBFS), or lufs:LUFS, such as lufs:-14 (ITU-R "
        "BS.1770, with a peak of at most -1 dBFS); none: the level of the loops, whose peak is -1 dBFS or that of "
        "their source",
    )
    name: str = pydantic.Field(
        "{id}",
        description="names of the files: a template of {id}, {seed}, {bpm} and {key}, such as {bpm}-{key}-{id}, with "
        "{id}, or with {seed} for count without a sweep",
    )
    pictures: bool = pydantic.Field(
        False,
        description="write the mel image of each loop too, as pictures/NAME.png with low frequencies at the bottom",
    )
    compiled: bool = pydantic.Field(
        False, description="compile the network when a worker starts, which pays off for many loops"
    )

    node_price: float | None = pydantic.Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="price of a node per hour, in any currency: progress lines and the summary state the cost so far, "
        "which is the price times the hours of all live nodes of the cluster",
    )

    @pydantic.field_validator("normalize")
    @classmethod
    def _level_is_known(cls, value: str | None) -> str | None:
        """Return the level in its shortest form, so that equal levels are equal settings."""
        return None if value is None else str(TargetLevel.parse(value))

    @pydantic.model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        template = self.name_template
        are_seeds = self.requests is None and self.input_dir is None and not self.sweep
        if not template.fields & ({"id", "seed"} if are_seeds else {"id"}):
            fields = "{id} or {seed}" if are_seeds else "{id}"
            raise ValueError(f"name {self.name}: loops could have the same name, add {fields}")
        return self

    @pydantic.model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.verify and self.report:
            raise ValueError("report with verify: run them one after the other")
        if self.verify or self.report:
            return self
        if not self.model:
            raise ValueError("model is required")
        if self.requests is not None:
            stated = self.model_fields_set
            for name in ("count", "seed", "sweep", "input_dir"):
                if name in stated and getattr(self, name) not in (None, ()):
                    raise ValueError(f"requests with {name}: the rows of the file state it, omit {name}")
            return self
        if self.count is None and self.input_dir is None:
            raise ValueError("count, requests or input_dir is required")
        if self.sweep and self.input_dir is not None:
            raise ValueError("sweep with input_dir: list the variations in a file of requests")
        for name in ("strength", "skip_bad", "encodings"):
            needs_rows = name == "encodings" or self.input_dir is None
            if getattr(self, name) and needs_rows:
                raise ValueError(f"{name} is for requests{'' if name == 'encodings' else ' and input_dir'}")
        return self

    @pydantic.model_validator(mode="after")
    def _one_condition(self) -> Self:
        if self.like is not None and self.prompt is not None:
            raise ValueError("prompt with like: both state the encoding, set only one of them")
        features = [name for name in self.features if name != "bpm" or self.bars is None]
        if self.condition is not None and features:
            raise ValueError(
                f"{features[0]} with {self.condition.field}: both state the encoding, set only one of them"
            )
        if self.encoder is not None and self.requests is None and self.condition is None:
            raise ValueError(f"encoder {self.encoder} is for like, prompt and requests")
        return self

    @pydantic.model_validator(mode="after")
    def _seeds_exist(self) -> Self:
        if self.best_of is not None and not self.replaces:
            raise ValueError("best_of is for count alone: requests, sweep and input_dir have no other candidates")
        if self.seed + (self.count or 1) * self.per_place - 1 > SEEDS[-1]:
            candidates = f" and best_of {self.best_of}" if self.best_of else ""
            raise ValueError(
                f"seed {self.seed} with count {self.count}{candidates}: the last seed must be at most {SEEDS[-1]}"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _not_too_many(self) -> Self:
        combinations = math.prod(stated.count(",") + 1 for stated in self.sweep)
        if (loops := (self.count or 1) * self.per_place * combinations) > MAX_LOOPS:
            more = f"and best_of {self.best_of}" if self.best_of else f"with a sweep of {combinations:,} combinations"
            raise ValueError(f"count {self.count} {more}: {loops:,} loops to generate, must be at most {MAX_LOOPS:,}")
        return self

    @property
    def replaces(self) -> bool:
        """True if further seeds replace rejected loops."""
        return self.requests is None and self.input_dir is None and not self.sweep

    @property
    def seeds(self) -> range:
        """The seeds of loops without a file of requests."""
        return range(self.seed, self.seed + (self.count or 1))

    @property
    def name_template(self) -> NameTemplate:
        """The template of the names of files."""
        return NameTemplate.parse(self.name)

    @property
    def level(self) -> TargetLevel | None:
        """The level of the files, or None for the level of the loops."""
        return None if self.normalize is None else TargetLevel.parse(self.normalize)

    def settings(self, model: Model, reference_digest: str | None = None) -> dict[str, Any]:
        """Return the settings that determine the loops of requests in a folder, as JSON values.

        The requests themselves are in the plan. The device is not part of the settings. The manifest records it for
        each loop.

        Args:
            model: The model of the loops.
            reference_digest: Digest of the reference of the quality gate, or None without a reference.
        """
        settings = self.model_dump(include=SETTINGS)
        gate = self.gate_settings(reference_digest)
        return {"format_version": LOOPS_FORMAT_VERSION, "model_digest": model.digest, **settings, **gate}
