"""Conversion of the decoded samples of a Parquet row to a WAV file."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from audiodiff_core.audio import MAX_CHANNELS, SAMPLE_RATES_HZ, AudioDecodeError

MAX_WAV_BYTES = (1 << 32) - (1 << 16)
_INTEGER_TYPES = (pa.int16(), pa.int32())  # the full scale of other integer types is unknown


def write_wav(target: Path, name: str, array: pa.Scalar, rate: object) -> None:
    """Write an array of samples as a WAV file.

    Args:
        target: The file to write.
        name: The name of the audio file in error messages.
        array: A list of samples (n,), or a list of lists (n, channels) or (channels, n), of floats, int16 or int32.
            The shorter dimension is the dimension of the channels.
        rate: The sample rate in Hz.

    Raises:
        AudioDecodeError: The array or the sample rate is not supported.
    """
    # libsndfile is not used here, because it writes the current time into WAV files of floats.
    from scipy.io import wavfile

    if not isinstance(rate, int | float) or rate not in SAMPLE_RATES_HZ:
        lowest, highest = SAMPLE_RATES_HZ[0], SAMPLE_RATES_HZ[-1]
        raise AudioDecodeError(name, f"sample rate {rate} Hz: must be {lowest} to {highest} Hz")
    samples = _samples(name, array)
    if samples.shape[-1] > MAX_CHANNELS and samples.ndim > 1:
        raise AudioDecodeError(name, f"array has {samples.shape[-1]} channels: must be at most {MAX_CHANNELS}")
    wavfile.write(target, int(rate), samples)


def _samples(name: str, array: pa.Scalar) -> npt.NDArray[Any]:
    """Return the samples (n,) or (n, channels) as float32, int16 or int32."""
    kind, dimensions = array.type, 0
    while _is_list(kind):
        kind, dimensions = kind.value_type, dimensions + 1
    if dimensions > 2 or not (pa.types.is_floating(kind) or kind in _INTEGER_TYPES):
        supported = "must hold floats, int16 or int32, in one list or in one list per channel"
        raise AudioDecodeError(name, f"array of type {array.type}: {supported}")
    values, rows = array.values, 0
    if dimensions == 2:
        rows = len(values)
        if values.null_count or len(pc.unique(pc.list_value_length(values))) > 1:
            raise AudioDecodeError(name, "array has channels of different lengths")
        values = values.flatten()
    if not len(values) or values.null_count:
        raise AudioDecodeError(name, "array has missing samples" if len(values) else "array has no samples")
    if len(values) * 4 > MAX_WAV_BYTES:
        raise AudioDecodeError(
            name, f"array has {len(values):,} samples: a WAV file holds at most {MAX_WAV_BYTES // 4:,}"
        )
    samples: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False)
    samples = samples if samples.dtype.kind == "i" else samples.astype(np.float32)
    if not rows:
        return samples
    samples = samples.reshape(rows, -1)
    return samples.T if rows < samples.shape[1] else samples


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
