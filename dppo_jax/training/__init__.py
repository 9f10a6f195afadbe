"""The host loop, what it writes, and many seeds and devices; knows no algorithm."""
