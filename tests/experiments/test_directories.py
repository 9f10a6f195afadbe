"""Which runs may resume in a directory, and which policies fit a configuration."""

import json
import shutil

import numpy as np
import pytest

from dppo_jax.training.metrics import read_metrics
from experiments import directories, finetune, inputs, pretrain
from tests.stages import make_config


def test_the_same_command_resumes_a_run(world, tmp_path, capsys):
    shutil.copytree(world / "pretrain", tmp_path / "pretrain")
    changes = dict(loop__pretrain__num_epochs=4, run_dir=str(tmp_path / "pretrain"))
    pretrain.main(make_config(world, "pretrain", **changes))
    assert "resuming at iteration 3 of 4" in capsys.readouterr().out
    rows = read_metrics(tmp_path / "pretrain")
    assert [row["iteration"] for row in rows] == [0, 1, 3, 4]


def test_a_run_that_was_moved_resumes(world, tmp_path, monkeypatch, capsys):
    """Policies and data are compared by contents, not by path."""
    for name in ("data", "pretrain", "finetune"):
        shutil.copytree(world / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    moved = dict(data="./data", policy="pretrain/", run_dir="finetune")
    finetune.main(make_config(tmp_path, "finetune", **moved))
    assert "resuming at iteration 2 of 2" in capsys.readouterr().out
    config = make_config(tmp_path, "pretrain", **moved | dict(run_dir="pretrain"))
    data = directories.digest(inputs.load_data(config))
    directories.prepare_run(config, "pretrain", {"data": data})
    for stage, source in (("finetune", "policy"), ("pretrain", "data")):
        config = make_config(tmp_path, stage, **moved | dict(run_dir=stage))
        with pytest.raises(ValueError, match=f"started from another {source}: "):
            directories.prepare_run(config, stage, {source: "0123456789abcdef"})


def test_a_digest_depends_only_on_arrays():
    a, b = np.arange(3.0), np.zeros((2, 2))
    assert directories.digest({"x": a, "y": b}) == directories.digest((b.copy(), a))
    for other in ((b, a + 1), (b.ravel(), a), (b, a.astype(np.float32)), (b,)):
        assert directories.digest(other) != directories.digest((b, a))


def test_a_run_directory_belongs_to_its_settings(world, tmp_path):
    """Changed settings are refused by name, except those that may change."""
    shutil.copytree(world / "finetune", tmp_path / "finetune")
    file = tmp_path / "finetune" / "config.json"
    origin = json.loads(file.read_text())["origin"]

    def prepare(origin=None, **changes):
        changes["run_dir"] = str(tmp_path / "finetune")
        config = make_config(world, "finetune", **changes)
        directories.prepare_run(config, "finetune", origin)

    prepare(origin)
    before = file.read_bytes()
    for name, value in [
        ("seed", 7),
        ("algorithm.ppo.discount", 0.5),
        ("model.network.hidden_sizes", (8,)),
        ("algorithm.ppo.target_kl", None),
        ("env.executed", 2),
    ]:
        with pytest.raises(ValueError, match=f"holds a run with {name}="):
            prepare(**{name: value})
    assert file.read_bytes() == before
    changes = {"loop.finetune.num_iterations": 9, "evaluate.seed": 3}
    prepare(origin, **changes | {"loop.finetune.log_every": 2})
    assert file.read_bytes() != before
    prepare(origin)
    assert file.read_bytes() == before


def test_a_run_directory_belongs_to_its_stage(world):
    config = make_config(world, "finetune", run_dir=str(world / "pretrain"))
    with pytest.raises(ValueError, match="holds a .*pretrain.*--config.run_dir"):
        directories.prepare_run(config, "finetune")


@pytest.mark.parametrize(
    "name, value",
    [
        ("model.chunk", 2),
        ("model.diffusion.num_denoising_steps", 5),
        ("model.network.hidden_sizes", (16, 16, 16)),
        ("model.network.condition_sizes", (8,)),
        ("env.history", 2),
        ("env.task", "hopper"),
    ],
)
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_policy_other_than_the_configured_one_is_refused_by_name(
    world, stage, name, value
):
    config = make_config(
        world, "evaluate", **{name: value, "policy": str(world / stage)}
    )
    with pytest.raises(ValueError, match=f"was trained with {name}=.*--config.{name}="):
        inputs.find_policy(config, stage)


def test_only_a_fine_tuned_policy_refuses_another_number_of_tuned_steps(world):
    """A fine-tuned chain with another K' would be another policy."""
    changes = dict(model__sampling__num_tuned_steps=3)
    with pytest.raises(ValueError, match="with model.sampling.num_tuned_steps=2"):
        inputs.find_policy(make_config(world, "evaluate", **changes), "finetune")
    inputs.find_policy(make_config(world, "finetune", **changes), "pretrain")


def test_settings_that_change_the_score_get_a_note(world, capsys):
    config = make_config(world, "finetune", env__max_steps=5)
    config.env.limit_terminates = not config.env.limit_terminates
    inputs.find_policy(config, "pretrain")
    said = [x for x in capsys.readouterr().out.splitlines() if x.startswith("note")]
    assert said == ["note: the policy was trained with env.max_steps=8, not 5"]


def test_a_fine_tuned_policy_refuses_other_denoising_steps(world):
    """Each of its networks must run the denoising steps that it was trained for."""
    config = make_config(world, "evaluate", model__sampling__ddim_steps=2)
    message = "was trained with model.sampling.ddim_steps=None.*ddim_steps=None"
    with pytest.raises(ValueError, match=message):
        inputs.find_policy(config, "finetune")
