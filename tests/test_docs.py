"""The examples of the documentation run, its commands hold, its links lead to files.

A command holds if its flags, its configuration and every setting are accepted, and if
`make` has its target. The commands that `make` runs are checked too.
"""

import re
import subprocess

import h5py
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

import dppo_jax
from dppo_jax.deploy import LoadedPolicy
from dppo_jax.envs.build import make_env
from dppo_jax.envs.physics import make_physics
from dppo_jax.normalize import Normalizer
from dppo_jax.rollout import rollout
from dppo_jax.training.break_files import save_break
from dppo_jax.training.config_file import save_config
from dppo_jax.types import BREAK
from experiments import directories, pretrain
from experiments.defaults import default_config
from experiments.settings import use_network
from experiments.settings_table import rows
from tests import breaking, commands, demonstrated, tiny
from tests.algorithms.test_saved_states import MAKE
from tests.conftest import REPOSITORY
from tests.stages import make_config

DOCS = REPOSITORY / "docs"
PAGES = {
    str(path.relative_to(REPOSITORY)): path.read_text()
    for path in (*sorted(REPOSITORY.glob("*.md")), *sorted(DOCS.rglob("*.md")))
}

ONE = np.ones(1)

# A box on a slide, held by a weld.
BOX = """
<mujoco>
  <worldbody>
    <body name="box">
      <joint name="slide" type="slide" axis="0 0 1"/>
      <geom size="0.1" contype="0"/>
    </body>
  </worldbody>
  <equality><weld body1="box"/></equality>
  <actuator><motor joint="slide"/></actuator>
</mujoco>
"""


def examples(page):
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE)


def links_of(text):
    """The targets of links that do not lead to other sites; code has none."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return dict.fromkeys(re.findall(r"\]\((?!http)([^)\s]+)\)", text))


def leads_somewhere(page, link):
    """Whether the file of a link exists, and its heading or the definition in it."""
    name, _, anchor = link.partition("#")
    path = (REPOSITORY / page).parent.joinpath(name) if name else REPOSITORY / page
    if not path.exists() or not anchor:
        return path.exists()
    text = path.read_text()
    if path.suffix == ".py":
        return re.search(rf"^(def|class) {anchor}\b", text, re.MULTILINE) is not None
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    # As GitHub makes them: without signs, in small letters, with dashes for spaces.
    made = {re.sub(r"[^\w\- ]", "", x).lower().replace(" ", "-") for x in titles}
    return anchor in made


def run(source, page, **names):
    """Run an example; returns the names that it leaves."""
    exec(compile(source, page, "exec"), names)
    return names


def test_every_example_has_a_test():
    """The one of environments.md with a task is run by experiments/test_outside.py."""
    counts = {page: len(examples(page)) for page in PAGES if examples(page)}
    assert counts == {
        "docs/architecture.md": 1,
        "docs/data.md": 4,
        "docs/deployment.md": 1,
        "docs/environments.md": 2,
        "docs/library.md": 1,
        "docs/scaling.md": 1,
        "docs/troubleshooting.md": 1,
    }


def test_the_notebook_example_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (source,) = examples("docs/library.md")
    large = "hidden_sizes=(64, 64, 64)"
    assert large in source  # One layer compiles in less time.
    names = run(source.replace(large, "hidden_sizes=(8,)"), "docs/library.md")
    assert int(names["state"].iteration) == 3
    assert len(names["scores"].metrics["success"]) == 32
    assert "episode_return" in capsys.readouterr().out
    saved, state = names["saved"], names["state"]
    assert saved.iteration == 3
    assert names["actions"].shape == (4, 2) and names["action"].shape == (2,)
    assert tiny.same(saved.params, names["algorithm"].params(state))


def test_the_examples_of_data_run(capsys, tmp_path, monkeypatch):
    """Data are read, split and turned into transitions."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0).normal
    with h5py.File("lift.hdf5", "w") as file:
        for i in range(12):
            group = file.create_group(f"data/demo_{i}")
            for key in ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"):
                group[f"obs/{key}"] = draw(size=(9, 3))
            group["obs/object"] = draw(size=(9, 2))
            group["actions"] = draw(size=(9, 2))
            group["rewards"], group["dones"] = np.ones(9), np.zeros(9)
        file["mask/train"] = np.array([f"demo_{i}" for i in range(10)], "S")
    reading, _, _, transitions = examples("docs/data.md")
    names = run(reading, "docs/data.md")
    assert "10 episodes" in capsys.readouterr().out
    lengths = [len(names[x].episode_lengths) for x in ("train", "validation")]
    assert lengths == [9, 1]
    data = run(transitions, "docs/data.md", episodes=names["episodes"])["data"]
    assert data.action.shape == (90, 4, 2)
    np.testing.assert_allclose(data.reward[0], 4)


def test_the_examples_of_own_arrays_run(tmp_path, monkeypatch):
    """Arrays are written, and the policy that was cloned from them acts."""
    monkeypatch.chdir(tmp_path)
    _, writing, acting, _ = examples("docs/data.md")
    run(writing, "docs/data.md")
    changes = dict(data="data/robot", run_dir="runs/robot/pretrain", env__task="")
    pretrain.main(make_config(tmp_path, "pretrain", **changes))
    assert run(acting, "docs/data.md")["action"].shape == (2,)


def test_the_example_of_overrides_runs():
    """The body has the given mass, and the step starts where it is told to."""
    model = mujoco.MjModel.from_xml_string(BOX)
    names = run(
        *examples("docs/architecture.md"),
        "docs/architecture.md",
        physics=make_physics(model, 1, "mujoco"),
        qpos=jnp.full(1, 0.3),
        qvel=jnp.zeros(1),
        mass=jnp.array([0.0, 2.0]),
        friction=jnp.array([[0.5, 0.005, 0.0001]]),
        ctrl=jnp.zeros(1),
        grasped=jnp.zeros(1, jnp.int32),
    )
    state = names["state"]
    np.testing.assert_allclose(state.overrides["body_mass"], [0, 2])
    # It falls freely, because the weld is off.
    step = model.opt.timestep
    np.testing.assert_allclose(state.qpos, 0.3 - 9.81 * step**2, atol=1e-6)


def test_the_example_of_host_environments_runs():
    """In this process, because four others would take seconds to start."""
    (source,) = [x for x in examples("docs/environments.md") if "host_vec_env" in x]
    assert "processes=4" in source
    names = run(source.replace("processes=4", "processes=0"), "docs/environments.md")
    state = tiny.start(names["env"], jax.random.key(0))
    assert state.obs["state"].shape == (16, 1, 11)


def test_the_example_of_a_deployed_policy_runs(monkeypatch):
    bounds = Normalizer(
        obs_min=-np.ones(23), obs_max=np.ones(23), action_min=-ONE, action_max=ONE
    )
    still = LoadedPolicy(
        params=None,
        act=lambda params, keys, obs, *, deterministic: (jnp.zeros((1, 4, 1)), {}),
        normalizer=bounds,
        config={},
        iteration=0,
        reads={"state": jax.ShapeDtypeStruct((1, 23), jnp.float32)},
    )
    monkeypatch.setattr(dppo_jax, "load_policy", lambda run_dir: still)
    names = run(*examples("docs/deployment.md"), "docs/deployment.md")
    assert names["chunk"].shape == (4, 1) and names["action"].shape == (1,)


def test_the_example_of_many_devices_runs():
    """On one device; `training/test_parallel.py` has many."""
    (source,) = examples("docs/scaling.md")
    assert "make_mesh(8)" in source
    algorithm = tiny.make_tiny_ppo()
    one = source.replace("make_mesh(8)", "make_mesh(1)")
    names = run(one, "docs/scaling.md", algorithm=algorithm)
    assert names["algorithm"].act is algorithm.act


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_headings_and_definitions(page):
    broken = [link for link in links_of(PAGES[page]) if not leads_somewhere(page, link)]
    assert broken == []


def test_the_example_of_a_broken_simulation_runs(tmp_path, monkeypatch, capsys):
    """A step of a task whose first step breaks."""
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "runs" / "hopper" / "finetune"
    task = f"{breaking.__file__}:exploding"
    config = make_config(tmp_path, "finetune", env__task=task, env__engine="auto")
    with config.unlocked():
        config.env.options = {}
    save_config(run_dir, {"stage": "finetune", **directories.as_json(config)})
    env = make_env(
        config.env, normalizer=tiny.NORMALIZER, chunk=config.model.chunk, num_envs=2
    )
    keys = jax.random.split(jax.random.key(1), 2)

    def act(keys, obs):
        return jnp.zeros((2, *env.action_shape)), ()

    _, _, metrics = jax.jit(lambda state: rollout(env, act, state, keys, 1))(
        tiny.start(env, jax.random.key(0))
    )
    save_break(run_dir, 12, jax.device_get(metrics[BREAK]), tiny.NORMALIZER)
    (source,) = examples("docs/troubleshooting.md")
    names = run(source, "docs/troubleshooting.md")
    assert names["outcome"].metrics["diverged"] == 1
    assert capsys.readouterr().out.startswith("[1.]")


@pytest.mark.parametrize(
    "link, leads",
    [
        ("stages.md#stop-and-resume", True),
        ("stages.md#stop-and-resum", False),
        ("absent.md", False),
        ("#metrics", False),
        ("../dppo_jax/learning/returns.py#gae", True),
        ("../dppo_jax/learning/returns.py#gai", False),
        ("results/hopper.md#shorter-iterations-the-variant-fast", True),
    ],
)
def test_a_broken_link_is_noticed(link, leads):
    assert leads_somewhere("docs/install.md", link) == leads


def names_of_settings(text):
    """What the second column of the tables of the reference map calls a setting."""
    rows = re.findall(r"^\| [^|]* \| ([^|]*) \|$", text, re.MULTILINE)
    found = {x for row in rows for x in re.findall(r"`([\w.*]+)`", row)}
    sections = ("env", "model", "critic", "pretrain", "rollout", "algorithm", "loop")
    return {x for x in found if x.split(".")[0] in (*sections, "evaluate") and "." in x}


def test_the_map_of_the_reference_names_settings_that_exist():
    known = set()
    for kind in ("mlp", "unet", "transformer"):
        config = default_config()
        use_network(config, kind)
        known |= {row.name for row in rows(config, all_algorithms=True)}
    named = names_of_settings(PAGES["docs/reference_map.md"])
    patterns = {
        x: re.escape(x).replace("NAME", r"\w+").replace(r"\*", ".+") for x in named
    }
    assert len(named) > 60
    assert [
        name
        for name, pattern in patterns.items()
        if not any(re.fullmatch(pattern + r"(\..*)?", x) for x in known)
    ] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "sac", *MAKE])
def test_every_metric_of_an_algorithm_is_explained(name):
    algorithm = {"ppo": tiny.make_tiny_ppo, "sac": tiny.make_tiny_sac, **MAKE}[name]()
    state = jax.eval_shape(lambda: demonstrated.start(name, algorithm))
    metrics = set(jax.eval_shape(algorithm.step, state)[1]) - {"steps", "goal"}
    pages = [text for page, text in PAGES.items() if "docs/algorithms/" in page]
    explained = set(re.findall(r"`([\w]+)`", "\n".join(pages)))
    assert metrics and metrics - explained == set()


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """A folder in which the paths of the commands hold; no command may write to it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    (source,) = [x for x in examples("docs/environments.md") if "def get_config" in x]
    (tmp_path / "reach.py").write_text(source)
    yield tmp_path
    written = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert written == {"experiments", "reach.py"}


@pytest.mark.parametrize("page", PAGES)
def test_commands_hold(page, shell):
    mistakes = {
        " ".join(words): commands.mistake(words)
        for words in commands.commands_of(PAGES[page])
        if not commands.is_sketch(words)
    }
    assert not {command: said for command, said in mistakes.items() if said}


@pytest.mark.parametrize(
    "targets, least, first",
    [
        (("demo", "bench", "figures", "JSON=1"), 10, []),
        (("demo", "TASK=can"), 1, ["--config=experiments/configs/can.py:demo"]),
    ],
)
def test_the_commands_of_the_makefile_hold(shell, targets, least, first):
    """`make -n` prints what the targets would run."""
    printed = subprocess.run(
        ["make", "-n", "-C", REPOSITORY, *targets],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.replace("\\\n", " ")
    lines = re.findall(
        r"^\S*(python -m (?:experiments|benchmarks)\..*)$", printed, re.M
    )
    found = [commands.commands_of(f"`{line}`")[0] for line in lines]
    assert len(found) >= least and found[0][3:] == first
    mistakes = [" ".join(words) for words in found if commands.mistake(words)]
    assert mistakes == []


def test_nearly_all_commands_are_checked():
    found = [words for text in PAGES.values() for words in commands.commands_of(text)]
    sketches = [words for words in found if commands.is_sketch(words)]
    programs = {words[2] for words in found if words[0] == "python"}
    assert len(found) >= 100 and len(sketches) <= 6
    assert {f"experiments.{x}" for x in ("collect", "pretrain", "finetune")} < programs
    assert sum(words[0] == "make" for words in found) >= 10
    assert [words for words in found if words[0] not in ("python", "make")] == []


@pytest.mark.parametrize(
    "command, said",
    [
        ("make demonstration", "no target demonstration"),
        ("make bench JSN=1", "does not use JSN"),
        ("python -m experiments.finetun --config=avoid.py", "No module named"),
        ("python -m experiments.plots", "experiments.plots is no program"),
        ("python -m experiments.studies.plan", "experiments.studies.plan is no prog"),
        ("python -m experiments.studies.ablations --preset=ant", "ant is unknown"),
        (
            "python -m experiments.studies.structured_exploration a=b --dim=1",
            "unrecognized arguments: --dim=1",
        ),
        ("python -m experiments.finetune $C:m9", "avoid.py:m9 is unknown"),
        ("python -m experiments.finetune $C --config.sed=1", "did you mean seed"),
        ("python -m experiments.finetune $C --config.seed=x", "must be of type int"),
        ("python -m experiments.finetune $C --output=a.png", "flag of experiments.rep"),
        ("python -m experiments.finetune $C --colour=red", "Unknown command line flag"),
        ("python -m experiments.finetune --config=a.py", "there is no such file"),
        ("python -m experiments.finetune $C RUN", "is not a flag"),
        ("python -m experiments.pretrain $C --checkpoint=best", "reads no policy"),
        ("python -m experiments.evaluate RUN --config.sed=1", "did you mean seed"),
        ("python -m experiments.demo --config.sed=1", "did you mean seed"),
        ("python -m experiments.import_reference A.pt $C", "write STATE.pt RUN_DIR"),
        ("python -m experiments.export_reference RUN", "write RUN_DIR STATE.pt"),
        ("python -m experiments.import_lerobot DIR", "write FOLDER RUN_DIR"),
        ("python -m experiments.export_reference RUN A.pt --best", "Unknown command"),
        ("python -m experiments.report", "write RUN ..., or LABEL=DIR"),
        ("python -m experiments.report a=b --over=step", "--over=step is unknown"),
        ("dppo-jax finetune $C --config.sed=1", "did you mean seed"),
        ("python -m experiments.compare --output=a", "write LABEL=FILE.py:VARIANT"),
        ("python -m experiments.convert a", "required: OUT"),
        ("python -m benchmarks.denoising --bach 3", "unrecognized arguments: --bach"),
        ("python -m benchmarks.train_step --set sed=1", "did you mean seed"),
        ("python -m benchmarks.report --results", "expected one argument"),
    ],
)
def test_a_wrong_command_is_noticed(command, said, shell):
    page = f"```\nC=--config=experiments/configs/avoid.py\n{command}\n```\n"
    (words,) = commands.commands_of(page)
    assert not commands.is_sketch(words)
    assert said in commands.mistake(words)


def test_bash_expands_the_commands_of_a_page():
    page = """
```
C=--config=a.py   # a comment
for s in 0 1; do
  python -m experiments.finetune $C --config.seed=$s \\
    --config.rollout.num_envs=$((4 * s))
done
srun --nodes=2 \\
    python -m experiments.finetune $C
rm -rf /nothing; cd nowhere
```

```python
make = "no command"
```

Then `make demo`, or `python -m
  experiments.evaluate $C`.
"""
    seed = ["python", "-m", "experiments.finetune", "--config=a.py"]
    assert commands.commands_of(page) == [
        [*seed, "--config.seed=0", "--config.rollout.num_envs=0"],
        [*seed, "--config.seed=1", "--config.rollout.num_envs=4"],
        seed,
        ["make", "demo"],
        ["python", "-m", "experiments.evaluate", "--config=a.py"],
    ]
    with pytest.raises(ValueError, match="D: unbound variable"):
        commands.commands_of("`make $D`")
