"""Which episodes become videos, and what the program draws, where it can draw."""

import json
import sys
import types
from pathlib import Path

import jax
import mujoco
import numpy as np
import pytest
from absl import flags
from PIL import Image

from dppo_jax.envs.tasks import TASKS, make_task
from dppo_jax.errors import SettingsError
from dppo_jax.evaluate import Evaluation
from dppo_jax.types import View
from experiments import command_line, evaluate, render, videos
from tests import tiny
from tests.stages import make_config

# A ball on a slide, with a camera.
BALL = """
<mujoco>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="front" pos="0 -3 0" xyaxes="1 0 0 0 0 1"/>
    <body>
      <joint name="slide" type="slide" axis="1 0 0"/>
      <geom size="0.3" rgba="1 0 0 1"/>
    </body>
  </worldbody>
</mujoco>
"""


@pytest.fixture
def view():
    return View(mujoco.MjModel.from_xml_string(BALL), period=0.04, camera="front")


def evaluation(lengths, **metrics):
    lengths = np.array(lengths)
    slide = np.linspace(-1, 1, lengths.max())
    metrics.setdefault("episode_return", lengths)
    metrics = {name: np.array(x, np.float32) for name, x in metrics.items()}
    return Evaluation(
        metrics | {"episode_length": lengths},
        {videos.TRACE: np.tile(slide[:, None], (len(lengths), 1, 1))},
    )


@pytest.mark.parametrize(
    ("success", "count", "chosen"),
    [
        ([0, 1, 0, 1, 1, 0], 4, [(1, 1), (3, 1), (0, 0), (2, 0)]),
        ([0, 1, 0, 1, 1, 0], 3, [(1, 1), (3, 1), (0, 0)]),
        ([1, 1, 1, 0], 4, [(0, 1), (1, 1), (2, 1), (3, 0)]),
        ([0, 0, 1], 9, [(2, 1), (0, 0), (1, 0)]),
        ([0, 0, 0], 2, [(0, 0), (1, 0)]),
    ],
)
def test_half_of_the_episodes_are_successes_if_there_are_any(success, count, chosen):
    found = videos.choose(evaluation([5] * len(success), success=success), count)
    assert found == [(i, "success" if good else "failure") for i, good in chosen]


def test_without_success_the_highest_and_the_lowest_returns_are_shown():
    found = videos.choose(evaluation([5] * 4, episode_return=[1, 30, -2, 4]), 3)
    assert found == [(1, "return_30"), (3, "return_4"), (2, "return_-2")]


def test_videos_show_the_steps_of_the_chosen_episodes(
    view, tmp_path, monkeypatch, capsys
):
    """25 control steps a second are drawn at half of that, up to the episode's end."""
    monkeypatch.setattr(videos, "find_ffmpeg", lambda: None)
    try:
        paths = videos.save(evaluation([9, 5], success=[0, 1]), view, 2, tmp_path)
    except SettingsError as error:
        pytest.skip(f"this machine has no OpenGL library: {error}")
    good, bad, sheet = paths
    assert [path.name for path in paths] == [
        *("episode_1_success.gif", "episode_0_failure.gif", "episodes.png")
    ]
    for path, frames in ((good, 3), (bad, 5)):
        with Image.open(path) as gif:
            assert (gif.n_frames, gif.size) == (frames, (320, 240))
            assert gif.info["duration"] == 80
            first = np.array(gif.convert("RGB"), float)
            gif.seek(frames - 1)
            last = np.array(gif.convert("RGB"), float)
        # The ball moves to the right.
        red = [(x[..., 0] - x[..., 2]).clip(0).sum(0) for x in (first, last)]
        middle = [(np.arange(320) * x).sum() / x.sum() for x in red]
        assert middle[0] < 100 and middle[1] > middle[0] + 50
    with Image.open(sheet) as picture:
        assert picture.size == (6 * 320, 2 * 240)
    assert capsys.readouterr().out.count("wrote") == 3


FRAMES = [Image.new("RGB", (4, 2), (i, 0, 0)) for i in (1, 2, 3)]


def stand_in(folder, body):
    """A program in place of ffmpeg."""
    program = folder / "ffmpeg"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return str(program)


def test_ffmpeg_gets_the_frames_and_their_rate(tmp_path):
    keep = f'cat > {tmp_path}/frames; echo "$@" > {tmp_path}/words'
    path = tmp_path / "film.mp4"
    program = stand_in(tmp_path, keep)
    render.save_mp4(FRAMES, path, milliseconds=80, ffmpeg=program)
    pixels = np.fromfile(tmp_path / "frames", np.uint8).reshape(3, 2, 4, 3)
    np.testing.assert_array_equal(pixels[:, 0, 0, 0], [1, 2, 3])
    words = (tmp_path / "words").read_text()
    assert "-s 4x2 -r 12.5" in words and words.endswith(f"{path}\n")


def test_where_ffmpeg_fails_half_a_film_is_removed(tmp_path, capsys):
    path = tmp_path / "film.mp4"
    program = stand_in(tmp_path, f"echo half > {path}; echo no codec >&2; exit 1")
    for name, said in ((program, "no codec"), (f"{tmp_path}/none", "No such file")):
        render.save_mp4(FRAMES, path, milliseconds=80, ffmpeg=name)
        assert not path.exists()
        line = capsys.readouterr().out
        assert line.startswith(f"warning: {name} wrote no film.mp4: ") and said in line


def test_ffmpeg_is_that_of_the_machine_or_of_a_package(tmp_path, monkeypatch):
    package = types.ModuleType("imageio_ffmpeg")
    package.get_ffmpeg_exe = lambda: "/package/ffmpeg"
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", package)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert videos.find_ffmpeg() == "/package/ffmpeg"
    program = stand_in(tmp_path, "")
    assert videos.find_ffmpeg() == program
    (tmp_path / "ffmpeg").unlink()
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert videos.find_ffmpeg() is None


def test_films_are_named_where_they_were_written(view, tmp_path, monkeypatch):
    def look(work):
        job = json.loads((Path(work) / "job.json").read_text())
        assert job["ffmpeg"] == "some/ffmpeg"
        # Of the first episode alone.
        film = Path(job["episodes"][0]["path"]).with_suffix(".mp4")
        film.parent.mkdir(parents=True)
        film.touch()

    monkeypatch.setattr(videos, "_render", look)
    monkeypatch.setattr(videos, "find_ffmpeg", lambda: "some/ffmpeg")
    paths = videos.save(evaluation([9, 5], success=[0, 1]), view, 2, tmp_path)
    assert [path.suffix for path in paths] == [".gif", ".gif", ".mp4", ".png"]


def test_a_machine_that_cannot_draw_is_told_what_to_install(
    view, tmp_path, monkeypatch
):
    tried = []

    def run(words, *, env, **_):
        tried.append(env["MUJOCO_GL"])
        status = render.NO_LIBRARY if env["MUJOCO_GL"] == "egl" else -11
        return videos.subprocess.CompletedProcess(words, status, "", "no such thing\n")

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(videos.subprocess, "run", run)
    with pytest.raises(SettingsError, match="apt install libegl1.* egl: no such thing"):
        videos.save(evaluation([3]), view, 1, tmp_path)
    assert tried == ["egl", "osmesa"]
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(SettingsError, match="glfw: no such thing"):
        videos.save(evaluation([3]), view, 1, tmp_path)
    assert tried[2:] == ["glfw"]


def test_a_library_that_cannot_be_imported_counts_as_missing(
    view, tmp_path, monkeypatch
):
    monkeypatch.setattr(videos, "_LIBRARIES", ("nothing",))
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with pytest.raises(SettingsError, match="MuJoCo cannot draw here.*nothing: "):
        videos.save(evaluation([3]), view, 1, tmp_path)


@pytest.mark.parametrize("task", TASKS)
def test_tasks_of_mujoco_can_be_drawn(task):
    env = make_task(task, engine="mujoco")
    state = jax.eval_shape(env.reset, jax.random.key(0))
    action = jax.ShapeDtypeStruct(env.action_shape, np.float32)
    _, outcome = jax.eval_shape(env.step, state, action)
    assert outcome.trace[videos.TRACE].shape == (env.view.model.nq,)
    assert env.view.model.camera(env.view.camera).id >= 0
    assert 0 < env.view.period < 0.1


def test_an_evaluation_draws_episodes_that_it_scores(world, tmp_path, monkeypatch):
    """Eight control steps of 35 ms, drawn every second time; nothing is rendered."""
    jobs = []

    def look(work):
        job = json.loads((Path(work) / "job.json").read_text())
        qpos = [np.load(path) for path in sorted(Path(work).glob("*.npy"))]
        jobs.append((job, qpos))

    monkeypatch.setattr(videos, "_render", look)
    config = make_config(world, "evaluate", run_dir=str(tmp_path))
    scored = evaluate.main(config, video=2)
    ((job, qpos),) = jobs
    assert [x["title"] for x in job["episodes"]] == [
        *("episode 0: failure", "episode 1: failure")
    ]
    assert job["camera"] == "top" and job["milliseconds"] == 70
    assert [x.shape for x in qpos] == [(4, 2)] * 2
    evaluate.main(config)
    assert len(jobs) == 1
    filed = json.loads((tmp_path / "evaluation.json").read_text())
    assert filed["metrics"] == scored


def test_what_cannot_be_drawn_is_refused_before_the_policy_is_read(tmp_path):
    config = make_config(tmp_path, "evaluate")
    with pytest.raises(SettingsError, match="--video=-1 must not be negative"):
        evaluate.main(config, video=-1)
    config.env.task = "gymnasium:Hopper-v5"
    with pytest.raises(SettingsError, match="gymnasium:Hopper-v5 runs in host"):
        evaluate.main(config, video=1)
    with pytest.raises(SettingsError, match="reach cannot be drawn.*view=View"):
        videos.check(tiny.point_task(), "reach")


def test_video_without_a_number_means_four(capsys):
    try:
        command_line._parse(["program", "--video"], (), needs_config=False)
        assert command_line.VIDEO.value == 4
        command_line._parse(["program", "--video=2"], (), needs_config=False)
        assert command_line.VIDEO.value == 2
    finally:
        flags.FLAGS.unparse_flags()
