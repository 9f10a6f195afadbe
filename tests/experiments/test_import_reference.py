"""Import of the reference's checkpoints as runs, and export of runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.deploy import load_policy
from dppo_jax.interop import load_reference_checkpoint, load_torch_file
from dppo_jax.networks.build_encoder import make_state_critic
from dppo_jax.normalize import Normalizer, load_normalizer, save_normalizer
from dppo_jax.policies import PolicyParams, make_policy
from dppo_jax.training.checkpoint import Checkpoints, load_critic
from dppo_jax.training.config_file import save_config
from experiments import (
    directories,
    evaluate,
    export_reference,
    import_reference,
    inputs,
)
from experiments.configs import avoid
from experiments.settings import use_network
from tests import commands, tiny

TINY = {
    "env.engine": "mujoco",
    "env.max_steps": 8,
    "model.network.hidden_sizes": (16,),
    "model.diffusion.num_denoising_steps": 4,
    "critic.hidden_sizes": (16,),
    "model.sampling.num_tuned_steps": 2,
    "evaluate.num_episodes": 4,
    "evaluate.num_envs": 4,
}
BOUNDS = Normalizer(
    obs_min=np.full(4, -0.5, np.float32),
    obs_max=np.full(4, 0.8, np.float32),
    action_min=np.full(2, -0.0125, np.float32),
    action_max=np.full(2, 0.0125, np.float32),
)

# The network also predicts the standard deviation.
GAUSSIAN = {
    "model__kind": "gaussian",
    "model__gaussian__fixed_std": None,
    "model__network__hidden_sizes": (16, 16),
}


def make_config(**changes):
    """Settings of a small policy; write dots in names as double underscores."""
    config = avoid.get_config("m1")
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    settings = TINY | changes
    if settings.get("model.network.kind") == "unet":
        use_network(config, "unet")
        del settings["model.network.hidden_sizes"]
    config.update_from_flattened_dict(settings)
    return config.lock()


UNET = {
    "model__network__kind": "unet",
    "model__network__dim": 4,
    "model__network__kernel_size": 3,
    "model__network__num_groups": 2,
}


def make_run(run_dir, stage, critic=True, num_active=None, **changes):
    """A run directory as training leaves it, with networks of random weights."""
    config = make_config(**changes)
    policy = make_policy(config.model, action_dim=2)
    obs = {"state": jnp.zeros((1, 1, 4))}
    shapes = jax.eval_shape(policy.init, jax.random.key(0), obs).base
    one, other = (tiny.random_like(shapes, seed=i) for i in (0, 1))
    params = PolicyParams(one, one if stage == "pretrain" else other, num_active)
    state = {"key": jax.random.key(0)}
    if critic:
        network = make_state_critic(config.critic)
        state["critic_params"] = tiny.random_params(network, obs, seed=2)
    save_config(run_dir, {"stage": stage} | directories.as_json(config))
    with Checkpoints(run_dir) as checkpoints:
        checkpoints.save(5, state, params, BOUNDS)
    return str(run_dir)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with a fine-tuned run and its export."""
    folder = tmp_path_factory.mktemp("exported")
    make_run(folder / "run", "finetune")
    bounds = export_reference.main(str(folder / "run"), str(folder / "state_5.pt"))
    assert bounds == str(folder / "state_5_normalization.npz")
    return folder


@pytest.mark.parametrize(
    "stage, changes",
    [
        ("pretrain", {}),
        ("finetune", {}),
        ("finetune", {"model__sampling__ddim_steps": 2}),
        ("finetune", {"model__network__condition_sizes": (8, 4)}),
        ("finetune", {"model__kind": "gaussian"}),
        ("pretrain", GAUSSIAN),
        ("pretrain", UNET),
        pytest.param(
            "finetune",
            UNET | {"model__network__condition_sizes": (6, 5)},
            marks=pytest.mark.slow,
        ),
        ("pretrain", {"model__kind": "gmm", "model__gmm__num_modes": 3}),
    ],
)
def test_an_exported_run_is_imported_unchanged(tmp_path, stage, changes):
    run = make_run(tmp_path / "run", stage, **changes)
    path = str(tmp_path / "state_5.pt")
    bounds = export_reference.main(run, path)
    config = make_config(**changes)
    again = import_reference.main(path, str(tmp_path / "again"), config, bounds)
    one, other = load_policy(run), load_policy(again)
    assert tiny.same(one.params, other.params) and one.iteration == other.iteration
    assert tiny.same(one.normalizer, other.normalizer)
    origin = {"imported_from": path}
    assert other.config == one.config | origin
    assert (load_critic(again) is not None) == (stage == "finetune")
    if stage == "finetune":
        assert tiny.same(load_critic(again), load_critic(run))


def test_an_imported_policy_scores_as_the_original(exported, tmp_path, capsys):
    bounds = str(exported / "state_5_normalization.npz")
    import_reference.main(
        str(exported / "state_5.pt"), str(tmp_path / "run"), make_config(), bounds
    )
    said = capsys.readouterr().out
    assert "stage finetune, iteration 5, with its critic" in said
    assert (
        "model.diffusion.num_denoising_steps=4" in said and "num_tuned_steps=2" in said
    )
    scores = [
        evaluate.main(make_config(policy=str(run)))
        for run in (exported / "run", tmp_path / "run")
    ]
    assert scores[0] == scores[1]


def test_the_bounds_are_those_of_the_data_unless_others_are_given(exported, tmp_path):
    config = make_config(data=str(tmp_path))
    path, run_dir = str(exported / "state_5.pt"), str(tmp_path / "run")
    with pytest.raises(ValueError, match="normalization.npz does not exist"):
        import_reference.main(path, run_dir, config)
    save_normalizer(tmp_path / "normalization.npz", BOUNDS)
    import_reference.main(path, run_dir, config)
    assert tiny.same(load_policy(run_dir).normalizer, BOUNDS)


@pytest.mark.parametrize(
    "name, configured, told",
    [
        ("model.network.hidden_sizes", (8,), r"\(16,\)"),
        ("model.network.residual", False, "True"),
        ("model.network.time_dim", 8, "16"),
        ("model.network.condition_sizes", (4,), "None"),
        ("model.chunk", 8, "4"),
        ("model.kind", "gaussian", "'diffusion'"),
        ("env.history", 2, "1"),
        ("critic.hidden_sizes", (8, 8, 8), r"\(16,\)"),
    ],
)
def test_another_policy_than_the_configured_one_is_refused_by_name(
    exported, tmp_path, name, configured, told
):
    flag = f"--config.{name}='?{told.strip(chr(39))}"
    with pytest.raises(ValueError, match=f"has {name}={told}.*{flag}"):
        import_reference.main(
            str(exported / "state_5.pt"),
            str(tmp_path / "run"),
            make_config(**{name: configured}),
            str(exported / "state_5_normalization.npz"),
        )
    assert not (tmp_path / "run").exists()


def test_a_unet_is_refused_by_its_kind_and_does_not_tell_its_chunk(tmp_path, capsys):
    run = make_run(tmp_path / "run", "pretrain", **UNET)
    path = str(tmp_path / "state_5.pt")
    bounds = export_reference.main(run, path)
    for changes, refused in [
        ({}, "network.kind='unet', but .* 'mlp'; pass --config.model.network.kind="),
        (UNET | {"model__network__dim": 8}, "network.dim=4, but the config says 8"),
    ]:
        config = make_config(**changes)
        with pytest.raises(ValueError, match=refused):
            import_reference.main(path, str(tmp_path / "again"), config, bounds)
    longer = make_config(**UNET, model__chunk=8)
    import_reference.main(path, str(tmp_path / "again"), longer, bounds)
    said = capsys.readouterr().out
    assert "model.chunk=8" in said and "model.network.num_groups=2" in said
    assert load_policy(str(tmp_path / "again")).config["model"]["chunk"] == 8


def test_a_task_of_other_sizes_is_refused(exported, tmp_path):
    """With bounds of 2 numbers one observation of 4 looks like two of 2."""
    half = BOUNDS._replace(obs_min=BOUNDS.obs_min[:2], obs_max=BOUNDS.obs_max[:2])
    save_normalizer(tmp_path / "half.npz", half)
    config = make_config(env__history=2)
    with pytest.raises(ValueError, match="observation size 2, but .* has 4"):
        import_reference.main(
            str(exported / "state_5.pt"),
            str(tmp_path / "run"),
            config,
            str(tmp_path / "half.npz"),
        )
    assert not (tmp_path / "run").exists()


def test_nothing_is_overwritten_and_an_import_is_no_run_to_resume(exported, tmp_path):
    bounds = str(exported / "state_5_normalization.npz")
    path, run_dir = str(exported / "state_5.pt"), str(tmp_path / "run")
    with pytest.raises(ValueError, match="run is not empty; name another"):
        import_reference.main(path, str(exported / "run"), make_config(), bounds)
    import_reference.main(path, run_dir, make_config(), bounds)
    with pytest.raises(ValueError, match="another --config.run_dir"):
        directories.prepare_run(make_config(run_dir=run_dir), "finetune")


def test_an_export_overwrites_nothing(exported):
    with pytest.raises(ValueError, match="state_5.pt exists; remove it"):
        export_reference.main(str(exported / "run"), str(exported / "state_5.pt"))


def test_without_a_critic_an_export_says_so(tmp_path, capsys):
    run = make_run(tmp_path / "run", "finetune", critic=False)
    export_reference.main(run, str(tmp_path / "a.pt"))
    assert "it has no critic" in capsys.readouterr().out
    assert load_reference_checkpoint(tmp_path / "a.pt").critic is None


@pytest.mark.parametrize("num_active, shown", [(None, 2), (jnp.int32(1), 1)])
def test_an_export_prints_the_number_of_tuned_steps(
    tmp_path, capsys, num_active, shown
):
    """K' may have been annealed, and the weights do not show it."""
    run = make_run(tmp_path / "run", "finetune", num_active=num_active)
    export_reference.main(run, str(tmp_path / "a.pt"))
    assert f"ft_denoising_steps={shown}\n" in capsys.readouterr().out


def test_torch_reads_an_export(exported):
    torch = pytest.importorskip("torch")
    model = torch.load(exported / "state_5.pt", weights_only=True)["model"]
    ours = load_torch_file(exported / "state_5.pt")["model"]
    assert list(model) == list(ours)
    for name, array in ours.items():
        np.testing.assert_array_equal(model[name].numpy(), array)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_checkpoints_of_the_reference_itself_are_imported(golden_dir, tmp_path, stage):
    path = {"pretrain": "pretrain_state_100.pt", "finetune": "finetune_state_10.pt"}
    bounds = Normalizer(*(np.full(n, b) for n in (11, 3) for b in (-1.0, 1.0)))
    save_normalizer(tmp_path / "bounds.npz", bounds)
    config = make_config(
        **{"env.task": "hopper", "env.options": {}, "critic.hidden_sizes": (32,) * 3},
        **{
            "model.network.hidden_sizes": (32,) * 3,
            "model.diffusion.num_denoising_steps": 20,
        },
    )
    run = import_reference.main(
        str(golden_dir / path[stage]),
        str(tmp_path / "run"),
        config,
        str(tmp_path / "bounds.npz"),
    )
    policy = load_policy(run)
    assert policy.config["stage"] == stage
    assert tiny.same(policy.params.base, policy.params.tuned) == (stage == "pretrain")


@pytest.mark.parametrize("program", ["import_reference", "export_reference"])
def test_wrong_arguments_end_in_one_line(tmp_path, monkeypatch, program):
    monkeypatch.chdir(tmp_path)
    status, errors = commands.end(f"experiments.{program}", ["a.pt"])
    assert status == 2 and errors.startswith("error: ['a.pt'] given; write ")
    assert errors.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_the_config_of_an_import_is_plain_json(exported, tmp_path):
    """The same file serves later stages, so it holds the whole configuration."""
    bounds = str(exported / "state_5_normalization.npz")
    run = import_reference.main(
        str(exported / "state_5.pt"), str(tmp_path / "run"), make_config(), bounds
    )
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["stage"] == "finetune" and config["model"]["chunk"] == 4
    assert inputs.find_policy(make_config(policy=run), "finetune").iteration == 5
    assert load_normalizer(bounds)._fields == BOUNDS._fields
