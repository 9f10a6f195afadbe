"""Settings and fixtures that all tests share.

JAX chooses the platform: the same tests run on a CPU and on an accelerator.
"""

import gc
import importlib.util
import mmap
import os
from pathlib import Path

# Several test processes may share one accelerator, and plots need no display.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("MPLBACKEND", "Agg")


def _is_known_to_xla(flag: str) -> bool:
    """Look for the name of a flag: XLA aborts the process if it does not know one."""
    folder = Path(str(importlib.util.find_spec("jaxlib").origin)).parent
    for library in folder.glob("libjax_common.*"):
        with open(library, "rb") as file:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content.find(flag.encode()) >= 0:
                    return True
    return False


# On a CPU compiling takes most of the time of the tests. Without LLVM's optimizations
# and with the older emitters of fusions it takes half of its time, and programs of this
# size run hardly slower. Dividing a program among threads costs a sixth of its time.
# Settings of the user come last, so they win.
_QUICK = dict(
    xla_backend_optimization_level=0,
    xla_cpu_use_fusion_emitters="false",
    xla_cpu_parallel_codegen_split_count=1,
)
if not Path("/dev/nvidia0").exists():
    os.environ["XLA_FLAGS"] = " ".join(
        [
            f"--{name}={value}"
            for name, value in _QUICK.items()
            if _is_known_to_xla(name)
        ]
        + [os.environ.get("XLA_FLAGS", "")]
    ).strip()

# Tracing makes many objects and hardly any cycles. With Python's own thresholds a fifth
# of the time of tracing and compiling went into looking for cycles.
gc.set_threshold(50_000, 20, 100)

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


def pytest_collection_finish():
    """Modules stay, so no collection of garbage needs to look at them again."""
    gc.freeze()


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
