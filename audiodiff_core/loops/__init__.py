"""Loops: beat tracking, tempo, cutting to whole bars, stretching, audibility of the seam, and clipping."""

from audiodiff_core.audio.wav_chunks import LOOP_TEMPO_RANGE_BPM
from audiodiff_core.loops.clipping import clipped_share
from audiodiff_core.loops.cut import (
    cut_loop,
    fit_length,
    loop_length,
    tempo_bpm,
    whole_beats,
)
from audiodiff_core.loops.seam import level_db, seam_score

__all__ = [
    "LOOP_TEMPO_RANGE_BPM",
    "clipped_share",
    "cut_loop",
    "fit_length",
    "level_db",
    "loop_length",
    "seam_score",
    "tempo_bpm",
    "whole_beats",
]
