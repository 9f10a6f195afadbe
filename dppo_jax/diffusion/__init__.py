"""Chains of Gaussian moves, denoising as such a move, and its noise schedules."""
