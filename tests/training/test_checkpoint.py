import errno
import json
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.errors import SettingsError
from dppo_jax.policies import PolicyParams
from dppo_jax.training.best import Best
from dppo_jax.training.checkpoint import (
    Checkpoints,
    has_checkpoint,
    load_critic,
    newest_checkpoint,
    read_policy,
    read_state,
)
from dppo_jax.training.config_file import load_config, save_config
from dppo_jax.training.trees import check_matches, with_types
from tests import tiny

PARAMS = PolicyParams(base={"w": jnp.arange(3.0)}, tuned={"w": jnp.ones(3)})
CONFIG = {"stage": "pretrain", "name": "tiny", "data": None}


def state_at(iteration):
    """All kinds of leaves of a training state, different in every iteration."""
    return {
        "key": jax.random.key(iteration),
        "keys": jax.random.split(jax.random.key(iteration), 3),
        "other": jax.random.key(iteration, impl="rbg"),
        "empty": jnp.zeros((4, 0)),
        "float": jnp.float32(1 / 3) + iteration,
        "bits": jnp.array([0, 2**32 - 1, iteration], jnp.uint32),
        "flag": jnp.array(True),
    }


def save(run_dir, *iterations, keep=3):
    save_config(run_dir, CONFIG)
    with Checkpoints(run_dir, keep=keep) as checkpoints:
        for iteration in iterations:
            checkpoints.save(iteration, state_at(iteration), PARAMS, tiny.NORMALIZER)


def test_a_training_state_returns_bit_for_bit(tmp_path):
    save(tmp_path, 2, 5)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 5
        restored = checkpoints.restore(state_at(0))
    expected = state_at(5)
    for name, leaf in expected.items():
        assert restored[name].dtype == leaf.dtype and restored[name].shape == leaf.shape
    assert tiny.same(restored, expected)
    drawn, wanted = (jax.random.normal(s["other"]) for s in (restored, expected))
    assert drawn == wanted


def test_a_state_from_before_warp_told_about_its_space_is_read(tmp_path):
    """What was left out then is not known, so the space of a new state holds."""
    older = {"env": [{"qacc": jnp.arange(2.0)}], "key": jax.random.key(1)}
    space = {"contacts": jnp.zeros(2), "constraints": jnp.full(2, 7.0)}
    like = older | {"env": [{"qacc": jnp.zeros(2), "full": space}]}
    for iteration, state in ((1, older), (2, like)):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(iteration, state, PARAMS, tiny.NORMALIZER)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(like, 1)
        assert tiny.same(restored["env"], [{"qacc": jnp.arange(2.0), "full": space}])
        assert tiny.same(restored["key"], older["key"])
        other = {"qacc": jnp.zeros(2), "more": jnp.zeros(2), "full": space}
        with pytest.raises(SettingsError, match="env/0/full.*shape none"):
            checkpoints.restore(like | {"env": [other]}, 1)
        assert tiny.same(checkpoints.restore(like, 2), like)


def test_too_little_memory_is_not_taken_for_damage(tmp_path, monkeypatch):
    """Whoever removes a checkpoint that is not damaged loses it."""

    def restore(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")

    save(tmp_path, 1)
    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "restore", restore)
        with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
            checkpoints.restore(state_at(0))


def test_a_checkpoint_is_not_affected_by_donated_buffers(tmp_path):
    """The next training step overwrites the state while the file is being written."""
    overwrite = jax.jit(lambda x: x + 1, donate_argnums=0)
    weights = jnp.arange(100_000.0) + 0
    expected = np.arange(100_000.0)
    save_config(tmp_path, CONFIG)
    with Checkpoints(tmp_path) as checkpoints:
        params = PolicyParams({"w": weights}, {"w": weights})
        checkpoints.save(1, {"w": weights}, params, tiny.NORMALIZER)
        weights = overwrite(weights)
    np.testing.assert_array_equal(read_policy(tmp_path).params["tuned"]["w"], expected)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore({"w": weights})
    np.testing.assert_array_equal(restored["w"], expected)


EIGHT_GPUS = {
    "sharding_type": "NamedSharding",
    "shape": [8],
    "axis_names": ["envs"],
    "axis_types": [str(jax.sharding.AxisType.Auto)],
    "partition_spec": ["envs"],
    "device_mesh": {"mesh": [{"id": i + 100} for i in range(8)]},
}
ONE_GPU = {"sharding_type": "SingleDeviceSharding", "device_str": "cuda:0"}


@pytest.mark.parametrize("sharding", [ONE_GPU, EIGHT_GPUS], ids=["one", "eight"])
def test_a_checkpoint_of_gpus_loads_without_them(tmp_path, sharding):
    """Orbax keeps the devices of every array; here they are devices that are absent."""
    save_config(tmp_path, CONFIG)
    state = state_at(1) | {"critic_params": {"w": jnp.arange(8.0)}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, PARAMS, tiny.NORMALIZER)
    files = list(tmp_path.rglob("_sharding"))
    assert [path.parent.name for path in files] == ["state"]
    names = json.loads(files[0].read_text())
    assert len(names) == len(state) - 1  # All but the empty array.
    files[0].write_text(json.dumps(dict.fromkeys(names, json.dumps(sharding))))
    with Checkpoints(tmp_path) as checkpoints:
        assert tiny.same(
            checkpoints.restore(state_at(0) | {"critic_params": {"w": jnp.zeros(8)}}),
            state,
        )
    assert tiny.same(with_types(read_policy(tmp_path).params, PARAMS), PARAMS)
    np.testing.assert_array_equal(read_state(tmp_path)["float"], state["float"])
    np.testing.assert_array_equal(load_critic(tmp_path)["w"], np.arange(8.0))


def test_a_policy_is_saved_with_its_normalizer_and_config(tmp_path):
    save(tmp_path, 3)
    loaded = read_policy(tmp_path)
    assert loaded.iteration == 3 and loaded.config == CONFIG
    assert tiny.same(with_types(loaded.params, PARAMS), PARAMS)
    assert tiny.same(loaded.normalizer, tiny.NORMALIZER)
    assert loaded.normalizer._fields == tiny.NORMALIZER._fields


def test_a_policy_from_elsewhere_needs_no_training_state(tmp_path):
    save_config(tmp_path, CONFIG)
    critic = {"v": jnp.ones((2, 1))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_policy(3, PARAMS, tiny.NORMALIZER)
        checkpoints.save_policy(4, PARAMS, tiny.NORMALIZER, critic)
    assert tiny.same(with_types(read_policy(tmp_path).params, PARAMS), PARAMS)
    assert load_critic(tmp_path, 3) is None
    assert tiny.same(load_critic(tmp_path), critic)


def test_the_critic_of_a_run_is_part_of_its_training_state(tmp_path):
    save(tmp_path, 1)
    assert load_critic(tmp_path) is None
    critic = {"v": jnp.ones(2)}
    state = {"critic_params": critic, "key": jax.random.key(0), "none": ()}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, state, PARAMS, tiny.NORMALIZER)
    assert tiny.same(load_critic(tmp_path), critic)


def test_the_critic_of_an_older_run_gets_its_present_name(tmp_path):
    save_config(tmp_path, CONFIG)
    weights = {"layer_0": {"bias": jnp.arange(3.0)}}
    with Checkpoints(tmp_path) as checkpoints:
        critic = {"params": {"q1": weights}}
        checkpoints.save_policy(1, PARAMS, tiny.NORMALIZER, critic)
        checkpoints.save_policy(2, PARAMS, tiny.NORMALIZER, {"params": weights})
    assert tiny.same(load_critic(tmp_path, 1), {"params": {"value": weights}})
    assert set(load_critic(tmp_path, 1)["params"]) == {"value"}
    assert set(load_critic(tmp_path, 2)["params"]) == {"layer_0"}


def test_old_checkpoints_are_removed_and_a_named_one_can_be_read(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep=2)
    assert read_policy(tmp_path, 3).iteration == 3
    with pytest.raises(ValueError, match=r"no checkpoint 1; it has \[3, 4\]"):
        read_policy(tmp_path, 1)


def test_saving_an_iteration_twice_keeps_the_first(tmp_path):
    save(tmp_path, 2)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, state_at(7), PARAMS, tiny.NORMALIZER)
    with Checkpoints(tmp_path) as checkpoints:
        assert tiny.same(checkpoints.restore(state_at(0)), state_at(2))


def test_a_state_of_other_shapes_is_refused_by_name(tmp_path):
    save(tmp_path, 1)
    other = state_at(0) | {"bits": jnp.zeros(5, jnp.uint32)}
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match=r"bits has shape \(3,\), expected \(5,\)"):
            checkpoints.restore(other)


def test_without_a_checkpoint_there_is_nothing_to_restore(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest is None
        with pytest.raises(ValueError, match="no checkpoint to restore"):
            checkpoints.restore(state_at(0))


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a run directory"):
        read_policy(tmp_path)
    save_config(tmp_path, CONFIG)
    with pytest.raises(ValueError, match="no checkpoint yet"):
        read_policy(tmp_path)
    assert not (tmp_path / "checkpoints").exists()  # reading creates nothing
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="no checkpoint yet"):
        read_policy(tmp_path)


def remove_policy(checkpoint):
    shutil.rmtree(checkpoint / "policy")


def remove_state(checkpoint):
    shutil.rmtree(checkpoint / "state")


def remove_metadata(checkpoint):
    for path in checkpoint.rglob("_METADATA"):
        path.unlink()


def cut_arrays(checkpoint):
    for path in checkpoint.glob("*/d/*"):
        path.write_bytes(path.read_bytes()[:10])


@pytest.mark.parametrize("damage", [remove_policy, remove_metadata, cut_arrays])
def test_a_damaged_policy_is_an_error_that_names_its_checkpoint(tmp_path, damage):
    save(tmp_path, 1)
    damage(tmp_path / "checkpoints" / "1")
    with pytest.raises(ValueError, match="checkpoints/1 is damaged; remove it"):
        read_policy(tmp_path)


def test_metadata_nested_too_deeply_are_named(tmp_path):
    save(tmp_path, 1)
    metadata = tmp_path / "checkpoints" / "1" / "_CHECKPOINT_METADATA"
    metadata.write_text(10_000 * "[")
    with pytest.raises(SettingsError, match="a checkpoint in .*checkpoints is damaged"):
        read_policy(tmp_path)


def test_a_policy_without_one_of_its_bounds_is_refused(tmp_path):
    save(tmp_path, 1)
    path = tmp_path / "checkpoints" / "1" / "policy" / "_METADATA"
    metadata = json.loads(path.read_text())
    tree = metadata["tree_metadata"]
    [bound] = [name for name in tree if "action_min" in name]
    del tree[bound]
    path.write_text(json.dumps(metadata))
    with pytest.raises(
        SettingsError, match="checkpoint 1 of .* lacks .* bounds; remove"
    ):
        read_policy(tmp_path)


@pytest.mark.parametrize("damage", [remove_state, remove_metadata, cut_arrays])
def test_a_damaged_state_is_an_error_that_names_its_checkpoint(tmp_path, damage):
    save(tmp_path, 1)
    damage(tmp_path / "checkpoints" / "1")
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match="checkpoints/1 is damaged; remove it"):
            checkpoints.restore(state_at(0))


def test_a_half_written_checkpoint_does_not_count(tmp_path):
    """A killed process leaves a folder with a temporary name."""
    save(tmp_path, 1)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "1", folder / "2.orbax-checkpoint-tmp-0")
    assert read_policy(tmp_path).iteration == 1


def test_a_full_disk_is_an_error_that_leaves_earlier_checkpoints(tmp_path):
    """The limit of a file's size stands for it; threads of Orbax run into it."""
    size = {"w": jax.random.normal(jax.random.key(0), (40_000,))}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, size, size, tiny.NORMALIZER)
    checkpoints = Checkpoints(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))
    try:
        with pytest.raises(OSError, match="earlier ones are complete") as raised:
            checkpoints.save(2, size, size, tiny.NORMALIZER)
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.filename == str(tmp_path / "checkpoints")
    assert raised.value.errno == errno.EFBIG
    assert newest_checkpoint(tmp_path) == 1
    with Checkpoints(tmp_path) as again:
        assert tiny.same(again.restore(size), size)


def test_config_reads_back_and_is_replaced_whole(tmp_path):
    assert load_config(tmp_path) is None
    save_config(tmp_path / "run", CONFIG)
    assert load_config(tmp_path / "run") == CONFIG
    save_config(tmp_path / "run", {"stage": "finetune"})
    assert load_config(tmp_path / "run") == {"stage": "finetune"}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_a_config_that_is_no_json_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG)[:-3])
    with pytest.raises(ValueError, match="config.json is not valid JSON"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="config.json holds no settings"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    "found, message",
    [
        (
            {"a": jnp.zeros(2), "b": jnp.zeros(3)},
            r"b has shape \(3,\), expected \(1,\)",
        ),
        ({"a": jnp.zeros(2)}, "b has shape none, expected"),
        (dict(a=jnp.zeros(2), b=jnp.zeros(1), c=jnp.zeros(1)), "c has shape .* none"),
    ],
)
def test_parameters_that_do_not_match_are_refused_with_their_name_and_a_cure(
    found, message
):
    wanted = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    with pytest.raises(ValueError, match=f"the policy .*{message}.*; pass this"):
        check_matches(found, wanted, what="the policy", cure="pass this")
    check_matches(wanted, wanted, what="the policy", cure="pass this")


def test_the_best_is_replaced_by_a_higher_score_of_the_same_name_alone(tmp_path):
    """In any order, and after a restart; another metric starts again."""
    save_config(tmp_path, CONFIG)
    for iteration, score, kept in ((4, 1.0, 4), (6, 0.5, 4), (2, 3.0, 2)):
        best = Best(tmp_path, "return")
        if best.is_beaten_by(score):
            params = {"w": jnp.float32(score)}
            best.save(iteration, params, tiny.NORMALIZER, score=score)
        best.close()
        assert read_policy(tmp_path, "best").iteration == kept
    assert float(read_policy(tmp_path, "best").params["w"]) == 3.0
    for name, beaten in (("return", False), ("success", True)):
        best = Best(tmp_path, name)
        assert best.is_beaten_by(0.9) == beaten
        assert not best.is_beaten_by(float("nan"))
        best.close()


def test_a_folder_without_a_complete_checkpoint_has_none(tmp_path):
    assert not has_checkpoint(tmp_path)
    (tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp-0").mkdir(parents=True)
    assert not has_checkpoint(tmp_path)
    save(tmp_path, 3)
    assert has_checkpoint(tmp_path)
