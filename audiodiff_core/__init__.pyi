# The public names of the package. `__init__.py` reads them from here.
from .audio import (
    AudioDecodeError as AudioDecodeError,
)
from .audio import (
    decode_audio as decode_audio,
)
from .audio import (
    encode_audio as encode_audio,
)
from .checkpoint import (
    CheckpointError as CheckpointError,
)
from .checkpoint import (
    Model as Model,
)
from .checkpoint import (
    load_model as load_model,
)
from .checkpoint import (
    save_model as save_model,
)
from .diffusion.methods import (
    METHODS as METHODS,
)
from .diffusion.methods import (
    SchedulerName as SchedulerName,
)
from .diffusion.schedulers import (
    SCHEDULERS as SCHEDULERS,
)
from .diffusion.schedulers import (
    scheduler_for as scheduler_for,
)
from .latents import (
    decode_latents as decode_latents,
)
from .latents import (
    encode_latents as encode_latents,
)
from .mel import (
    Mel as Mel,
)
from .mel import (
    MelConfig as MelConfig,
)
from .models.circular import circular_time as circular_time
from .pipeline import (
    Audio as Audio,
)
from .pipeline import (
    Failure as Failure,
)
from .pipeline import (
    Loop as Loop,
)
from .pipeline import (
    LoopPipeline as LoopPipeline,
)
from .pipeline import (
    chain as chain,
)
from .pipeline import (
    load_pipeline as load_pipeline,
)
from .pipeline import (
    slerp as slerp,
)
from .sampling import (
    Batch as Batch,
)
from .sampling import (
    ExecutionProfile as ExecutionProfile,
)
from .sampling import (
    GenerateRequest as GenerateRequest,
)
from .sampling import (
    Item as Item,
)
from .sampling import (
    Request as Request,
)
from .sampling import (
    Sampler as Sampler,
)
from .sampling import (
    SamplingParameters as SamplingParameters,
)
from .vocoder import (
    GriffinLim as GriffinLim,
)
from .vocoder import (
    Vocoder as Vocoder,
)

__all__: list[str]
