"""Prometheus metrics of a replica: HTTP of the ingress, batches of generation, batches of encoding.

Each replica counts in a registry of its own. `exposition` joins the metrics of all replicas.
"""

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics_core import Metric

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Upper bounds of the buckets of durations."""
FILL = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1)
ROWS = (1, 2, 4, 8, 16, 32, 64)

Families = list[Metric]


def _registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


class HttpMetrics:
    """Metrics of a replica of the ingress."""

    def __init__(self) -> None:
        self._registry = _registry()
        own: Any = {"registry": self._registry}
        self._requests = Counter("audiodiff_http_requests", "HTTP requests.", ("method", "route", "status"), **own)
        self._seconds = Histogram(
            "audiodiff_http_request_seconds", "Duration of HTTP requests.", ("route",), buckets=SECONDS, **own
        )
        self._rejected = Counter(
            "audiodiff_rejected_requests", "HTTP requests that were answered by an error.", ("reason",), **own
        )

    def answered(self, method: str, route: str, status: int, seconds: float, reason: str | None) -> None:
        """Count a request.

        Args:
            method: Method of the request.
            route: Path of the route, with the names of its parameters.
            status: Status of the response.
            seconds: Duration of the request.
            reason: Code of the error that answers the request, or None.
        """
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if reason is not None:
            self._rejected.labels(reason).inc()

    def families(self) -> Families:
        """Return the current values."""
        return list(self._registry.collect())


class GenerationMetrics:
    """Metrics of a replica of the generation deployment."""

    def __init__(self) -> None:
        self._registry = _registry()
        own: Any = {"registry": self._registry}
        model = ("model",)
        self.results = Counter(
            "audiodiff_results",
            "Ends of requests: audio, not_modified, cancelled or an error.",
            ("model", "end"),
            **own,
        )
        self.stage_seconds = Histogram(
            "audiodiff_stage_seconds", "Seconds per stage of a loop.", ("model", "stage"), buckets=SECONDS, **own
        )
        self.batch_step_seconds = Histogram(
            "audiodiff_batch_step_seconds", "Duration of a step of a batch.", model, buckets=SECONDS, **own
        )
        self.batch_fill = Histogram(
            "audiodiff_batch_fill", "Share of the batch slots that a step used.", model, buckets=FILL, **own
        )
        self.batch_rows = Counter("audiodiff_batch_rows", "Slots that the steps of the batches used.", model, **own)
        self.steps = Counter("audiodiff_steps", "Sampling steps of requests.", model, **own)
        self.audio_seconds = Counter("audiodiff_audio_seconds", "Seconds of generated audio.", model, **own)
        self.sampling_seconds = Counter(
            "audiodiff_sampling_seconds", "Seconds in which a batch took a step.", model, **own
        )
        self._queue = Gauge("audiodiff_queue_length", "Requests that wait for a slot.", model, **own)
        self._running = Gauge("audiodiff_running_requests", "Requests in the batch.", model, **own)
        self._real_time = Gauge(
            "audiodiff_real_time_factor", "Seconds of audio per second of sampling, since the start.", model, **own
        )
        self._of: dict[str, ModelMetrics] = {}

    def of(self, model: str) -> "ModelMetrics":
        """Return the metrics of a model."""
        return self._of.setdefault(model, ModelMetrics(self, model))

    def families(self, loads: Mapping[str, tuple[int, int]]) -> Families:
        """Return the current values.

        Args:
            loads: Number of waiting and of running requests of each loaded model.
        """
        for gauge in (self._queue, self._running, self._real_time):
            gauge.clear()
        for model, (waiting, running) in loads.items():
            self._queue.labels(model).set(waiting)
            self._running.labels(model).set(running)
            self._real_time.labels(model).set(self.of(model).real_time_factor)
        return list(self._registry.collect())


class ModelMetrics:
    """Metrics of a model in a replica. The methods can be called on any thread.

    Args:
        metrics: Metrics of the replica.
        model: Name of the model.
    """

    def __init__(self, metrics: GenerationMetrics, model: str) -> None:
        self._metrics, self._model = metrics, model
        self._step_seconds = metrics.batch_step_seconds.labels(model)
        self._fill, self._rows = metrics.batch_fill.labels(model), metrics.batch_rows.labels(model)
        self._steps = metrics.steps.labels(model)
        self._audio, self._sampling = metrics.audio_seconds.labels(model), metrics.sampling_seconds.labels(model)
        self._audio_s = self._sampling_s = 0.0

    @property
    def real_time_factor(self) -> float:
        """Seconds of audio per second of sampling."""
        return self._audio_s / self._sampling_s if self._sampling_s else 0.0

    def stepped(self, seconds: float, rows: int, slots: int) -> None:
        """Count a step of the batch that used `rows` of its `slots`."""
        self._step_seconds.observe(seconds)
        self._fill.observe(rows / slots)
        self._rows.inc(rows)
        self._sampling.inc(seconds)
        self._sampling_s += seconds

    def request_stepped(self) -> None:
        """Count a step of a request."""
        self._steps.inc()

    def finished(self, seconds: Mapping[str, float], audio_s: float) -> None:
        """Count a loop.

        Args:
            seconds: Seconds per stage.
            audio_s: Duration of the loop in seconds.
        """
        for stage, spent in seconds.items():
            self._metrics.stage_seconds.labels(self._model, stage).observe(spent)
        self._audio.inc(audio_s)
        self._audio_s += audio_s

    def ended(self, end: str) -> None:
        """Count the end of a request."""
        self._metrics.results.labels(self._model, end).inc()


class EncodingMetrics:
    """Metrics of a replica of the encoders."""

    def __init__(self) -> None:
        self._registry = _registry()
        own: Any = {"registry": self._registry}
        self._results = Counter(
            "audiodiff_encoding_results", "Ends of items to encode: encoding or an error.", ("encoder", "end"), **own
        )
        self._seconds = Histogram(
            "audiodiff_encoding_seconds", "Seconds per stage of an encoding.", ("stage",), buckets=SECONDS, **own
        )
        self._rows = Histogram("audiodiff_encoding_batch_rows", "Items per batch.", buckets=ROWS, **own)
        self._audio = Counter("audiodiff_encoded_audio_seconds", "Seconds of encoded audio.", ("encoder",), **own)

    def decoded(self, encoder: str, seconds: float, audio_s: float) -> None:
        """Count a decoded file, which took `seconds` and has `audio_s` seconds of audio."""
        self._seconds.labels("decode").observe(seconds)
        self._audio.labels(encoder).inc(audio_s)

    def embedded(self, seconds: float, rows: int) -> None:
        """Count a batch."""
        self._seconds.labels("network").observe(seconds)
        self._rows.observe(rows)

    def ended(self, encoder: str, end: str) -> None:
        """Count the end of an item."""
        self._results.labels(encoder, end).inc()

    def families(self) -> Families:
        """Return the current values."""
        return list(self._registry.collect())
