"""What algorithms learn with, on plain arrays and pure functions."""
