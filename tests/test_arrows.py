"""Imports between the parts of the package follow the arrows below.

`a <- b` means that b may import a and whatever a may import. An import that no arrow
allows is an error, and so is a part of the package without an arrow: add one here.
"""

import ast
import configparser
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

ARROWS = """
types <- training.parallel <- envs, rollout, replay, learning, algorithms, training
types <- diffusion, networks <- policies <- learning, algorithms, interop, deploy
objects <- networks, envs
runtime <- envs, learning
types <- normalize <- envs <- rollout <- evaluate, learning, demonstrations, algorithms
types <- replay <- learning <- algorithms <- deploy <- controller, exported
interop, exported_policy <- exported
deploy <- compared <- onnx_file <- exported
types <- noise_inputs <- onnx_file
demonstrations <- algorithms, interop
errors <- types, objects, runtime, demonstrations, training.config_file
errors <- expansion <- normalize, demonstrations, interop, training.orbax_manager
zip_archive <- normalize, interop
training.old_settings <- training.config_file <- training.checkpoint
types <- training.trees, training.left_out <- training.checkpoint
training.trees <- training.added_leaves <- training.checkpoint
errors <- training.provenance <- training.orbax_manager <- training.checkpoint
normalize <- training.checkpoint <- training, interop, deploy
"""

# Files and folders in these folders must not import each other.
STRANGERS = ("algorithms",)

# Only make_* and default_config read configurations; these parts take plain arguments.
PLAIN = (
    *("types", "normalize", "objects", "replay", "rollout", "evaluate"),
    *("diffusion", "policies.chain", "policies.gaussian", "policies.gmm"),
    *("policies.squashed", "policies.flow", "policies.steered", "networks.noise"),
    *("learning.returns", "learning.losses", "learning.chain_losses"),
    *("learning.flow_losses", "learning.likelihood_losses", "learning.q_losses"),
    *("learning.minibatch", "learning.optimizers"),
    *("learning.soft_actor_critic", "learning.calibrated_q"),
    *("learning.imitation_bootstrap", "learning.offline_data", "learning.quirks"),
    *("learning.returns_to_go", "policies.proposals"),
    *("learning.diffusion_q", "learning.diffusion_q_losses", "policies.candidates"),
    *("learning.soft_actor_critic", "learning.steering", "learning.quirks"),
    *("learning.group_surrogate", "policies.best_of"),
    *("learning.regression", "learning.regression_iteration"),
    "learning.advantage_regression",
    *("networks.encoders", "networks.mlp", "networks.gaussian", "networks.critics"),
    *("networks.unet", "networks.std", "networks.dropout", "networks.gmm"),
    *("networks.transformer", "networks.vision", "networks.patches"),
    *("envs.core", "envs.physics", "envs.wrappers", "training", "deploy"),
)

# Other frameworks are not dependencies, and unpickling a file can run any code.
BANNED = {
    **dict.fromkeys(("torch", "torchvision", "tensorflow"), "is another framework"),
    **dict.fromkeys(
        ("pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"),
        "could unpickle a file",
    ),
}

# Packages whose import name differs from the name to install.
INSTALLED_AS = {
    "absl": "absl-py",
    "jaxlib": "jax",
    "mujoco_playground": "playground",
    "orbax": "orbax-checkpoint",
    "PIL": "pillow",
}


class Module(NamedTuple):
    """name: dotted. tree: syntax tree. imports: dotted, also those inside functions."""

    name: str
    tree: ast.Module
    imports: tuple[str, ...]


def parse(name: str, source: str, *, is_package: bool = False) -> Module:
    """`from a import b` counts as an import of a.b, whether b is a module or not."""
    tree = ast.parse(source)
    imports: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            up = name.split(".")[: len(name.split(".")) - node.level + is_package]
            origin = [*(up if node.level else []), *filter(None, [node.module])]
            imports += [".".join([*origin, alias.name]) for alias in node.names]
    return Module(name, tree, tuple(imports))


def modules() -> list[Module]:
    found = []
    for folder in ("dppo_jax", "experiments", "benchmarks"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            found.append(parse(name, path.read_text(), is_package=is_package))
    return found


@functools.cache
def upstream(arrows: str = ARROWS) -> dict[str, set[str]]:
    """Part of dppo_jax -> the parts that it may import."""
    reach: dict[str, set[str]] = {}
    for line in filter(None, arrows.splitlines()):
        groups = [group.replace(" ", "").split(",") for group in line.split("<-")]
        for group, before in zip(groups, [[], *groups]):
            for part in group:
                reach.setdefault(part, set()).update(before)
    for _ in reach:  # A path is at most as long as the number of parts.
        for parts in reach.values():
            parts.update(*(reach[part] for part in tuple(parts)))
    return reach


def part_of(name: str) -> str:
    """dppo_jax.envs.tasks.avoid -> envs, dppo_jax.training.parallel -> itself."""
    inside = name.partition(".")[2]
    for part in sorted(upstream(), key=len, reverse=True):
        if f"{inside}.".startswith(f"{part}."):
            return part
    return inside.partition(".")[0]


def arrows_run_one_way(module: Module) -> Iterator[str]:
    reach, part = upstream(), part_of(module.name)
    if not module.name.startswith("dppo_jax."):
        return  # `dppo_jax/__init__.py` and the programs may import everything.
    if part not in reach:
        yield f"no arrow says what {part} may import"
        return
    for target in module.imports:
        root, target_part = target.split(".")[0], part_of(target)
        if root in ("experiments", "benchmarks", "tests"):
            yield f"the library must not import {target}"
        elif root == "dppo_jax" and target_part not in reach:
            yield f"no arrow mentions {target}; import it from its own module"
        elif root == "dppo_jax" and target_part not in reach[part] | {part}:
            yield f"no arrow leads from {target_part} to {part}"


def strangers_stay_strangers(module: Module) -> Iterator[str]:
    for folder in STRANGERS:
        home = f"dppo_jax.{folder}."
        for target in module.imports:
            siblings = module.name.startswith(home) and target.startswith(home)
            one, other = (
                name.removeprefix(home).split(".")[0] for name in (module.name, target)
            )
            if siblings and one != other:
                yield f"{folder} never import each other, here {target}"


def settings_end_at_make(module: Module) -> Iterator[str]:
    if not any(target.split(".")[0] == "ml_collections" for target in module.imports):
        return
    if module.name.split(".")[0] != "dppo_jax":
        return
    inside = module.name.removeprefix("dppo_jax.")
    if any(f"{inside}.".startswith(f"{part}.") for part in PLAIN):
        yield f"{inside} takes plain arguments, no ml_collections"
    functions = [n.name for n in module.tree.body if isinstance(n, ast.FunctionDef)]
    if not any(re.match(r"make_|default_config$", name) for name in functions):
        yield "ml_collections without a make_* or default_config"


def nothing_banned_is_imported(module: Module) -> Iterator[str]:
    for target in module.imports:
        if reason := BANNED.get(target.split(".")[0]):
            yield f"{target} {reason}"


def nothing_is_unpickled(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                yield f"allow_pickle={ast.unparse(node.value)}"
        if isinstance(node, ast.Attribute) and node.attr == "read_pickle":
            yield "read_pickle"


def dependencies_are_declared(module: Module) -> Iterator[str]:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    required = [setup["options"]["install_requires"]]
    required += setup["options.extras_require"].values()
    declared = re.findall(r"^[\w-]+", "\n".join(required), re.MULTILINE)
    known = {name.lower().replace("_", "-") for name in declared}
    known |= {"dppo-jax", "experiments", "benchmarks"}
    for root in {target.split(".")[0] for target in module.imports}:
        name = INSTALLED_AS.get(root, root).lower().replace("_", "-")
        exempt = root in sys.stdlib_module_names or root in BANNED
        if not exempt and name not in known:
            yield f"setup.cfg does not require {name}"


def calls_name_what_they_pass(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        for argument in node.args if isinstance(node, ast.Call) else ():
            if isinstance(argument, ast.Starred) and isinstance(
                argument.value, ast.Tuple
            ):
                yield f"{ast.unparse(argument)} hides which argument is which"


RULES = (
    arrows_run_one_way,
    strangers_stay_strangers,
    settings_end_at_make,
    nothing_banned_is_imported,
    nothing_is_unpickled,
    dependencies_are_declared,
    calls_name_what_they_pass,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_sources_obey_the_rules(rule):
    complaints = [f"{m.name}: {said}" for m in modules() for said in rule(m)]
    assert not complaints, "\n".join(["", *complaints])


OFFENCES = {
    "envs import no policies": (
        *("dppo_jax.envs.core", "from dppo_jax.policies import diffusion_policy"),
        "no arrow leads from policies to envs",
    ),
    "the replay buffer imports no demonstrations": (
        *("dppo_jax.replay", "from dppo_jax.demonstrations import transitions"),
        "no arrow leads from demonstrations to replay",
    ),
    "demonstrations do not import the replay buffer": (
        *("dppo_jax.demonstrations.transitions", "from dppo_jax import replay"),
        "no arrow leads from replay to demonstrations",
    ),
    "networks import no returns, even by a relative import": (
        *("dppo_jax.networks.mlp", "from ..learning.returns import gae"),
        "no arrow leads from learning to networks",
    ),
    "training imports no algorithm, even inside a function": (
        *("dppo_jax.training.loop", "def run():\n    import dppo_jax.algorithms.ppo"),
        "no arrow leads from algorithms to training",
    ),
    "checkpoints import no algorithm": (
        *("dppo_jax.training.checkpoint", "from dppo_jax.algorithms import ppo"),
        "no arrow leads from algorithms to training.checkpoint",
    ),
    "parallel does not import cloning": (
        *("dppo_jax.training.parallel", "from dppo_jax.algorithms import clone"),
        "no arrow leads from algorithms to training.parallel",
    ),
    "the library imports no program": (
        *("dppo_jax.evaluate", "import experiments.finetune"),
        "the library must not import experiments.finetune",
    ),
    "modules import nothing from dppo_jax itself": (
        *("dppo_jax.rollout", "from dppo_jax import ChainPolicy"),
        "no arrow mentions dppo_jax.ChainPolicy; import it from its own module",
    ),
    "a new part needs an arrow": (
        *("dppo_jax.utilities", ""),
        "no arrow says what utilities may import",
    ),
    "algorithms never import each other": (
        *("dppo_jax.algorithms.dql", "from dppo_jax.algorithms.ppo import make_ppo"),
        "algorithms never import each other, here dppo_jax.algorithms.ppo.make_ppo",
    ),
    "mathematics takes plain arguments": (
        *("dppo_jax.learning.losses", "import ml_collections\ndef make_loss(): ..."),
        "learning.losses takes plain arguments, no ml_collections",
    ),
    "updates that several algorithms share take plain arguments": (
        "dppo_jax.learning.soft_actor_critic",
        "from ml_collections import ConfigDict\ndef make_updates(): ...",
        "learning.soft_actor_critic takes plain arguments, no ml_collections",
    ),
    "networks except their build take plain arguments": (
        *("dppo_jax.networks.mlp", "import ml_collections\ndef make_mlp(): ..."),
        "networks.mlp takes plain arguments, no ml_collections",
    ),
    "objects by name import no environments": (
        *("dppo_jax.objects", "from dppo_jax.envs.core import vectorize"),
        "no arrow leads from envs to objects",
    ),
    "only make functions read configurations": (
        *("dppo_jax.learning.off_policy", "from ml_collections import ConfigDict"),
        "ml_collections without a make_* or default_config",
    ),
    "no torch": (
        *("dppo_jax.interop.weights", "import torch.nn as nn"),
        "torch.nn is another framework",
    ),
    "no pickle": (
        *("dppo_jax.interop.weights", "from pickle import loads"),
        "pickle.loads could unpickle a file",
    ),
    "nothing is unpickled by NumPy": (
        *("dppo_jax.normalize", "np.load(path, allow_pickle=True)"),
        "allow_pickle=True",
    ),
    "calls do not unpack a literal tuple": (
        *("dppo_jax.rollout", "run(*(env, act), keys)"),
        "*(env, act) hides which argument is which",
    ),
    "dependencies are declared": (
        *("benchmarks.physics", "import pandas as pd"),
        "setup.cfg does not require pandas",
    ),
}


@pytest.mark.parametrize("offence", OFFENCES)
def test_an_offence_breaks_exactly_one_rule(offence):
    name, source, expected = OFFENCES[offence]
    module = parse(name, source)
    assert [said for rule in RULES for said in rule(module)] == [expected]


def test_allowed_imports_pass():
    source = "import jax, mujoco.mjx\nfrom ml_collections import ConfigDict\n"
    source += "from dppo_jax import rollout\nfrom dppo_jax.types import Env\n"
    source += "from dppo_jax.diffusion import denoising\n"
    source += "def default_config() -> ConfigDict: ...\n"
    module = parse("dppo_jax.algorithms.ppo", source)
    assert [said for rule in RULES for said in rule(module)] == []


def test_relative_imports_resolve_as_python_does():
    source = "from . import a\nfrom ..b import c"
    assert parse("x.y.z", source).imports == ("x.y.a", "x.b.c")
    assert parse("x.y", source, is_package=True).imports == ("x.y.a", "x.b.c")
