"""Decoded samples of a Parquet row as a WAV file, so that they are read like any other audio."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from audiodiff_core.audio import MAX_CHANNELS, SAMPLE_RATES_HZ, AudioDecodeError

MAX_WAV_BYTES = (1 << 32) - (1 << 16)
_FULL_SCALE = (pa.int16(), pa.int32())  # whole numbers of a WAV file; the full scale of others is unknown


def write_wav(target: Path, name: str, array: pa.Scalar, rate: object) -> None:
    """Writes an array of samples at `rate` Hz. Raises AudioDecodeError with `name` if they are no audio."""
    from scipy.io import wavfile  # libsndfile would write the time of day into a file of floats

    if not isinstance(rate, int | float) or rate not in SAMPLE_RATES_HZ:
        lowest, highest = SAMPLE_RATES_HZ[0], SAMPLE_RATES_HZ[-1]
        raise AudioDecodeError(name, f"claims a rate of {rate} Hz, {lowest} to {highest} can be read")
    samples = _samples(name, array)
    if samples.shape[-1] > MAX_CHANNELS and samples.ndim > 1:
        raise AudioDecodeError(name, f"an array of {samples.shape[-1]} channels, at most {MAX_CHANNELS} can be read")
    wavfile.write(target, int(rate), samples)


def _samples(name: str, array: pa.Scalar) -> npt.NDArray[Any]:
    """Samples (n,) or (n, channels) as float32, int16 or int32.

    Of a list of lists the shorter dimension is the channels.
    """
    kind, dimensions = array.type, 0
    while _is_list(kind):
        kind, dimensions = kind.value_type, dimensions + 1
    if dimensions > 2 or not (pa.types.is_floating(kind) or kind in _FULL_SCALE):
        readable = "floats, int16 or int32 can be read, in a list or in a list for each channel"
        raise AudioDecodeError(name, f"an array of the type {array.type}: {readable}")
    values, rows = array.values, 0
    if dimensions == 2:
        rows = len(values)
        if values.null_count or len(pc.unique(pc.list_value_length(values))) > 1:
            raise AudioDecodeError(name, "an array whose channels differ in length")
        values = values.flatten()
    if not len(values) or values.null_count:
        raise AudioDecodeError(name, "an array without samples" if not len(values) else "an array with missing samples")
    if len(values) * 4 > MAX_WAV_BYTES:
        raise AudioDecodeError(name, f"an array of {len(values):,} samples, more than a file can hold")
    samples: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False)
    samples = samples if samples.dtype.kind == "i" else samples.astype(np.float32)
    if not rows:
        return samples
    samples = samples.reshape(rows, -1)
    return samples.T if rows < samples.shape[1] else samples


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
