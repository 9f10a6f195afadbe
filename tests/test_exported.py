"""Policies that are written as programs of JAX, and read without this package."""

import importlib.util
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from dppo_jax import exported
from dppo_jax.errors import SettingsError
from dppo_jax.interop import load_safetensors
from experiments import deploy
from tests import tiny
from tests.test_controller import SEEN, counter, loaded


@pytest.fixture(scope="module")
def diffusion():
    policy = tiny.tiny_diffusion_policy()
    return loaded(policy.act, policy.init(jax.random.key(0), tiny.OBS))


@pytest.fixture(scope="module")
def folder(diffusion, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "out"
    exported.write_exported(path, diffusion, about={"task": "reach"})
    return path


def reader(folder):
    """The class of the file that was copied to the folder."""
    spec = importlib.util.spec_from_file_location("copied", folder / exported.LOADER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ExportedPolicy


def test_the_program_acts_as_the_policy_for_the_same_seed(diffusion, folder):
    policy = reader(folder)(str(folder))
    obs = {"state": SEEN[None].astype(np.float32)}
    for seed in (0, 2**32 - 1):
        wanted = diffusion(SEEN, jax.random.key(seed))
        np.testing.assert_allclose(policy.chunk(obs, seed), wanted, rtol=1e-5)
    assert np.any(policy.chunk(obs, 0) != policy.chunk(obs, 1))


@pytest.mark.parametrize("name", [exported.PROGRAM, exported.ABOUT])
def test_a_file_that_is_cut_or_missing_is_named(folder, tmp_path, name):
    damaged = tmp_path / "copy"
    shutil.copytree(folder, damaged)
    content = (damaged / name).read_bytes()
    (damaged / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{name} is damaged .*; copy the whole"):
        reader(folder)(str(damaged))
    (damaged / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing .*; copy the whole"):
        reader(folder)(str(damaged))


def test_it_runs_where_the_package_is_not_found(folder, tmp_path):
    """With -I Python ignores the working directory and the environment."""
    code = (
        "import runpy, sys; sys.modules['dppo_jax'] = None; "
        f"runpy.run_path({str(folder / exported.LOADER)!r}, run_name='__main__')"
    )
    said = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    lines = said.splitlines()
    assert lines[0] == "observation {'state': [2]}" and len(lines) == 3
    # Of the middle of the bounds; the loader draws its seeds from 0.
    seed = int(np.random.default_rng(0).integers(2**32))
    chunk = reader(folder)(str(folder)).chunk({"state": np.float32([[0, 2]])}, seed)
    assert [json.loads(x.removeprefix("action ")) for x in lines[1:]] == chunk.tolist()


def test_weights_and_description_can_be_read_by_other_programs(diffusion, folder):
    about = json.loads((folder / exported.ABOUT).read_text())
    assert about["task"] == "reach" and about["actions"]["shape"] == [2, 1]
    assert about["observation"] == {"state": {"shape": [1, 2], "dtype": "float32"}}
    assert about["bounds"]["action_max"] == [20.0]
    assert about["largest_difference"] < 1e-4
    weights = load_safetensors(folder / exported.WEIGHTS)
    leaves = jax.tree.leaves(diffusion.params)
    assert len(weights) == len(leaves)
    assert sum(x.size for x in weights.values()) == sum(x.size for x in leaves)
    name = next(name for name in weights if name.endswith("kernel"))
    *_, leaf = name.split("/")
    assert leaf == "kernel" and weights[name].ndim == 2


def test_history_and_executed_actions_are_those_of_the_controller(tmp_path):
    """Chunks are the mean of two observations plus 0, 0.1 and 0.2."""
    exported.write_exported(tmp_path / "out", counter(history=2, executed=2))
    policy = reader(tmp_path / "out")(str(tmp_path / "out"))
    # Bounds map observations [-2, 2] to [-1, 1], and actions [-1, 1] to [10, 20].
    seen = [np.array([x, 0.0]) for x in (0.4, 0.8, -0.4, 1.2)]
    found = [policy(x)[0] for x in seen]
    means = [0.2, 0.2 + 0.1, 0.1, 0.1 + 0.1]
    np.testing.assert_allclose(found, [15 + 5 * x for x in means], rtol=1e-6)
    policy.reset()
    np.testing.assert_allclose(policy(seen[3]), [15 + 5 * 0.6], rtol=1e-6)
    for wrong in (np.zeros(3), np.array([np.nan, 0]), {"rgb": SEEN}):
        with pytest.raises(ValueError, match="has shape|not finite|lacks state"):
            policy(wrong)
    with pytest.raises(ValueError, match="executed=4 must lie between 1 and 3"):
        reader(tmp_path / "out")(str(tmp_path / "out"), executed=4)


def test_what_cannot_be_written_leaves_nothing(
    diffusion, folder, tmp_path, monkeypatch
):
    with pytest.raises(SettingsError, match="out exists; give another name"):
        exported.write_exported(folder, diffusion)
    out = tmp_path / "parent" / "new"
    with pytest.raises(SettingsError, match="platforms=cpu,abacus must be some of"):
        exported.write_exported(out, diffusion, platforms=("cpu", "abacus"))
    with pytest.raises(SettingsError, match="and cpu, on which the program is comp"):
        exported.write_exported(out, diffusion, platforms=("tpu",))
    with pytest.raises(SettingsError, match="without a configuration"):
        exported.write_exported(out, diffusion._replace(act=None))
    others = diffusion.sample
    with monkeypatch.context() as context:
        context.setattr(
            type(diffusion), "sample", lambda *a, **k: others(*a[1:], **k) + 0.02
        )
        with pytest.raises(RuntimeError, match="differs from the policy by 0.02"):
            exported.write_exported(out, diffusion)
        context.setattr(
            type(diffusion), "sample", lambda *a, **k: others(*a[1:], **k) * np.nan
        )
        with pytest.raises(RuntimeError, match="differs from the policy by nan"):
            exported.write_exported(out, diffusion)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"flatbuffers.*\.\[deploy\]"):
        exported.write_exported(out, diffusion)
    assert not out.exists() and list(tmp_path.iterdir()) == []


def test_the_program_names_what_it_wrote(diffusion, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(deploy, "load_policy", lambda run_dir, checkpoint: diffusion)
    out = deploy.main("run", str(tmp_path / "out"), "best", exploring=True)
    said = capsys.readouterr().out
    assert f"written to {out}" in said and f"python {out}/exported_policy.py" in said
    about = json.loads((tmp_path / "out" / exported.ABOUT).read_text())
    assert not about["deterministic"] and about["checkpoint"] == 0


def test_pictures_are_checked_before_anything_is_remembered(tmp_path):
    def act(params, keys, obs, *, deterministic):
        light = obs["rgb"].astype(np.float32).mean((1, 2, 3, 4))
        return (light[:, None, None] + obs["state"][:, :1, :1]) / 255, {}

    like = {"state": jax.ShapeDtypeStruct((1, 2), np.float32)}
    like["rgb"] = jax.ShapeDtypeStruct((1, 4, 4, 3), np.uint8)
    seeing = loaded(act)._replace(reads=like)
    exported.write_exported(tmp_path / "out", seeing)
    policy = reader(tmp_path / "out")(str(tmp_path / "out"))
    bright = np.full((4, 4, 3), 51, np.uint8)
    with pytest.raises(ValueError, match="rgb has type float64; pass uint8"):
        policy({"state": SEEN + 1, "rgb": bright / 255})
    # 51 of 255 is 0.2 of the range [-1, 1] -> [10, 20]; the state 0.5 is 0.25 of it.
    found = policy({"state": SEEN, "rgb": bright})
    np.testing.assert_allclose(found, [15 + 5 * (51 + 0.25) / 255], rtol=1e-5)


def test_where_the_program_cannot_write_it_says_so_before_it_exports(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(deploy, "load_policy", None)
    (tmp_path / "file").touch()
    for out, message in (
        ("", "'' exists; give another name"),
        (str(tmp_path), "exists; give another name"),
        (f"{tmp_path}/file/out", "is a file; give another name"),
    ):
        with pytest.raises(SettingsError, match=message):
            deploy.main("run", out)
