"""The list of settings, whose meanings are the comments beside the defaults."""

import pytest
from ml_collections import ConfigDict

from dppo_jax.learning import optimizer_settings
from dppo_jax.networks.build import NETWORKS
from experiments import settings_table
from experiments.defaults import default_config, demonstrator_config, script_config
from experiments.settings import load_config, override
from tests import commands


def example_config():
    config = ConfigDict()
    config.size = 3  # of the box
    # Where it
    # stands.
    config.place = 1.0
    # depth is in metres, height in pixels.
    config.width = 2
    config.height = 5
    config.color = "red"
    # Of the lid.
    config.lid = ConfigDict(
        dict(
            weight=1.0,
            open=False,  # or closed
        )
    )
    for name in ("left", "right"):
        config[name] = optimizer_settings.default_config(1e-3)
        config[name].update(weight_decay=0.5)
    return config


def test_comments_beside_above_and_of_the_section_are_found():
    found = {}
    settings_table._read(example_config, "box.", found)
    assert {name: said for name, (said, _) in found.items() if "left" not in name} == {
        "box.size": "of the box",
        "box.place": "Where it stands.",
        "box.width": "depth is in metres, height in pixels.",
        "box.height": "depth is in metres, height in pixels.",
        "box.color": "",
        "box.lid.weight": "Of the lid.",
        "box.lid.open": "or closed",
        "box.right.learning_rate": "of Adam, constant",
        "box.right.weight_decay": "of AdamW, times the learning rate",
        "box.right.max_grad_norm": "None: no limit",
    }
    assert "box.left.learning_rate" in found
    # What a caller changes has its line, and else that of the called function.
    here, line = found["box.left.weight_decay"][1].split(":")
    assert here == "tests/experiments/test_settings_table.py" and int(line) > 20
    assert found["box.left.learning_rate"][1].startswith("dppo_jax/learning/optimizer")


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("demonstrator", [demonstrator_config, script_config])
def test_every_setting_has_a_meaning_and_a_place(network, demonstrator):
    config = default_config()
    override(config, [f"model.network.kind={network}"])
    config.collect = demonstrator()
    rows = settings_table.rows(config, all_algorithms=True)
    assert len(rows) > 500
    assert [x.name for x in rows if not (x.meaning and x.source)] == []
    changed = [x.name for x in rows if x.is_changed]
    assert changed == ["model.network.kind"] * (network != "mlp")


def test_settings_of_a_file_are_said_to_be_its_own():
    lines = list(settings_table.lines(load_config("experiments/configs/avoid.py:m1")))
    own = [line for line in lines if line.endswith("(added by the configuration)")]
    assert [line.split("=")[0] for line in own] == [
        "* --config.collect.episodes_per_mode",
        "* --config.collect.modes",
        "* --config.env.options.rewarded_gap",
    ]


def test_changed_settings_are_marked_and_other_algorithms_left_out():
    config = default_config()
    override(config, ["algorithm.name=dql", "algorithm.dql.eta=2.5", "seed=0"])
    lines = list(settings_table.lines(config))
    changed = [line for line in lines if line.startswith("*")]
    assert changed == [
        "* --config.algorithm.dql.eta=2.5   (default: 1.0)",
        "* --config.algorithm.name=dql   (default: 'ppo')",
    ]
    assert "  --config.seed=0" in lines
    assert not any("algorithm.ppo." in line for line in lines)
    index = lines.index(changed[0])
    assert lines[index + 1].startswith(
        "      weight of the critic in the actor's loss [dppo_jax/algorithms/dql.py:"
    )


def test_a_long_meaning_of_several_settings_is_said_once():
    long = "coef: of the mean; limit: " + "more about both. " * 5
    rows = [
        settings_table.Row(name, 1, 1, meaning, "here:1")
        for name, meaning in (("a", long), ("b", long), ("c", "short"), ("d", "short"))
    ]
    said = [row.meaning for row in settings_table.said_once(rows)]
    assert said == [long, "see a", "short", "short"]


def test_the_program_refuses_a_folder_without_a_run(tmp_path):
    status, said = commands.end("experiments.settings", [str(tmp_path)])
    assert status == 2 and said.count("\n") == 1
