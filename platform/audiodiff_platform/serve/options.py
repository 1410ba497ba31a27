"""Options of serve: models, address, replicas and limits."""

import ipaddress
import re
from typing import Self

import pydantic

from audiodiff_core.diffusion.methods import MAX_STEPS
from audiodiff_core.sampling.parameters import MAX_DURATION_S
from audiodiff_platform.cluster.capacity import Device
from audiodiff_platform.cluster.options import ProfileOptions
from audiodiff_platform.serve.key_file import HashedKey
from audiodiff_platform.serve.keys import environment_key
from audiodiff_platform.serve.limits import Limits

_NAME = re.compile(r"[-_.]*[A-Za-z0-9][-_.A-Za-z0-9]*", re.ASCII)
_ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:]+\])(?::[0-9]{1,5})?", re.ASCII)


class ServeOptions(ProfileOptions):
    """Options of serve: models, address, replicas and limits."""

    model: tuple[str, ...] = pydantic.Field(
        description="NAME=PATH of a model, where PATH is a folder, URI, Hugging Face id or builtin:loops; "
        "can be repeated"
    )
    encoder: tuple[str, ...] = pydantic.Field(
        (),
        description="NAME=PATH of an encoder for /v1/encode, like and prompt, where PATH is as for encode; "
        "can be repeated",
    )
    host: str = pydantic.Field(
        "127.0.0.1", description="address to listen on; addresses other than loopback require API keys"
    )
    port: int = pydantic.Field(8_000, ge=1, le=65_535, description="TCP port")
    device: Device = pydantic.Field(
        "auto", description="device of the replicas: cpu, gpu, or auto, which selects GPUs if the cluster has GPUs"
    )
    compiled: bool = pydantic.Field(
        False, description="compile the network when a replica starts, which takes minutes but speeds up requests"
    )
    min_replicas: int = pydantic.Field(
        1, ge=0, description="minimum number of generation replicas; 0: replicas start at the first request"
    )
    max_replicas: int | None = pydantic.Field(
        None,
        ge=1,
        description="maximum number of generation replicas, each on one CPU or on gpus_per_replica; "
        "none: all GPUs, or all CPUs without GPUs",
    )
    gpus_per_replica: float = pydantic.Field(
        1.0,
        gt=0,
        le=1,
        description="share of a GPU and of its memory that a replica uses",
    )
    min_encoding_replicas: int = pydantic.Field(
        1, ge=0, description="minimum number of replicas of the encoders; 0: they start at the first request"
    )
    max_encoding_replicas: int = pydantic.Field(
        1, ge=1, description="maximum number of replicas of the encoders, each on one CPU"
    )
    max_models: int = pydantic.Field(
        4, ge=1, description="maximum number of models that a replica keeps loaded; it unloads the least recently used"
    )
    queue_batches: int = pydantic.Field(
        4, ge=0, le=1_000, description="batches of requests that wait in each replica; further requests are refused"
    )
    max_wait_s: float = pydantic.Field(
        10.0, gt=0, le=600, description="seconds that a request waits for its first step; it is then refused"
    )
    request_timeout_s: float = pydantic.Field(
        300.0, gt=0, le=7_200, description="seconds until a request that has not finished is stopped"
    )
    max_steps: int = pydantic.Field(MAX_STEPS, ge=1, le=MAX_STEPS, description="steps that a request may state at most")
    max_duration_s: float = pydantic.Field(
        600.0, gt=0, le=MAX_DURATION_S, description="seconds of audio that a request may ask for at most"
    )
    max_upload_mb: int = pydantic.Field(
        32, ge=1, le=1_024, description="megabytes of uploaded audio in a request at most"
    )
    key_file: str | None = pydantic.Field(
        None, description="path or URI of the file of API keys, made by `python -m audiodiff_platform.serve.keys`"
    )
    requests_per_minute: float | None = pydantic.Field(
        None, ge=1, le=1e6, description="requests per minute of each API key; none: no limit"
    )
    concurrent_requests: int | None = pydantic.Field(
        None, ge=1, description="requests of each API key at the same time; none: no limit"
    )
    audio_s_per_minute: float | None = pydantic.Field(
        None, gt=0, le=1e9, description="seconds of audio per minute of each API key; none: no limit"
    )
    audio_s_per_hour: float | None = pydantic.Field(
        None, gt=0, le=1e9, description="seconds of audio per hour of each API key; none: no limit"
    )
    results_dir: str | None = pydantic.Field(
        None,
        description="folder or URI for the results of jobs; none, on one machine: a folder in the cache of the user",
    )
    results_ttl_s: float = pydantic.Field(
        86_400.0, ge=1, le=1e8, description="seconds for which the result of a job is kept"
    )
    results_gb: float = pydantic.Field(10.0, gt=0, le=1e6, description="gigabytes of all results at most")
    allow_origin: tuple[str, ...] = pydantic.Field(
        (), description="origin, such as https://example.com, whose pages may call the server; can be repeated"
    )
    yaml: str | None = pydantic.Field(
        None, description="file to write the configuration for `serve deploy` to, instead of serving"
    )

    @pydantic.field_validator("model", "encoder", "allow_origin", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _models_are_named(self) -> Self:
        for option, entries in (("model", self.model), ("encoder", self.encoder)):
            for entry in entries:
                name, _, path = entry.partition("=")
                if not path or not _NAME.fullmatch(name):
                    raise ValueError(
                        f"{option} {entry!r}: must be NAME=PATH, with letters a to z, digits, '.', '_' and '-' in NAME"
                    )
            if len(dict(entry.split("=", 1) for entry in entries)) != len(entries):
                raise ValueError(f"{option} {', '.join(entries)}: names must be unique")
        if self.max_encoding_replicas < self.min_encoding_replicas:
            raise ValueError(
                f"max_encoding_replicas {self.max_encoding_replicas}: must be at least min_encoding_replicas "
                f"{self.min_encoding_replicas}"
            )
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas}: must be at least min_replicas {self.min_replicas}")
        return self

    @pydantic.field_validator("allow_origin")
    @classmethod
    def _origins_are_named(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r}: must be https://HOST or https://HOST:PORT, in lower case, without a path"
                )
        return origins

    def paths(self) -> dict[str, str]:
        """Return the path, URI or id of each model by its name."""
        return dict(entry.split("=", 1) for entry in self.model)

    def encoder_paths(self) -> dict[str, str]:
        """Return the folder or id of each encoder by its name."""
        return dict(entry.split("=", 1) for entry in self.encoder)

    @property
    def limits(self) -> Limits:
        """Limits of each API key."""
        return Limits(
            self.requests_per_minute, self.concurrent_requests, self.audio_s_per_minute, self.audio_s_per_hour
        )

    @property
    def longest_track_s(self) -> float:
        """Longest track of a remix in seconds, which no field of its request states."""
        limits = (self.max_duration_s, self.audio_s_per_minute, self.audio_s_per_hour)
        return min(limit for limit in limits if limit is not None)

    @property
    def is_on_loopback(self) -> bool:
        """True if only this machine can reach the server."""
        return is_loopback(self.host)


def required_key(options: ServeOptions) -> HashedKey | None:
    """Return the hashed API key of the environment, or None.

    Raises:
        ValueError: If other machines can reach the server, and there are no keys.
    """
    key = environment_key()
    if key is None and options.key_file is None and not options.is_on_loopback:
        raise ValueError(
            f"host {options.host} is reachable from other machines: set AUDIODIFF_API_KEY or key_file, or use 127.0.0.1"
        )
    return key


def is_loopback(host: str) -> bool:
    """Return whether a host is localhost or an address of loopback."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
