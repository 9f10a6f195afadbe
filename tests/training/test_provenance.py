"""What a checkpoint says of itself."""

import functools
import os
import subprocess

import jax
import jax.numpy as jnp
import pytest

from dppo_jax.errors import SettingsError
from dppo_jax.normalize import Normalizer
from dppo_jax.training import provenance as module
from dppo_jax.training.checkpoint import Checkpoints, read_policy
from dppo_jax.training.provenance import FORMAT, provenance
from tests import tiny
from tests.conftest import REPOSITORY
from tests.counting import count

DATA = {"path": "/data/avoid", "episodes": 3}


def score(params, run_dir, iteration):
    """Of an evaluation; the second number is missing, as where no episode succeeded."""
    return {"eval/success": iteration / 10, "eval/steps": float("nan")}


@pytest.mark.parametrize("precision", ["highest", "float32"])
def test_a_checkpoint_names_what_wrote_it(tmp_path, precision, request):
    name = "jax_default_matmul_precision"
    request.addfinalizer(
        functools.partial(jax.config.update, name, jax.config.values[name])
    )
    jax.config.update(name, precision)
    count(tmp_path, 1, about={"data": DATA})
    about = read_policy(tmp_path).about
    assert about["format"] == FORMAT == 1
    assert about["versions"]["jax"] == jax.__version__
    assert {"dppo_jax", "flax", "orbax-checkpoint", "mujoco"} <= set(about["versions"])
    assert about["device"]["kind"] == jax.devices()[0].device_kind
    assert about["matmul_precision"] == precision
    assert about["data"] == DATA and about["score"] is None


def test_a_checkpoint_states_the_last_evaluation_until_the_next(tmp_path):
    settings = dict(
        evaluate=score, checkpoint_every=1, keep=None, keep_best="eval/success"
    )
    about = {"evaluate": {"num_episodes": 7}}
    count(tmp_path, 5, about=about, evaluate_every=2, **settings)
    stated = {i: read_policy(tmp_path, i).about["score"] for i in range(1, 6)}
    assert [stated[i]["iteration"] for i in range(1, 6)] == [0, 2, 2, 4, 5]
    assert stated[3] == {
        "iteration": 2,
        "num_episodes": 7,
        "metrics": {"eval/success": 0.2},
    }
    assert read_policy(tmp_path, "best").about["score"] == stated[5]
    # A resumed run goes on with the score of its checkpoint.
    count(tmp_path, 7, evaluate_every=9, **settings)
    assert read_policy(tmp_path, 6).about["score"] == stated[5]
    assert read_policy(tmp_path, 7).about["score"]["iteration"] == 7


def test_a_checkpoint_of_a_later_version_is_refused_by_its_format(
    tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(module, "FORMAT", FORMAT + 1)
        count(tmp_path, 2)
    version = provenance()["versions"]["dppo_jax"]
    message = f"checkpoints/2 has format 2, written by dppo_jax {version}; .*up to 1"

    def restore(run_dir):
        with Checkpoints(run_dir) as checkpoints:
            checkpoints.restore({})

    for read in (read_policy, restore, lambda run_dir: count(run_dir, 3)):
        with pytest.raises(SettingsError, match=message):
            read(tmp_path)


@pytest.mark.parametrize("damaged", ["2", None, [1]])
def test_a_format_that_is_no_number_is_refused(damaged):
    with pytest.raises(SettingsError, match="here has format"):
        module.check_format({"format": damaged, "versions": "new"}, "here")


def test_a_checkpoint_without_a_format_is_older_and_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("dppo_jax.training.checkpoint.described", lambda about: None)
    count(tmp_path, 2)
    assert read_policy(tmp_path).about == {}
    assert count(tmp_path, 3)["x"] == 8.0


def test_a_resumed_run_keeps_the_bounds_of_its_checkpoint(tmp_path, monkeypatch):
    """Its parameters work with no others, and would be saved with the new ones."""
    count(tmp_path, 2)
    before = read_policy(tmp_path)
    other = tiny.NORMALIZER._replace(obs_max=jnp.array([1.0, 0.5]))
    monkeypatch.setattr(tiny, "NORMALIZER", other)
    message = r"hold other bounds .*obs_max\[1\] is 1 there, 0.5 now.*--config.run_dir"
    with pytest.raises(SettingsError, match=message):
        count(tmp_path, 3)
    short = Normalizer(*(x[:1] for x in before.normalizer))
    monkeypatch.setattr(tiny, "NORMALIZER", short)
    with pytest.raises(SettingsError, match="their sizes differ"):
        count(tmp_path, 3)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.all == [2]


def test_the_revision_is_that_of_the_checkout_of_this_package():
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True)
    revision = provenance()["git"]
    if head.returncode:
        assert revision is None
    else:
        assert revision.removesuffix("+") == head.stdout.strip()


def test_without_git_there_is_no_revision(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert module._git_revision.__wrapped__() is None


def test_a_copy_that_git_does_not_track_has_no_revision(tmp_path, monkeypatch):
    """Such as the site-packages below the checkout of another project."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "a"], check=True)
    copy = tmp_path / "dppo_jax" / "training" / "provenance.py"
    copy.parent.mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(copy))
    assert module._git_revision.__wrapped__() is None


def test_the_checkout_is_only_read(tmp_path, monkeypatch):
    """Git would write what it learns of changed times into the index."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    package = tmp_path / "dppo_jax"
    (package / "training").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *words], check=True)
    os.utime(package / "__init__.py", (0, 0))
    before = (tmp_path / ".git" / "index").read_bytes()
    monkeypatch.setattr(module, "__file__", str(package / "training" / "provenance.py"))
    assert len(module._git_revision.__wrapped__()) == 40
    assert (tmp_path / ".git" / "index").read_bytes() == before
