"""A run directory is that of one run, and its settings stay true; nothing trains."""

import json

import numpy as np
import pytest

from dppo_jax.errors import SettingsError
from dppo_jax.training.config_file import load_config, save_config
from experiments import directories, evaluate, finetune, inputs, pretrain
from experiments.configs import avoid
from experiments.seeds import seed_configs


def make_config(folder, **changes):
    """A locked configuration; write dots in names as double underscores."""
    config = avoid.get_config("m1")
    config.update(run_dir=str(folder), data="data", policy="cloned")
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    return config.lock()


def prepare(folder, stage="pretrain", origin=None, **changes):
    return directories.prepare_run(make_config(folder, **changes), stage, origin)


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(message, function, *args, **settings):
    with pytest.raises(SettingsError, match=message):
        function(*args, **settings)


def change(run_dir, name, value):
    """Damage a `config.json` by hand."""
    config = json.loads((run_dir / "config.json").read_text())
    *sections, key = name.split(".")
    node = config
    for section in sections:
        node = node[section]
    node[key] = value
    (run_dir / "config.json").write_text(json.dumps(config))


def test_a_folder_of_seeds_is_no_run_and_a_run_is_no_folder_of_seeds(tmp_path):
    single, several = tmp_path / "single", tmp_path / "several"
    prepare(single)
    configs = seed_configs(make_config(several, num_seeds=2), "pretrain")
    directories.prepare_runs(configs, "pretrain")
    before = files(tmp_path)
    refused("is the folder of several seeds .*seed_0.*num_seeds=2", prepare, several)
    config = make_config(single, num_seeds=2)
    refused("is the directory of a single run", seed_configs, config, "pretrain")
    assert files(tmp_path) == before
    prepare(several / "seed_1", seed=1)  # One seed resumes alone.


def test_a_resumed_run_keeps_the_settings_that_it_does_not_read(tmp_path):
    run_dir = prepare(tmp_path, origin={"data": "1"})
    before = load_config(run_dir)
    changes = dict(algorithm__ppo__epochs=7, policy="other", rollout__num_envs=3)
    prepare(tmp_path, origin={"data": "1"}, loop__pretrain__num_epochs=9, **changes)
    before["loop"]["pretrain"]["num_epochs"] = 9
    assert load_config(run_dir) == before


def test_a_resumed_run_says_which_settings_changed(tmp_path, capsys):
    def said(**changes):
        prepare(tmp_path, origin={"data": "1"}, **changes)
        return capsys.readouterr().out.splitlines()

    assert said() == said() == []
    changes = dict(loop__pretrain__num_epochs=9, evaluate__seed=3)
    before = make_config(tmp_path)
    lines = [
        "resumed: evaluate.seed 0 -> 3",
        f"resumed: loop.pretrain.num_epochs {before.loop.pretrain.num_epochs} -> 9",
    ]
    assert said(**changes) == lines
    # What the stage does not read keeps its value, so it did not change.
    assert said(**changes, algorithm__ppo__epochs=7) == []
    assert said(**changes, data="") == ["resumed: data data -> ''"]


def test_several_seeds_say_once_what_changed(tmp_path, capsys):
    for num_epochs in (5, 7):
        changes = dict(num_seeds=3, loop__pretrain__num_epochs=num_epochs)
        configs = seed_configs(make_config(tmp_path, **changes), "pretrain")
        directories.prepare_runs(configs, "pretrain")
    said = capsys.readouterr().out.splitlines()
    assert said == ["resumed: loop.pretrain.num_epochs 5 -> 7"]


def test_cloning_reads_how_chains_are_sampled(tmp_path):
    """Its evaluations, and whoever loads the policy, sample with these settings."""
    prepare(tmp_path)
    before = files(tmp_path)
    message = "model.sampling.ddim_steps=None, not 5; pass --config.*ddim_steps=None"
    refused(message, prepare, tmp_path, model__sampling__ddim_steps=5)
    assert files(tmp_path) == before


def test_a_resumed_run_keeps_what_it_started_from(tmp_path):
    """Data that exist only now are not those of which it took the bounds."""
    run_dir = prepare(tmp_path, "finetune", {"policy": "1", "checkpoint": 5})
    prepare(tmp_path, "finetune", {"policy": "1", "checkpoint": "best", "data": "2"})
    assert load_config(run_dir)["origin"] == {"policy": "1", "checkpoint": 5}


@pytest.mark.parametrize("name", ["metrics.csv", "checkpoints/7/state", "best/7/state"])
def test_results_of_something_else_are_not_overwritten(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("step,loss\n1,2\n")
    before = files(tmp_path)
    message = f"holds {name.split('/')[0]} but no config.json.*--config.run_dir"
    refused(message, prepare, tmp_path)
    config = make_config(tmp_path, num_seeds=2)
    refused(message, seed_configs, config, "pretrain")
    assert files(tmp_path) == before


@pytest.mark.parametrize("inside", [(), ("run",)])
def test_a_file_is_no_run_directory(tmp_path, inside):
    file = tmp_path / "file"
    file.write_text("mine")
    path = file.joinpath(*inside)
    message = f"nothing can be written to {path}, because {file} is a file; .*run_dir"
    refused(message, prepare, path)
    refused(message, seed_configs, make_config(path, num_seeds=2), "pretrain")


def test_an_evaluation_that_cannot_be_written_does_not_start(tmp_path):
    (tmp_path / "file").write_text("mine")
    config = make_config(tmp_path / "file")
    refused("nothing can be written to .*is a file", evaluate.main, config)


def test_an_evaluation_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """An interrupt while the file is written leaves the previous one."""
    old = tmp_path / "evaluation.json"
    old.write_text("{}")
    policy = inputs.LoadedPolicy(None, lambda: None, None, {}, 3)
    monkeypatch.setattr(inputs, "find_policy", lambda *_: policy)
    found = evaluate.Evaluation({"success": np.ones(1)}, {})
    monkeypatch.setattr(evaluate, "make_score", lambda *_, **__: lambda *_: found)
    monkeypatch.setattr(evaluate, "summarize", lambda result: {"success": 1.0})
    config = make_config(tmp_path, policy="cloned")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pathlib.Path.replace", lambda *_: interrupt())
        evaluate.main(config)
    assert old.read_text() == "{}"
    evaluate.main(config)
    assert json.loads(old.read_text())["metrics"] == {"success": 1.0}


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "name, value, wanted",
    [
        ("model", None, "a section"),
        ("model.network", [1], "a section"),
        ("model.chunk", "4", "of type int"),
        ("model.chunk", True, "of type int"),
        ("model.chunk", None, "of type int"),
        ("model.network.hidden_sizes", 16, "of type tuple"),
        ("model.network.kind", 3, "of type str"),
        ("model.sampling.ddim_steps", "all", "of type int or null"),
        ("env", [], "a section"),
        ("env.history", "1", "of type int"),
        ("algorithm.ppo.discount", "high", "of type float"),
        ("mesh.distributed", 0, "of type bool"),
        ("origin", None, "a section"),
        ("origin.code", "mine.py", "of type list"),
    ],
)
def test_a_damaged_setting_is_named_with_its_file(tmp_path, name, value, wanted):
    run_dir = prepare(tmp_path / "run")
    change(tmp_path / "run", name, value)
    message = rf"run/config.json: {name}=.* must be {wanted}; restore the file"
    refused(message, directories.config_of_run, run_dir)
    refused(message, prepare, run_dir)
    config = make_config("new", policy=run_dir)
    refused(message, inputs.find_policy, config, "pretrain")


def test_a_name_cannot_be_a_value_and_a_section(tmp_path):
    save_config(tmp_path, {"algorithm": 3, "finetune": {"epochs": 1}})
    message = "config.json: algorithm=3 must be a section.*restore the file"
    refused(message, load_config, tmp_path)


@pytest.mark.parametrize("text", [b'{"model": {', b"\xff{}", b"[]", b""])
def test_a_configuration_that_is_cut_off_is_named(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text)
    refused("config.json .*restore the file", prepare, tmp_path)


def test_a_run_without_a_name_needs_paths(tmp_path):
    config = make_config("", name="", data="", policy="")
    for flag, find in [
        ("run_dir", lambda: directories.run_path(config, "pretrain")),
        ("data", lambda: inputs.data_path(config)),
        ("policy", lambda: inputs.policy_path(config, "pretrain")),
    ]:
        refused(f"config.name is empty.*--config.name=NAME or --config.{flag}=", find)
    config = make_config("", name="", num_seeds=2)
    refused("config.name is empty", seed_configs, config, "pretrain")
    config = make_config("run", name="")
    assert directories.run_path(config, "pretrain") == "run"


@pytest.mark.parametrize("seed", [-1, 2**32, 2**70])
def test_a_seed_has_32_bits(tmp_path, seed):
    config = make_config(tmp_path, seed=seed, evaluate__seed=seed)
    for stage in (pretrain, finetune):
        refused(f"^seed={seed} must be between 0 and", stage.main, config)
    message = f"evaluate.seed={seed} must be between 0"
    refused(message, evaluate.make_score, config, None, None)
    config = make_config(tmp_path, seed=2**32 - 1, num_seeds=2)
    refused("the last of several seeds", pretrain.main, config)


def test_new_networks_have_no_checkpoint(tmp_path):
    config = make_config(tmp_path, policy="none")
    refused("--checkpoint=7 chooses .*policy=none", finetune.main, config, 7)
    assert not files(tmp_path)


def test_wrong_settings_are_refused_before_random_actions(tmp_path, monkeypatch):
    """The buffer has not one chunk for each of 4 environments."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inputs, "random_bounds", lambda *_, **__: pytest.fail("ran"))
    config = make_config("run", data="", policy="none", model__kind="squashed")
    config.algorithm.name, config.model.network.residual = "sac", False
    config.rollout.num_envs, config.rollout.reset_at_iteration = 4, False
    config.algorithm.sac.replay.update(capacity=3, min_fill=0, batch_size=8)
    refused("capacity=3 must be at least num_envs=4", finetune.main, config)


def test_a_run_that_started_from_another_checkpoint_names_both(tmp_path):
    prepare(tmp_path, "finetune", {"policy": "1", "checkpoint": 5})

    def resume(message, digest="2", checkpoint=9, **changes):
        origin = {"policy": digest, "checkpoint": checkpoint}
        refused(message, prepare, tmp_path, "finetune", origin, **changes)

    resume(
        "checkpoint 5 of cloned, not checkpoint 9 of cloned; pass "
        "--config.policy=cloned --checkpoint=5"
    )
    resume("checkpoint 5 of cloned, not checkpoint 9 of other; pass", policy="other")
    resume("restore checkpoint 5 of cloned, which has changed", checkpoint=5)
    message = "5 of cloned, not new networks; pass --config.policy=cloned --check"
    refused(message, prepare, tmp_path, "finetune", {}, policy="none")


def told(*args, **settings):
    """The message of a refusal."""
    with pytest.raises(SettingsError) as error:
        prepare(*args, **settings)
    return str(error.value)


def test_advice_can_be_followed(tmp_path):
    prepare(tmp_path, "finetune", {"policy": "1"})

    def resume(stage="finetune", **changes):
        return told(tmp_path, stage, {"policy": "1"}, **changes)

    assert "pass --config.seed=0 to resume it, or" in resume(seed=3)
    prepare(tmp_path / "many/seed_3", "finetune", seed=5)
    alone = "with seed=5, not 3; pass another --config.run_dir"
    assert alone in told(tmp_path / "many/seed_3", "finetune", seed=3)
    leave = "leave env.options.wind out to resume it, or pass another"
    assert leave in resume(env__options={"rewarded_gap": 5, "wind": 3})
    change(tmp_path, "env.colour", "red")  # A setting of another version.
    alone = "with env.colour='red', not None; pass another --config.run_dir"
    assert alone in resume()
    change(tmp_path, "stage", "train")
    assert "holds a run of dppo_jax.train; pass another" in resume()
    change(tmp_path, "stage", None)
    assert "a run of a program that is not known here; pass another" in resume()
    change(tmp_path, "imported_from", "state.pt")
    assert "pass it as --config.policy, and another --config.run_dir" in resume()
    assert "--config.policy" not in resume("pretrain")


def test_a_folder_of_runs_names_them(tmp_path):
    configs = seed_configs(make_config(tmp_path, num_seeds=2), "finetune")
    directories.prepare_runs(configs, "finetune")
    message = f"one of {tmp_path}/seed_0, {tmp_path}/seed_1"
    refused(message, directories.config_of_run, str(tmp_path))
    config = make_config("new", policy=str(tmp_path))
    refused(message, inputs.find_policy, config, "finetune")
