"""Loops: cutting at beats, tempo, stretching, audibility of the seam."""

from audiodiff_core.loops.cut import TEMPOS_BPM, cut_loop, loop_length, tempo_bpm, whole_beats
from audiodiff_core.loops.seam import level_db, seam_score

__all__ = [
    "TEMPOS_BPM",
    "cut_loop",
    "level_db",
    "loop_length",
    "seam_score",
    "tempo_bpm",
    "whole_beats",
]
