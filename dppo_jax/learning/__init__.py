"""Losses, returns, minibatches, optimizers, on-policy and off-policy iterations."""
