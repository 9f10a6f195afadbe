"""Policies as ONNX files, run by onnxruntime without JAX."""

import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax import exported, onnx_file
from dppo_jax.errors import SettingsError
from dppo_jax.exported_policy import ExportedPolicy
from experiments import deploy
from tests import tiny
from tests.test_controller import SEEN, counter, loaded

# Loading the converter takes longer than all that these tests do with it.
_MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("jax2onnx") is None,
        reason='needs the extra: pip install -e ".[onnx]" -c constraints.txt',
    ),
]


def new(policy):
    return loaded(policy.act, policy.init(jax.random.key(0), tiny.OBS))


def marked(test):
    for mark in _MARKS:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "out"
    exported.write_exported(path, new(tiny.tiny_diffusion_policy()), onnx=True)
    return path


@marked
@pytest.mark.parametrize(
    ("policy", "deterministic", "noise"),
    [
        (tiny.tiny_flow_policy, False, {"noise": (1, 3, 2, 1)}),
        (tiny.tiny_gaussian_policy, True, {"noise": (1, 2, 1)}),
        (tiny.tiny_squashed_policy, True, {}),
    ],
)
def test_the_file_acts_as_the_policy(policy, deterministic, noise):
    program = onnx_file.to_onnx(new(policy()), deterministic=deterministic)
    assert program.noise == noise
    # In task units; actions lie in [10, 20].
    assert program.difference.largest < 1e-4
    run = onnx_file.run_by_onnxruntime(program.content)
    numbers = {name: np.zeros(x, np.float32) for name, x in noise.items()}
    chunk = run({**numbers, "state": SEEN[None].astype(np.float32)})
    assert chunk.shape == (2, 1) and np.all((chunk >= 10) & (chunk <= 20))


@marked
def test_the_copied_loader_runs_it_without_jax_and_without_the_package(folder):
    about = json.loads((folder / exported.ABOUT).read_text())["onnx"]
    assert about["noise"] == {"noise": [1, 5, 2, 1]}
    assert about["largest_difference"] < 1e-4
    code = (
        "import json, runpy, sys; sys.modules['jax'] = sys.modules['dppo_jax'] = None; "
        f"loader = runpy.run_path({str(folder / exported.LOADER)!r}); "
        f"policy = loader['ExportedPolicy']({str(folder)!r}, runtime='onnx', seed=3); "
        f"print(json.dumps([policy({SEEN.tolist()}).tolist() for _ in range(3)]))"
    )
    command = [sys.executable, "-I", "-c", code]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # The numbers that the loader draws, given to the policy itself.
    seeds = np.random.default_rng(3).integers(2**32, size=2)
    run = onnx_file.run_by_onnxruntime((folder / exported.ONNX).read_bytes())
    chunks = []
    for seed in seeds:
        numbers = np.random.default_rng(seed).standard_normal((1, 5, 2, 1))
        state = SEEN[None].astype(np.float32)
        chunks.append(run({"noise": numbers.astype(np.float32), "state": state}))
    np.testing.assert_allclose(json.loads(said), np.concatenate(chunks)[:3], rtol=1e-6)


@marked
def test_the_program_tells_the_difference_and_the_times(tmp_path, monkeypatch, capsys):
    policy = new(tiny.tiny_gaussian_policy())
    monkeypatch.setattr(deploy, "load_policy", lambda run_dir, checkpoint: policy)
    monkeypatch.setattr(deploy, "_TIMED_CALLS", 3)
    out = deploy.main("run", str(tmp_path / "out"), onnx=True)
    said = capsys.readouterr().out
    assert "policy.onnx: largest difference of an action" in said
    assert "a chunk by onnxruntime, one thread: p50 " in said
    assert "a chunk by JAX: p50 " in said
    assert (tmp_path / "out" / exported.ONNX).is_file() and out.endswith("out")


@marked
def test_a_file_that_acts_otherwise_is_not_written(tmp_path, monkeypatch):
    run = onnx_file.run_by_onnxruntime
    monkeypatch.setattr(
        onnx_file,
        "run_by_onnxruntime",
        lambda content: lambda inputs: run(content)(inputs) + 0.02,
    )
    policy = new(tiny.tiny_gaussian_policy())
    with pytest.raises(SettingsError, match="wrongly .policy.onnx differs .* by 0.02,"):
        exported.write_exported(tmp_path / "out", policy, onnx=True)
    assert list(tmp_path.iterdir()) == []


@marked
def test_what_the_converter_does_not_know_is_refused():
    def act(params, keys, obs, *, deterministic):
        chunk = jax.pure_callback(
            np.sin, jax.ShapeDtypeStruct((1, 1, 2), jnp.float32), obs["state"]
        )
        return chunk.swapaxes(1, 2), {}

    with pytest.raises(SettingsError, match="jax2onnx cannot convert this policy"):
        onnx_file.to_onnx(loaded(act))


def test_without_the_extra_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r"jax2onnx and onnxruntime, not installed; run.*\.\[onnx\]"
    with pytest.raises(SettingsError, match=message):
        exported.write_exported(tmp_path / "out", counter(), onnx=True)
    assert list(tmp_path.iterdir()) == []


def test_a_runtime_must_be_one_that_the_folder_has(tmp_path):
    (tmp_path / exported.ABOUT).write_text("{}")
    for runtime, message in (
        ("onnx", "has no policy.onnx; export with --onnx"),
        ("torch", "runtime='torch' must be 'jax' or 'onnx'"),
    ):
        with pytest.raises(ValueError, match=message):
            ExportedPolicy(str(tmp_path), runtime=runtime)
