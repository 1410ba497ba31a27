"""Check of requests against a model without its weights."""

from audiodiff_core.checkpoint import ModelOutline
from audiodiff_core.pipeline.codec import Codec
from audiodiff_core.pipeline.geometry import Geometry
from audiodiff_core.pipeline.inputs import Inputs, References
from audiodiff_core.pipeline.tasks import Tasks
from audiodiff_core.sampling import ExecutionProfile, Sampler
from audiodiff_core.sampling.requests import Request


class RequestCheck:
    """Check of requests against a model, as `LoopPipeline.generate` makes it at the call.

    Args:
        model: Configuration of the model. Its networks are on the meta device.

    Attributes:
        geometry: Image and sample sizes of the model.
        conditions: Conditions of the model on measured features, or None.

    Raises:
        ValueError: If the parts do not fit each other.
    """

    def __init__(self, model: ModelOutline) -> None:
        self.geometry = Geometry.of(model.unet, model.vae, model.mel)
        profile = ExecutionProfile(batch_size=1, device="meta")
        tasks = Tasks(self.geometry, Codec(None, profile))
        self.conditions = None if model.record is None else model.record.conditions
        self._inputs = Inputs(self.geometry, model.scheduler, tasks, self.conditions)
        self._probe = Sampler(model.unet, model.scheduler, profile).batch()

    @property
    def no_encoder(self) -> str | None:
        """Why the model has no encoder of conditions, with the remedy, or None if it has one."""
        return self._inputs.no_encoder

    def resolved(self, request: Request, references: References | None = None) -> Request:
        """Return a copy of the request with all defaults filled in. Sources are not read.

        Args:
            request: The request.
            references: Encodings by reference.

        Raises:
            ValueError: If the model does not support the request.
        """
        item, task = self._inputs.task(request, references or References(), self._probe)
        task.close()
        filled: Request = item.request  # type: ignore[assignment]  # a copy, of the kind of the request
        return filled

    def seconds(self, request: Request) -> float:
        """Return the duration of the loop of a resolved request. For a remix, it is that of one window."""
        samples = self.geometry.samples(request)
        if samples is not None:
            return samples / self.geometry.mel.sample_rate
        return request.duration_s or self.geometry.duration_s(self.geometry.width(request))
