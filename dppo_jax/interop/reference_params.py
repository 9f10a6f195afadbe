"""Convert network weights under PyTorch names <-> our Flax parameters.

The names are those of the published DPPO models (github irom-princeton/dppo): a
plain perceptron is `moduleList.<i>.linear_1` / `norm_1`, a residual one `layers.<i>`
with blocks `l1`, `l2`, `norm1`, `norm2`. Torch stores a linear weight as
[out, in], Flax as [in, out].

There V(s) is `Q1` alone. Q(s, a) has two forms: `Q1` and `Q2`, or a `Q1` whose weights
have a leading axis of members. Both become an ensemble here.

Names of the layers of a U-Net are in `reference_unet`.
"""

import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from dppo_jax.errors import SettingsError
from dppo_jax.interop import reference_transformer, reference_unet
from dppo_jax.interop.reference_encoder import (
    PREFIX,
    encoder_from_reference,
    encoder_to_reference,
)
from dppo_jax.types import PyTree

_NETWORKS = {
    "cond_mlp": "condition",
    "mlp_base": "base",
    "mlp_logvar": "log_variance",
    "mlp_mean": "mean",
    "mlp_weights": "logits",
    "Q1": "value",
}
_MEMBERS = "members"  # of an ensemble; the first axis of every leaf
# Torch path -> our path, inside a network. The rule for `layers.<i>` alone is added
# later, because the rank of its weight decides between a linear layer and a norm.
_LAYERS = [
    (r"moduleList\.(\d+)\.linear_1", r"layer_\1/linear"),
    (r"moduleList\.(\d+)\.norm_1", r"layer_\1/norm"),
    (r"layers\.(\d+)\.l([12])", r"block_\1/linear_\2"),
    (r"layers\.(\d+)\.norm([12])", r"block_\1/norm_\2"),
]
_LAYERS_BACK = [
    (r"layer_(\d+)/linear", r"moduleList.\1.linear_1"),
    (r"layer_(\d+)/norm", r"moduleList.\1.norm_1"),
    (r"block_(\d+)/linear_([12])", r"layers.\1.l\2"),
    (r"block_(\d+)/norm_([12])", r"layers.\1.norm\2"),
    (r"(?:linear|norm)_(\d+)", r"layers.\1"),
]
# The indices 1 and 3 are those of the linear layers; the others are not linear.
_TIME_EMBEDDING = {
    "time_embedding.1": "time_embedding/linear_1",
    "time_embedding.3": "time_embedding/linear_2",
}
_FIXED_LOG_VARIANCE = "fixed_log_variance"
# Settings and masks that the reference saves with the weights.
_CONSTANTS = {"logvar_min", "logvar_max", "transformer.mask", "transformer.memory_mask"}


def params_from_reference(
    state_dict: Mapping[str, np.ndarray], *, prefix: str = ""
) -> PyTree:
    """Convert weights under torch names to Flax parameters, as `init` returns them.

    Args:
        state_dict: one array per name.
        prefix: use only names that start with it, and remove it. It selects one network
            of a policy (for example "actor_ft.").

    Returns:
        Parameters. Q1 and Q2, or a Q1 with an axis of members, become those of a
        `StateActionCritic`. A single Q1 becomes V(s), or one member, see
        `stack_critics`.

    Raises:
        SettingsError: unknown names (the message lists them), no name with the prefix,
            or a weight of the wrong rank.
    """
    state_dict = {
        name[len(prefix) :]: np.asarray(array)
        for name, array in state_dict.items()
        if name.startswith(prefix) and name[len(prefix) :] not in _CONSTANTS
    }
    if not state_dict:
        raise SettingsError(
            f"there are no weights whose names start with {prefix!r}; pass a "
            "checkpoint that has them."
        )
    members = _members(state_dict)
    if len(members) > 1:
        critics = [params_from_reference(member) for member in members]
        if "encoder" in critics[0]["params"]:
            raise SettingsError(
                "Q(s, a) with an image encoder is no network of the published code; "
                "there only V(s) has one."
            )
        return stack_critics(critics)
    encoder = encoder_from_reference(state_dict)
    flat, unknown = dict(encoder.values()), []
    for name, array in state_dict.items():
        if name in encoder:
            continue
        path = _path_from_reference(name, state_dict)
        if path is None:
            unknown.append(prefix + name)
        else:
            flat[path] = array.T if path.endswith("kernel") else array
    if unknown:
        raise SettingsError(
            f"No network here has weights named {', '.join(sorted(unknown))}; known "
            f"are perceptrons called {', '.join(sorted(_NETWORKS))}, time_embedding, "
            "the layers of U-Nets and transformers, and image encoders called backbone "
            "and compress."
        )
    params: PyTree = {}
    for path, array in flat.items():
        *parents, leaf = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = jax.numpy.asarray(array, np.float32)
    return {"params": params}


def stack_critics(critics: Sequence[PyTree]) -> PyTree:
    """Stack the parameters of members, {"value": ...}, for a `StateActionCritic`."""
    members = [critic["params"]["value"] for critic in critics]
    stacked = jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *members)
    return {"params": {_MEMBERS: stacked}}


def params_to_reference(params: PyTree) -> dict[str, np.ndarray]:
    """Convert Flax parameters to weights under torch names.

    An ensemble of one critic becomes Q1, of two Q1 and Q2, of more a Q1 with a leading
    axis of members.

    Raises:
        SettingsError: parameters without a torch name; the message lists them.
    """
    if set(params["params"]) == {_MEMBERS}:
        return _critics_to_reference(params["params"][_MEMBERS])
    is_unet = reference_unet.is_unet(params["params"])
    state_dict, encoder, unknown = {}, {}, []
    leaves, _ = jax.tree_util.tree_flatten_with_path(params["params"])
    for keys, array in leaves:
        path = "/".join(key.key for key in keys)
        if path.startswith(PREFIX):
            encoder[path] = np.asarray(array)
            continue
        name = _path_to_reference(path, is_unet=is_unet)
        if name is None:
            unknown.append(path)
        else:
            array = np.asarray(array)
            state_dict[name] = array.T if path.endswith("kernel") else array
    if unknown:
        raise SettingsError(f"No torch name for the parameters {', '.join(unknown)}.")
    return state_dict | (encoder_to_reference(encoder) if encoder else {})


def _members(state_dict: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Split the weights of an ensemble into those of each critic, named Q1."""
    second = [name for name in state_dict if name.startswith("Q2.")]
    if second:
        first = {name: a for name, a in state_dict.items() if name not in second}
        return [first, {f"Q1{name[2:]}": state_dict[name] for name in second}]
    ranks = {a.ndim for name, a in state_dict.items() if name.endswith(".bias")}
    if ranks != {2}:
        return [dict(state_dict)]
    size = len(next(iter(state_dict.values())))
    return [{name: a[i] for name, a in state_dict.items()} for i in range(size)]


def _critics_to_reference(members: PyTree) -> dict[str, np.ndarray]:
    size = jax.tree.leaves(members)[0].shape[0]
    critics = [
        params_to_reference(
            {"params": {"value": jax.tree.map(lambda x, i=i: x[i], members)}}
        )
        for i in range(size)
    ]
    if size > 2:
        return {name: np.stack([c[name] for c in critics]) for name in critics[0]}
    return {
        name.replace("Q1", f"Q{i}", 1): array
        for i, critic in enumerate(critics, start=1)
        for name, array in critic.items()
    }


def _path_from_reference(name: str, state_dict: Mapping) -> str | None:
    if name == "logvar":
        return _FIXED_LOG_VARIANCE
    if path := reference_transformer.path_from_reference(name):
        return path
    module, _, leaf = name.rpartition(".")
    path = _TIME_EMBEDDING.get(module) or reference_unet.path_from_reference(module)
    network, _, layer = module.partition(".")
    weight = state_dict.get(f"{module}.weight")
    if weight is None or leaf not in ("weight", "bias"):
        return None
    if network in _NETWORKS:
        kind = "norm" if weight.ndim == 1 else "linear"
        inner = _rewrite(layer, [*_LAYERS, (r"layers\.(\d+)", rf"{kind}_\1")])
        path = inner and f"{_NETWORKS[network]}/{inner}"
    if path is None:
        return None
    is_norm = path.rpartition("/")[2].startswith("norm")
    rank, what = 2, "a linear"
    if is_norm:
        rank, what = 1, "a normalisation"
    elif reference_unet.is_convolution(path):
        rank, what = 3, "a convolutional"
    if weight.ndim != rank:
        raise SettingsError(
            f"{module}.weight has shape {weight.shape}, which does not suit {what} "
            "layer."
        )
    if leaf == "bias":
        return f"{path}/bias"
    return f"{path}/scale" if is_norm else f"{path}/kernel"


def _path_to_reference(path: str, *, is_unet: bool) -> str | None:
    if path == _FIXED_LOG_VARIANCE:
        return "logvar"
    if name := reference_transformer.path_to_reference(path):
        return name
    module, _, leaf = path.rpartition("/")
    names = {ours: torch for torch, ours in _TIME_EMBEDDING.items()}
    name = reference_unet.path_to_reference(module) if is_unet else names.get(module)
    network, _, layer = module.partition("/")
    networks = {ours: torch for torch, ours in _NETWORKS.items()}
    if network in networks:
        inner = _rewrite(layer, _LAYERS_BACK)
        name = inner and f"{networks[network]}.{inner}"
    if name is None or leaf not in ("kernel", "scale", "bias"):
        return None
    return f"{name}.{'bias' if leaf == 'bias' else 'weight'}"


def _rewrite(name: str, rules: list[tuple[str, str]]) -> str | None:
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    return None
