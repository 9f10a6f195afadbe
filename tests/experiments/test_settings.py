"""Configuration files and command lines set known settings; others are refused."""

import json
import shlex
from pathlib import Path

import pytest
from ml_collections import ConfigDict, FieldReference

from dppo_jax.algorithms import ALGORITHMS, make_algorithm
from dppo_jax.errors import SettingsError
from dppo_jax.networks import build as networks
from dppo_jax.training.old_settings import RENAMED, flatten, updated
from experiments import directories
from experiments.configs import avoid, gymnasium_env, hopper
from experiments.defaults import default_config
from experiments.settings import as_flag, load_config, override, settings_of
from tests.conftest import REPOSITORY

OLD_RUN = Path(__file__).with_name("config_before_sections.json")


def write(folder, *lines):
    path = folder / "mine.py"
    body = "".join(f"    {line}\n" for line in lines)
    path.write_text(
        "from experiments.defaults import default_config\n\n"
        f"def get_config():\n    c = default_config()\n{body}    return c\n"
    )
    return str(path)


@pytest.mark.parametrize(
    "line, message",
    [
        ("c.pretrain.num_epoch = 1", "pretrain.num_epoch; did you mean .*num_epochs?"),
        ("c.algorithm.ppo.target_lk = 1", "ppo.target_lk; did you mean .*target_kl?"),
        ("c.env.tsk = 'avoid'", "env.tsk; did you mean env.task?"),
        ("c.sead = 1", "sead; did you mean seed?"),
        ("c.pretrian.batch_size = 1", "pretrian.batch_size; did you mean pretrain"),
        ("c.finetune.num_envs = 4", "finetune.num_envs; it is called rollout.num_envs"),
        ("c.seed = 'one'", "TypeError: .*'seed'"),
        ("nonsense", "NameError: .*nonsense"),
        ("int('one')", "ValueError: invalid literal"),
        ("open('/nowhere')", "FileNotFoundError: .*/nowhere"),
        ("import nowhere", "ModuleNotFoundError: .*nowhere"),
        ("assert False, 'not yet'", "AssertionError: not yet"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(tmp_path, line, message):
    path = write(tmp_path, "c.name = 'mine'", line)
    expected = f"mine.py, line 6: (unknown )?.*{message}"
    with pytest.raises(SettingsError, match=expected) as raised:
        load_config(path)
    assert raised.value.__cause__ is not None


def test_a_file_that_is_no_program_or_makes_no_configuration_is_named(tmp_path):
    with pytest.raises(SettingsError, match="mine.py.*line 5"):
        load_config(write(tmp_path, "c.name = = 'mine'"))
    with pytest.raises(SettingsError, match="mine.py: get_config returns a NoneType"):
        load_config(write(tmp_path, "return None"))


def test_none_is_for_optional_settings_only(tmp_path):
    config = load_config(write(tmp_path, "c.algorithm.ppo.target_kl = None"))
    assert config.algorithm.ppo.target_kl is None
    with pytest.raises(
        ValueError, match="model.chunk=None: this setting needs a value"
    ):
        load_config(write(tmp_path, "c.model.chunk = None"))


def test_options_and_collect_accept_new_keys(tmp_path):
    lines = "c.env.options.gap = 5", "c.collect.modes = (1, 2)"
    config = load_config(write(tmp_path, *lines))
    override(config, ["env.options.gap=6", "env.options.wind=0.5", "collect.modes=3"])
    assert config.env.options.to_dict() == {"gap": 6, "wind": 0.5}
    assert config.collect.modes == (3,)
    with pytest.raises(ValueError, match="collect.modez; did you mean collect.modes"):
        override(config, ["collect.modez=3"])


@pytest.mark.parametrize("make", [avoid.get_config, hopper.get_config])
def test_every_setting_can_be_set_by_its_flag(make):
    """A shell passes the flag of `as_flag` on, and the flag sets the same value."""
    before = flatten(directories.as_json(make()))
    config = make()
    for name, value in before.items():
        (word,) = shlex.split(as_flag(name, value)) if value != {} else ("",)
        override(config, [word.removeprefix("--config.")] if word else [])
    assert flatten(directories.as_json(config)) == before


def optional(config, prefix=""):
    for key, value in config.items(preserve_field_references=True):
        if isinstance(value, ConfigDict):
            yield from optional(value, f"{prefix}{key}.")
        elif isinstance(value, FieldReference):
            yield f"{prefix}{key}"


def test_every_optional_setting_takes_none_and_a_value():
    config = gymnasium_env.get_config()
    names = list(optional(config))
    assert {"algorithm.ppo.target_kl", "model.network.condition_sizes"} < set(names)
    assert {"env.options.processes", "model.diffusion.x0_clip"} < set(names)
    for name in names:
        override(config, [f"{name}=1"])
        assert flatten(config.to_dict())[name] in (1, (1,), "1")
        override(config, [f"{name}=None"])
        assert flatten(config.to_dict())[name] is None


@pytest.mark.parametrize(
    "setting, value",
    [
        ("model.network.hidden_sizes=(8, 4)", (8, 4)),
        ("model.network.hidden_sizes=8", (8,)),
        ("algorithm.ppo.advantage_quantiles=(0.1,0.9)", (0.1, 0.9)),
        (
            "env.wrappers=mine.py:reward,yours:reward",
            ("mine.py:reward", "yours:reward"),
        ),
        ("env.wrappers=()", ()),
        ("mesh.distributed=true", True),
        ("seed=7", 7),
        ("name=7", "7"),
        ("env.task=", ""),
        ("algorithm.ppo.clip_top=1e-2", 0.01),
    ],
)
def test_a_value_reads_as_the_type_of_what_it_replaces(setting, value):
    config = default_config()
    override(config, ["seed=1", setting])
    found = flatten(config.to_dict())[setting.split("=")[0]]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "setting, message",
    [
        ("seed=None", "--config.seed=None: the value must be of type int."),
        ("seed=1.5", "--config.seed=1.5: the value must be of type int."),
        ("algorithm.ppo.target_kl=x", "target_kl=x: .* float or None."),
        ("model.network.hidden_sizes=None", "None: .* of type tuple."),
        ("mesh.distributed=2", "distributed=2: .* bool."),
        ("algorithm.dql.eta=1e999", "eta=1e999: the value must be finite"),
        ("algorithm.dql.discount=nan", "discount=nan: the value must be finite"),
        ("algorithm.ppo.clip_tpo=1", "did you mean algorithm.ppo.clip_top?"),
        ("finetune.epochs=1", "it is called algorithm.ppo.epochs now"),
        ("seed.one=1", "seed holds a plain value"),
        ("loop.finetune=1", "is a section; set one of .*num_iterations"),
        ("seed", "write --config.seed=VALUE"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(setting, message):
    with pytest.raises(ValueError, match=message):
        override(default_config(), [setting], "--config.")


@pytest.mark.parametrize("spec", ["absent.py", "README.md"])
def test_a_configuration_is_a_python_file(spec):
    message = "there is no such file" if spec == "absent.py" else "is not a Python file"
    with pytest.raises(ValueError, match=message):
        load_config(spec if spec == "absent.py" else str(REPOSITORY / spec))


def test_old_runs_read_like_new_ones():
    """`config_before_sections.json` is of a run from before settings had sections."""
    config = avoid.get_config("m1")
    override(config, ["rollout.num_envs=7", "model.sampling.ddim_steps=5"])
    override(config, ["loop.finetune.num_iterations=9", "model.sampling.eta=0.5"])
    override(config, ["loop.pretrain.num_epochs=11", "algorithm.ppo.epochs=3"])
    # What the run did, and the default of runs that do not say.
    override(config, ["env.limit_terminates=False"])
    config.run_dir, config.policy = "old", "cloned"
    old = updated(json.loads(OLD_RUN.read_text()))
    assert old.pop("stage") == "finetune"
    # Only settings that are newer than the run and may change on resuming differ.
    assert directories.differences(old, directories.as_json(config)).keys() <= {
        "loop.collect.num_iterations",
        "loop.pretrain.keep_best",
        "loop.finetune.keep_best",
        "pretrain.ema_warmup",
    }


def test_the_limit_ends_avoid_where_that_was_measured():
    """Off-policy kinds were measured with the value after the limit."""
    for variant in ("m1", "demo", "m2_flow2", "m3_gaussian", "m2_fpo", "m1_exact"):
        assert avoid.get_config(variant).env.limit_terminates
    for variant in ("m1_idql", "m2_ogpo", "m3_drwr", "m1_dsrl", "m1_rlpd", "m1_ibrl"):
        assert not avoid.get_config(variant).env.limit_terminates
    assert not default_config().env.limit_terminates


def test_a_present_configuration_is_not_changed():
    today = directories.as_json(hopper.get_config())
    assert updated(today) == today
    assert not any(
        name == old or name.startswith(f"{old}.") for old in RENAMED for name in today
    )


UNET = ["model.network.dim=8", "model.network.kind=unet", "model.chunk=8"]


def test_a_setting_of_another_kind_of_network_is_told_by_its_kind():
    config = avoid.get_config("m1")
    message = "kind=mlp.* has it, and kind=unet has not"
    with pytest.raises(SettingsError, match=message):
        override(config, ["model.network.kind=unet", "model.network.hidden_sizes=(8,)"])


def test_a_kind_of_network_brings_its_settings_wherever_it_stands():
    config = avoid.get_config("m1")
    override(config, UNET)
    expected = networks.default_config("unet")
    expected.dim = 8
    assert config.model.network.to_dict() == expected.to_dict()
    assert config.model.chunk == 8
    with pytest.raises(ValueError, match="unknown setting model.network.hidden_sizes"):
        override(config, ["model.network.hidden_sizes=8"])
    override(config, ["model.network.kind=mlp"])
    expected = networks.default_config("mlp")
    assert config.model.network.to_dict() == expected.to_dict()


def test_a_file_may_choose_a_kind_of_network(tmp_path):
    config = load_config(
        write(
            tmp_path,
            "from experiments.settings import use_network",
            "use_network(c, 'unet')",
            "c.model.network.num_groups = None",
        )
    )
    assert config.model.network.kind == "unet" and config.model.network.dim == 64
    assert config.model.network.num_groups is None
    with pytest.raises(ValueError, match="line 7: unknown setting .*network.dimm"):
        load_config(
            write(
                tmp_path,
                "from experiments.settings import use_network",
                "use_network(c, 'unet')",
                "c.model.network.dimm = 8",
            )
        )


def test_a_run_with_another_kind_of_network_reads_back_as_it_was():
    config = avoid.get_config("m1")
    override(config, UNET)
    saved = json.loads(json.dumps(directories.as_json(config)))
    again = settings_of(updated(saved))
    assert directories.as_json(again) == directories.as_json(config)
    assert isinstance(again.model.network.dim_mults, tuple)


def test_of_runs_with_two_kinds_of_networks_the_kinds_differ_alone():
    config = avoid.get_config("m1")
    before = directories.as_json(config)
    override(config, UNET)
    assert directories.differences(before, directories.as_json(config)) == {
        "model.network.kind": ("mlp", "unet"),
        "model.chunk": (4, 8),
    }


def test_a_run_keeps_the_settings_of_its_algorithm_only(monkeypatch):
    monkeypatch.setitem(ALGORITHMS, "other", ALGORITHMS["ppo"])
    config = default_config()
    assert {"name", "other", *ALGORITHMS} == set(config.algorithm)
    assert set(directories.as_json(config)["algorithm"]) == {"name", "ppo"}


def test_an_unknown_algorithm_is_refused_by_name():
    config = default_config()
    config.algorithm.name = "poo"
    with pytest.raises(ValueError, match="algorithm.name='poo' is unknown; use .*ppo"):
        make_algorithm(None, None, config)
