"""Chains of Gaussian moves, and denoising as one of them."""
