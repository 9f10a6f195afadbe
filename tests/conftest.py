"""Settings and fixtures that all tests share.

JAX chooses the platform: the same tests run on a CPU and on an accelerator.
"""

import os
from pathlib import Path

# Several test processes may share one accelerator, and plots need no display.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

# On a CPU compiling takes most of the time of the tests, and a third less of it without
# LLVM's optimizations, which programs of this size do not need.
_LEVEL = "--xla_backend_optimization_level"
if not Path("/dev/nvidia0").exists() and _LEVEL not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_LEVEL}=0".strip()

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"

# Examples are the same in every run. The first of a shape may take long to compile.
hypothesis.settings.register_profile(
    "tests", derandomize=True, database=None, deadline=None, max_examples=25
)
hypothesis.settings.load_profile("tests")

# Accelerators multiply float32 matrices with fewer bits by default; the tolerances of
# the tests need full float32.
jax.config.update("jax_default_matmul_precision", "highest")

# Compiling dominates the tests, so compiled programs are kept between runs.
if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", str(REPOSITORY / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _shared_folder(name: str, content: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs {content} in ../shared/{name}, beside the repository")
    return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of reference values; the test is skipped where it is absent."""
    return _shared_folder("golden", "the reference values")


@pytest.fixture(scope="session")
def demos_dir() -> Path:
    """Folder of recorded demonstrations; the test is skipped where it is absent."""
    return _shared_folder("demos", "the recorded demonstrations")
