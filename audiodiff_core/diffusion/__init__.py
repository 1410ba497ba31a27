"""Diffusion: training objectives and noise schedules."""
