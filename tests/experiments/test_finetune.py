"""What fine-tuning starts from, and when it stops."""

import pytest

from dppo_jax.deploy import load_policy
from dppo_jax.normalize import load_normalizer
from dppo_jax.training.checkpoint import load_critic
from experiments import directories, evaluate, finetune
from tests import tiny
from tests.stages import evaluations, make_config

pytestmark = pytest.mark.usefixtures("drawn_once")


def test_fine_tuning_starts_where_cloning_ended(world):
    before = evaluations(world / "finetune")[0]
    assert before == pytest.approx(evaluations(world / "pretrain")[3], rel=1e-4)


def test_fine_tuning_continues_from_a_fine_tuned_policy_and_its_critic(world, tmp_path):
    """One iteration with so small a learning rate that nothing changes."""
    changes = dict(policy=str(world / "finetune"), run_dir=str(tmp_path / "more"))
    still = {
        f"algorithm__ppo__{name}__{rate}": 1e-30
        for name in ("actor", "critic")
        for rate in ("learning_rate", "min_learning_rate")
    }
    finetune.main(
        make_config(
            world, "finetune", loop__finetune__num_iterations=1, **changes, **still
        )
    )
    before, after = (
        (load_policy(run).params, load_critic(run))
        for run in (world / "finetune", tmp_path / "more")
    )
    assert tiny.same(before, after)
    with pytest.raises(ValueError, match="critic of .* --config.critic"):
        finetune.main(
            make_config(world, "finetune", **changes, critic__hidden_sizes=(8,))
        )


def test_fine_tuning_stops_at_a_return_that_is_good_enough(
    world, compiled_once, tmp_path
):
    """The cloned policy already has the low return; no policy reaches the high one."""

    def go(name, target):
        changes = dict(run_dir=str(tmp_path / name))
        config = make_config(
            world, "finetune", loop__finetune__stop_at_return=target, **changes
        )
        return sorted(evaluations(*finetune.main(config)))

    assert go("low", -100.0) == [0]
    assert load_policy(tmp_path / "low").iteration == 0
    assert go("high", 1e9) == [0, 2]
    with pytest.raises(ValueError, match="stop_at_return=1.0 .* evaluate_every=0"):
        finetune.main(
            make_config(
                world,
                "finetune",
                loop__finetune__stop_at_return=1.0,
                loop__finetune__evaluate_every=0,
            )
        )


def test_evaluations_wait_for_a_return_of_the_roll_outs(world, compiled_once, tmp_path):
    """There are two iterations; the evaluation after the last one is always made."""

    def go(name, least):
        changes = {
            "run_dir": str(tmp_path / name),
            "loop__finetune__evaluate_every": 1,
            "loop__finetune__evaluate_from_return": least,
        }
        return sorted(
            evaluations(*finetune.main(make_config(world, "finetune", **changes)))
        )

    assert go("low", -1e9) == [1, 2]
    assert go("high", 1e9) == [2]


def test_a_policy_cloned_with_ddpm_acts_and_is_tuned_with_ddim(world, tmp_path, capsys):
    """Weights do not depend on how chains are sampled; K = 4 becomes 2, all tuned."""
    changes = dict(policy=str(world / "pretrain"), run_dir=str(tmp_path / "ddim"))
    changes |= dict(model__sampling__ddim_steps=2, loop__finetune__num_iterations=1)
    changes |= dict(algorithm__ppo__critic_warmup=0)
    (run_dir,) = finetune.main(make_config(world, "finetune", **changes))
    assert (
        "trained with model.sampling.ddim_steps=None, not 2" in capsys.readouterr().out
    )
    tuned, cloned = (load_policy(x) for x in (run_dir, world / "pretrain"))
    assert tiny.same(tuned.params.base, cloned.params.base)
    assert not tiny.same(tuned.params.tuned, cloned.params.tuned)
    assert tuned.config["model"]["sampling"]["ddim_steps"] == 2
    changes["run_dir"] = str(tmp_path / "score")
    evaluate.main(make_config(world, "evaluate", **changes))
    assert "checkpoint 3: 6 episodes, deterministic mode" in capsys.readouterr().out


def test_the_tuned_steps_of_a_cloned_policy_may_be_annealed(world, tmp_path):
    """K' = 2 drops to 1 after the first of two iterations, and 1 is saved."""
    changes = dict(run_dir=str(tmp_path / "annealed"))
    changes |= dict(algorithm__ppo__tuned_steps_drop=1)
    changes |= dict(algorithm__ppo__tuned_steps_every=1)
    (run_dir,) = finetune.main(make_config(world, "finetune", **changes))
    assert int(load_policy(run_dir).params.num_active) == 1
    evaluate.main(directories.config_of_run(run_dir))


def test_fine_tuning_may_start_from_new_networks(
    world, compiled_once, tmp_path, capsys
):
    """New networks get the bounds of the data; a resumed run keeps its own bounds."""
    changes = dict(policy="none", run_dir=str(tmp_path / "new"))
    for num_iterations in (1, 2):
        changes["loop__finetune__num_iterations"] = num_iterations
        (run_dir,) = finetune.main(make_config(world, "finetune", **changes))
    said = capsys.readouterr().out
    assert said.count(f"those of {world / 'data'}") == 1
    assert "resuming at iteration 1 of 2" in said
    start, data = load_policy(run_dir), load_normalizer(world / "data")
    assert tiny.same(start.normalizer, data)
    cloned = load_policy(world / "pretrain").params
    assert not tiny.same(start.params.base, cloned.base)
