"""Process-wide settings of JAX, made once by whoever starts a program."""

import os
from pathlib import Path

import jax


def configure(*, cache_dir: str | os.PathLike | None = None) -> None:
    """Keep compiled programs on disk and make float32 mean float32.

    Args:
        cache_dir: persistent compilation cache; by default the environment's
            JAX_COMPILATION_CACHE_DIR, else `~/.cache/dppo_jax`.
    """
    # Some accelerators multiply float32 matrices in fewer bits by default, which
    # biases probability ratios; the denoising chain multiplies that error by K.
    jax.config.update("jax_default_matmul_precision", "float32")
    if cache_dir is None:
        cache_dir = jax.config.values["jax_compilation_cache_dir"] or (
            Path.home() / ".cache" / "dppo_jax"
        )
    jax.config.update("jax_compilation_cache_dir", str(cache_dir))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
