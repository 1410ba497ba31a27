"""Checks of a single loop: silence, clipping, the seam, and copies of the reference."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from audiodiff_core.evaluation.features import BANDS, EMBEDDER, Features, logmel_stats
from audiodiff_core.loops import clipped_share, level_db, seam_score
from audiodiff_core.mel import MelConfig
from audiodiff_core.pipeline import Loop
from audiodiff_platform.generate.gate_options import GateOptions
from audiodiff_platform.generate.reference import Reference

REJECTED = "rejected: "
"""Begin of the reason of a rejected loop in the manifest. The name of the check follows."""


@dataclass(frozen=True)
class Gate:
    """The checks of a single loop.

    Args:
        options: Options of the gate.
        sample_rate: Sample rate of the loops in Hz.
        reference: The reference of the check `copy`, or None without this check.
    """

    options: GateOptions
    sample_rate: int
    reference: Reference | None = None

    def features(self, loop: Loop) -> Features | None:
        """Return the features (d,) of a loop, or None if no check compares loops."""
        if not compares(self.options):
            return None
        features: Features = logmel_stats(loop.image[np.newaxis])[0].astype(np.float32).astype(np.float64)
        return features

    def reason(self, loop: Loop, features: Features | None) -> str | None:
        """Return why a loop is rejected, or None.

        Args:
            loop: The loop.
            features: Its features (d,), or None if no check compares loops.
        """
        options, reject = self.options, self.options.reject
        if "silence" in reject and (level := level_db(loop.audio)) < options.min_level_db:
            return f"{REJECTED}silence (level {level:.1f} dB, at least {options.min_level_db:g} dB)"
        if "clipping" in reject and (share := clipped_share(loop.audio)) > options.max_clipped_share:
            return f"{REJECTED}clipping (share {share:.3g} of the samples, at most {options.max_clipped_share:g})"
        if "seam" in reject and (score := seam_score(loop.audio, self.sample_rate)) > options.max_seam_score:
            return f"{REJECTED}seam (score {score:.3g}, at most {options.max_seam_score:g})"
        if self.reference is not None and features is not None:
            (distance, track), least = self.reference.nearest(features), self.reference.min_distance
            if distance < least:
                return f"{REJECTED}copy of {track} (distance {distance:.3g}, at least {least:.3g})"
        return None

    def measurements(self, loop: Loop) -> dict[str, Any]:
        """Return the measurements in the manifest row of a rejected loop."""
        return {
            "duration_s": len(loop.audio) / self.sample_rate,
            "seam_score": seam_score(loop.audio, self.sample_rate),
            "level_db": level_db(loop.audio),
        }


def compares(options: GateOptions) -> bool:
    """Return whether a check compares loops by their features."""
    return bool({"copy", "duplicate"} & set(options.reject))


def require_comparable(options: GateOptions, mel: MelConfig) -> None:
    """Raise ValueError if loops of a mel configuration have no features, and a check compares loops."""
    if compares(options) and mel.y_res % BANDS:
        raise ValueError(f"reject copy, duplicate: {EMBEDDER} needs a multiple of {BANDS} mel bands, not {mel.y_res}")


def check_of(reason: str) -> str | None:
    """Return the name of the check in the reason of a rejected loop, or None for another reason."""
    return reason.removeprefix(REJECTED).split()[0] if reason.startswith(REJECTED) else None
