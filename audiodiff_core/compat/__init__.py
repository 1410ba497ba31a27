"""Public API of the `audiodiffusion` package, for notebooks and apps that use it.

Only the import changes:

    from audiodiff_core.compat import AudioDiffusion, AudioDiffusionPipeline, AudioEncoder, Mel

Images are equal to the images of `audiodiffusion`, including the effects of its bugs. Audio differs in its phases,
which `audiodiffusion` chose at random.
The submodules have the same names as in `audiodiffusion`: `audiodiff_core.compat.mel` replaces `audiodiffusion.mel`.
"""

from audiodiff_core.compat.audio_diffusion import AudioDiffusion
from audiodiff_core.compat.audio_encoder import AudioEncoder
from audiodiff_core.compat.mel import Mel
from audiodiff_core.compat.pipeline_audio_diffusion import AudioDiffusionPipeline

__all__ = ["AudioDiffusion", "AudioDiffusionPipeline", "AudioEncoder", "Mel"]
