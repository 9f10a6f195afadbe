"""Losses, returns, minibatches, optimizers and the off-policy iteration."""
