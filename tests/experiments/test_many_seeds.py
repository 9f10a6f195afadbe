"""Many seeds of a stage, trained in one program."""

import json

import numpy as np
import pytest

from dppo_jax.training.metric_names import TIMES
from dppo_jax.training.metrics import read_metrics
from experiments import evaluate, finetune, pretrain
from tests.stages import evaluations, make_config


def rows_of(run_dir):
    """The logged rows without the columns of times."""
    rows = read_metrics(run_dir)
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


@pytest.mark.slow
def test_many_seeds_have_runs_like_single_seeds(world, compiled_once, tmp_path, capsys):
    """Seed 0 equals the run of `world`. Both seeds resume together, or one alone."""
    changes = dict(num_seeds=2, run_dir=str(tmp_path))
    run_dirs = finetune.main(make_config(world, "finetune", **changes))
    assert run_dirs == [str(tmp_path / f"seed_{seed}") for seed in (0, 1)]
    single = json.loads((world / "finetune" / "config.json").read_text())
    for seed, run_dir in enumerate(run_dirs):
        config = json.loads((tmp_path / f"seed_{seed}" / "config.json").read_text())
        assert config == single | {"seed": seed, "run_dir": run_dir}
        pictures = (tmp_path / f"seed_{seed}" / "plots").iterdir()
        assert len(list(pictures)) == 2
    first, second = map(rows_of, run_dirs)
    assert first[0] == second[0] and first[1:] != second[1:]
    for one, other in zip(first, rows_of(world / "finetune"), strict=True):
        assert one.keys() == other.keys()
        np.testing.assert_allclose(
            *(list(row.values()) for row in (one, other)), rtol=1e-3, atol=1e-4
        )
    score = dict(policy=run_dirs[1], run_dir=str(tmp_path / "score"))
    result = evaluate.main(make_config(world, "evaluate", **score))
    last = evaluations(run_dirs[1])[2]
    assert result["episode_return"] == pytest.approx(last, rel=1e-4)

    changes["loop__finetune__num_iterations"] = 3
    finetune.main(make_config(world, "finetune", **changes))
    assert "resuming at iteration 2 of 3" in capsys.readouterr().out
    alone = dict(seed=1, run_dir=run_dirs[1], loop__finetune__num_iterations=4)
    assert finetune.main(make_config(world, "finetune", **alone)) == run_dirs[1:]
    assert sorted(evaluations(run_dirs[1])) == [0, 2, 3, 4]


def test_many_seeds_of_cloning_differ(world, tmp_path):
    changes = dict(num_seeds=2, seed=3, run_dir=str(tmp_path))
    run_dirs = pretrain.main(make_config(world, "pretrain", **changes))
    assert run_dirs == [str(tmp_path / f"seed_{seed}") for seed in (3, 4)]
    single = json.loads((world / "pretrain" / "config.json").read_text())
    for seed, run_dir in zip((3, 4), run_dirs):
        config = json.loads((tmp_path / f"seed_{seed}" / "config.json").read_text())
        assert config == single | {"seed": seed, "run_dir": run_dir}
    assert rows_of(run_dirs[0]) != rows_of(run_dirs[1])


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(num_seeds=0), "num_seeds=0 must be at least 1"),
        (
            dict(num_seeds=2, env__task="gymnasium:Hopper-v5"),
            "num_seeds=2: gymnasium:Hopper-v5 runs in host .* --config.seed",
        ),
        (dict(num_seeds=2), "is the directory of a single run"),
    ],
)
def test_seeds_that_cannot_be_trained_together_are_refused(world, changes, message):
    before = sorted((world / "finetune").iterdir())
    with pytest.raises(ValueError, match=message):
        finetune.main(make_config(world, "finetune", **changes))
    assert sorted((world / "finetune").iterdir()) == before
