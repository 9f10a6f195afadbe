"""Diffusion Policy Policy Optimization in JAX."""
