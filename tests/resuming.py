"""Training in two parts must equal training at once."""

from pathlib import Path
from typing import Any

import jax

from dppo_jax.training.loop import train
from dppo_jax.types import Algorithm
from tests import tiny


def resumed(
    algorithm: Algorithm, folder: Path, *, num_iterations: int = 3, first: int = 1
) -> Any:
    """Train at once and in two parts, and compare the final states bit for bit.

    Args:
        folder: gets the run directories `whole` and `parts`.
        first: iterations before the run is resumed.

    Returns:
        The final state.
    """

    def go(name: str, num_iterations: int) -> Any:
        return train(
            algorithm,
            algorithm.init(jax.random.key(0)),
            run_dir=folder / name,
            num_iterations=num_iterations,
            normalizer=tiny.NORMALIZER,
        )

    whole = go("whole", num_iterations)
    go("parts", first)
    assert tiny.same(whole, go("parts", num_iterations))
    return whole
