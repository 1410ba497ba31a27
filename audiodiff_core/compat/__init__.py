"""The original's public API, for notebooks and apps written for it: change the import, keep the code.

    from audiodiff_core.compat import AudioDiffusion, AudioDiffusionPipeline, AudioEncoder, Mel

The images are those of before, number for number and faults included; the phases of the audio, which were random, are not. The
submodules have the original's names too (`audiodiff_core.compat.mel` for `audiodiffusion.mel`).
"""

from audiodiff_core.compat.audio_diffusion import AudioDiffusion
from audiodiff_core.compat.audio_encoder import AudioEncoder
from audiodiff_core.compat.mel import Mel
from audiodiff_core.compat.pipeline_audio_diffusion import AudioDiffusionPipeline

__all__ = ["AudioDiffusion", "AudioDiffusionPipeline", "AudioEncoder", "Mel"]
