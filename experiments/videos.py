"""Videos of evaluated episodes, drawn by MuJoCo without a display."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import mujoco
import numpy as np

from dppo_jax.errors import SettingsError
from dppo_jax.evaluate import Evaluation
from dppo_jax.types import Env, View
from experiments.render import NO_LIBRARY

# The trace from which an episode is drawn.
TRACE = "qpos"
# OpenGL without a display: with a GPU or by software, and by software alone.
_LIBRARIES = ("egl", "osmesa")
# A library for which the machine lacks a driver may end the process.
_CRASHES = (-signal.SIGSEGV, -signal.SIGABRT)
_WIDTH, _HEIGHT = 320, 240
_FRAMES_PER_SECOND = 12.5


def check(env: Env, task: str) -> View:
    """The view of an environment.

    Raises:
        SettingsError: it has none.
    """
    if env.view is None:
        raise SettingsError(
            f"--video: {task} cannot be drawn, because its Env has no view; return "
            "Env(..., view=View(model, period)) and TimeStep(..., trace={'qpos': "
            "qpos}), or leave out --video."
        )
    return env.view


def choose(evaluation: Evaluation, count: int) -> list[tuple[int, str]]:
    """Indices of episodes with their names, half of them good ones and half bad ones.

    With the metric `success`: the first successes and failures, and more of one kind if
    the other has too few. Without: the highest and the lowest returns.
    """
    metrics = {name: np.asarray(x) for name, x in evaluation.metrics.items()}
    returns = metrics["episode_return"]
    count = min(count, len(returns))
    if "success" in metrics:
        order = np.argsort(-metrics["success"], kind="stable")
        good = int((metrics["success"] > 0).sum())
        first, last = order[:good], order[good:]
    else:
        order = np.argsort(-returns, kind="stable")
        first, last = order[: (count + 1) // 2], order[(count + 1) // 2 :][::-1]
    half = max(count - len(last), min(len(first), (count + 1) // 2))
    chosen = [*first[:half], *last[: count - half]]

    def name(i: int) -> str:
        if "success" not in metrics:
            return f"return_{returns[i]:.0f}"
        return "success" if metrics["success"][i] > 0 else "failure"

    return [(int(i), name(i)) for i in chosen]


def save(evaluation: Evaluation, view: View, count: int, folder: Path) -> list[Path]:
    """Draw `count` episodes; prints and returns the paths.

    Writes `folder`/videos/episode_<index>_<name>.gif, where there is ffmpeg also the
    same as .mp4, and `folder`/plots/episodes.png, a row of frames for each.

    Raises:
        SettingsError: MuJoCo finds no OpenGL library.
    """
    qpos = np.asarray(evaluation.traces[TRACE])
    lengths = np.asarray(evaluation.metrics["episode_length"]).astype(int)
    stride = max(1, round(1 / _FRAMES_PER_SECOND / view.period))
    chosen = choose(evaluation, count)
    paths = [folder / "videos" / f"episode_{i}_{name}.gif" for i, name in chosen]
    sheet = folder / "plots" / "episodes.png"
    job = {
        "camera": view.camera,
        "width": _WIDTH,
        "height": _HEIGHT,
        "milliseconds": round(1000 * stride * view.period),
        "episodes": [
            {
                "path": str(path.absolute()),
                "title": f"episode {i}: {name.replace('_', ' ')}",
            }
            for path, (i, name) in zip(paths, chosen)
        ],
        "sheet": str(sheet.absolute()),
        "ffmpeg": find_ffmpeg(),
    }
    with tempfile.TemporaryDirectory() as work:
        for place, (i, _) in enumerate(chosen):
            frames = qpos[i, : max(lengths[i], 1) : stride]
            np.save(Path(work) / f"episode_{place}.npy", frames)
        mujoco.mj_saveModel(view.model, str(Path(work) / "model.mjb"), None)
        (Path(work) / "job.json").write_text(json.dumps(job))
        _render(work)
    films = [path.with_suffix(".mp4") for path in paths] if job["ffmpeg"] else []
    written = [*paths, *(path for path in films if path.is_file()), sheet]
    for path in written:
        print(f"wrote {path}")
    return written


def find_ffmpeg() -> str | None:
    """The program, of the machine or of the package imageio-ffmpeg; None if missing."""
    found = shutil.which("ffmpeg")
    if found is not None:
        return found
    with contextlib.suppress(ImportError, RuntimeError):
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    return None


def _render(work: str) -> None:
    """Start `experiments.render` with each OpenGL library until one works."""
    own = os.environ.get("MUJOCO_GL")
    said = ""
    for library in (own,) if own else _LIBRARIES:
        drawn = subprocess.run(
            [sys.executable, "-m", "experiments.render", work],
            env=os.environ | {"MUJOCO_GL": library},
            capture_output=True,
            text=True,
        )
        if not drawn.returncode:
            print(drawn.stdout, end="")  # Its warnings.
            return
        lines = drawn.stderr.strip().splitlines() or ["it said nothing"]
        # MuJoCo cannot even be imported with some values of the user's.
        if not own and drawn.returncode not in (NO_LIBRARY, *_CRASHES):
            raise RuntimeError(f"drawing failed: {drawn.stderr}")
        said += f" {library}: {lines[-1]}."
    raise SettingsError(
        "--video: MuJoCo cannot draw here; install EGL (apt install libegl1) or OSMesa "
        f"(apt install libosmesa6), or set MUJOCO_GL to one that works.{said}"
    )
