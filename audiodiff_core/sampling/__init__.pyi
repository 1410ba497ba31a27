# The public names of the package. `__init__.py` reads them from here.
from .batch import (
    Batch as Batch,
)
from .batch_sizes import (
    Precision as Precision,
)
from .item import (
    Failed as Failed,
)
from .item import (
    Finished as Finished,
)
from .item import (
    Item as Item,
)
from .item import (
    Outcome as Outcome,
)
from .item import (
    initial_noise as initial_noise,
)
from .parameters import (
    SamplingParameters as SamplingParameters,
)
from .profile import (
    ExecutionProfile as ExecutionProfile,
)
from .profile import (
    default_batch_size as default_batch_size,
)
from .requests import (
    REQUEST as REQUEST,
)
from .requests import (
    GenerateRequest as GenerateRequest,
)
from .requests import (
    Request as Request,
)
from .requests import (
    SeededRequest as SeededRequest,
)
from .sampler import (
    Sampler as Sampler,
)

__all__: list[str]
