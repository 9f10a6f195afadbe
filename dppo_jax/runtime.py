"""Process-wide settings of JAX, made once by whoever starts a program."""

import os
from pathlib import Path

import jax


def spare_a_thread() -> None:
    """Let a program with host callbacks run where it is given one core only.

    XLA hands arrays to a callback by another of its threads, and has as many as there
    are cores: on a single core a callback would wait for itself for ever. This takes
    effect if nothing has run in JAX yet, so the package calls it when it is imported.
    """
    if num_cores() == 1:
        os.environ.setdefault("PJRT_NPROC", "2")


def num_cores() -> int:
    """Cores that this process may use, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    # A start compiles a hundred tiny programs, which together take seconds.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
