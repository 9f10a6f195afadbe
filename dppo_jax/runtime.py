"""Process-wide settings of JAX, which a program makes once when it starts."""

import os
from pathlib import Path

import jax


def spare_a_thread() -> None:
    """Let programs with host callbacks run on a single core.

    XLA has as many threads as there are cores, and passes arrays to a callback in
    another thread than the one that waits for it. On a single core this is a deadlock,
    so set two threads there. The setting works only before JAX has run anything, so
    the package calls this function when it is imported.
    """
    if num_cores() == 1:
        os.environ.setdefault("PJRT_NPROC", "2")


def num_cores() -> int:
    """Number of cores that this process may use; the machine may have more."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def configure(*, cache_dir: str | os.PathLike | None = None) -> None:
    """Keep compiled programs on disk and multiply float32 matrices in float32.

    Programs compute in float32 also where JAX_ENABLE_X64 is set, which prints a note.

    Args:
        cache_dir: folder of the compilation cache. None: the environment variable
            JAX_COMPILATION_CACHE_DIR, or else `~/.cache/dppo_jax`.
    """
    if jax.config.values["jax_enable_x64"]:
        # Constants of NumPy would turn parts of every computation into float64.
        print("note: dppo_jax computes in float32; JAX_ENABLE_X64 is ignored")
        jax.config.update("jax_enable_x64", False)
    # Some accelerators multiply float32 matrices in fewer bits by default, which
    # biases probability ratios; the denoising chain multiplies that error by K.
    jax.config.update("jax_default_matmul_precision", "float32")
    if cache_dir is None:
        cache_dir = jax.config.values["jax_compilation_cache_dir"] or (
            Path.home() / ".cache" / "dppo_jax"
        )
    jax.config.update("jax_compilation_cache_dir", str(cache_dir))
    # Cache small programs too: a start compiles a hundred, which together take seconds.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
