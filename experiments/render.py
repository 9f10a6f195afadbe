"""Draw recorded episodes: python -m experiments.render FOLDER

`experiments.videos` writes FOLDER and starts this program, one process for each way to
draw, because MuJoCo chooses its OpenGL library when it is imported.

FOLDER holds `model.mjb`, `job.json` and `episode_<i>.npy`, qpos [S, nq] of S frames.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

# The exit status if MuJoCo cannot draw with this OpenGL library.
NO_LIBRARY = 3
# Frames of an episode on a contact sheet, and colours of a GIF.
_COLUMNS = 6
_COLORS = 128


def main(folder: str) -> None:
    """Write the GIF of every episode, its MP4 if it is asked for, and the sheet."""
    job = json.loads((Path(folder) / "job.json").read_text())
    rows = []
    try:
        import mujoco  # It loads the OpenGL library.

        model = mujoco.MjModel.from_binary_path(str(Path(folder) / "model.mjb"))
        renderer = mujoco.Renderer(model, job["height"], job["width"])
    except Exception as error:  # Each library has its own errors.
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(NO_LIBRARY)
    with renderer:
        for i, episode in enumerate(job["episodes"]):
            qpos = np.load(Path(folder) / f"episode_{i}.npy")
            frames = list(draw(model, renderer, qpos, job["camera"]))
            path = Path(episode["path"])
            save_gif(frames, path, milliseconds=job["milliseconds"])
            if job["ffmpeg"]:
                save_mp4(
                    frames,
                    path.with_suffix(".mp4"),
                    milliseconds=job["milliseconds"],
                    ffmpeg=job["ffmpeg"],
                )
            rows.append(label_row(frames, episode["title"]))
    sheet = Image.fromarray(np.concatenate([np.asarray(row) for row in rows]))
    Path(job["sheet"]).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(job["sheet"])


def draw(
    model: Any, renderer: Any, qpos: np.ndarray, camera: str
) -> Iterator[Image.Image]:
    """One picture for each qpos [nq]; an empty camera sees the whole model."""
    import mujoco

    data = mujoco.MjData(model)
    view: Any = camera
    if not camera:
        view = mujoco.MjvCamera()
        mujoco.mjv_defaultFreeCamera(model, view)
    for position in qpos:
        data.qpos[:] = position
        mujoco.mj_forward(model, data)
        renderer.update_scene(data, view)
        yield Image.fromarray(renderer.render().copy())


def save_gif(frames: list[Image.Image], path: Path, *, milliseconds: int) -> None:
    """All frames have the colours of the middle one, so they do not flicker."""
    palette = frames[len(frames) // 2].quantize(_COLORS)
    first, *others = (
        frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, save_all=True, append_images=others, duration=milliseconds, loop=0)


def save_mp4(
    frames: list[Image.Image], path: Path, *, milliseconds: int, ffmpeg: str
) -> None:
    """Let ffmpeg write an MP4; where it fails there is none, and a line says why."""
    width, height = frames[0].size
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    rate = ["-r", f"{1000 / milliseconds:.6f}"]
    # Most players read only pictures with halved colours.
    written = ["-pix_fmt", "yuv420p", "-movflags", "+faststart", str(path)]
    command = [ffmpeg, "-y", "-loglevel", "error", *raw, *rate, "-i", "-", *written]
    content = b"".join(frame.convert("RGB").tobytes() for frame in frames)
    try:
        done = subprocess.run(command, input=content, capture_output=True)
        said = done.stderr.decode(errors="replace").strip().splitlines()
        failed = (said or ["it said nothing"])[-1] if done.returncode else ""
    except OSError as error:
        failed = str(error)
    if failed:
        path.unlink(missing_ok=True)
        print(f"warning: {ffmpeg} wrote no {path.name}: {failed}")


def label_row(frames: list[Image.Image], title: str) -> Image.Image:
    """Evenly spaced frames side by side, with the title on the first."""
    places = np.linspace(0, len(frames) - 1, _COLUMNS).round().astype(int)
    row = Image.fromarray(
        np.concatenate([np.asarray(frames[place]) for place in places], axis=1)
    )
    # Large, because a report shows the row at about half its size; and below, where a
    # robot seldom is.
    size = row.height / 10
    ImageDraw.Draw(row).text(
        (8, row.height - 1.6 * size),
        title,
        fill="white",
        stroke_width=2,
        stroke_fill=0,
        font_size=size,
    )
    return row


if __name__ == "__main__":
    main(sys.argv[1])
