"""The host loop, run directories, checkpoints, many seeds and many devices."""
