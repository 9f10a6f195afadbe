"""Convert checkpoints of the published DPPO code (github irom-princeton/dppo) <-> ours.

Its pre-training saves {"epoch", "model", "ema"} with weights `network.*`. Its
fine-tuning saves {"itr", "model"} with `actor.*` (the base network), `actor_ft.*` (the
tuned network), `critic.*`, and `network.*`, a copy of one of the two. Checkpoints hold
no schedules; a configuration must give what cannot be inferred from the weights.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dppo_jax.errors import SettingsError
from dppo_jax.interop import reference_unet
from dppo_jax.interop.reference_encoder import infer_encoder
from dppo_jax.interop.reference_params import params_from_reference, params_to_reference
from dppo_jax.interop.torch_file import load_torch_file, save_torch_file
from dppo_jax.normalize import Normalizer
from dppo_jax.policies import PolicyParams
from dppo_jax.types import PyTree

# Bounds of eta, the noise level of DDIM, in all published configurations.
_ETA_BOUNDS = (0.1, 1.0)


class ReferenceCheckpoint(NamedTuple):
    """A policy of the reference implementation.

    stage: "pretrain" or "finetune".
    params: base and tuned network; the same network twice after pre-training, and for a
        mixture, whose base network the reference does not save.
    critic: parameters of V(s); None if there is none (Q(s, a) is not read).
    std_bounds: least and largest standard deviation of a Gaussian policy or a mixture,
        or None.
    iteration: epoch of pre-training, or iteration of fine-tuning.
    """

    stage: str
    params: PolicyParams
    critic: PyTree | None
    std_bounds: tuple[float, float] | None
    iteration: int


def load_reference_checkpoint(path: str | os.PathLike) -> ReferenceCheckpoint:
    """Read a `state_<n>.pt`; of a pre-trained policy the moving average, if saved.

    Raises:
        SettingsError: a file that cannot be read, is not such a checkpoint, or holds
            networks other than perceptrons, U-Nets, transformers and image encoders.
    """
    tree = load_torch_file(path)
    tree = tree if isinstance(tree, dict) else {}
    weights = tree.get("ema", tree.get("model"))
    iteration = tree.get("itr", tree.get("epoch"))
    if (
        not isinstance(weights, dict)
        or not weights
        or not all(isinstance(name, str) for name in weights)
        or not all(isinstance(array, np.ndarray) for array in weights.values())
        or not isinstance(iteration, int)
    ):
        raise SettingsError(
            f"{path} is not a checkpoint of the reference's pre-training (epoch, model,"
            " ema) or fine-tuning (itr, model); pass a state_<n>.pt that it saved."
        )
    _check_numbers(weights, path)
    tuned = any(name.startswith("actor_ft.") for name in weights)
    base_prefix, prefix = ("actor.", "actor_ft.") if tuned else ("network.", "network.")
    try:
        params = params_from_reference(weights, prefix=prefix)
        # There is no frozen network beside a mixture.
        base = params
        if not _is_mixture(params):
            base = params_from_reference(weights, prefix=base_prefix)
        critic = None
        if _has_state_critic(weights):
            critic = params_from_reference(weights, prefix="critic.")
    except (ValueError, TypeError, LookupError) as error:
        raise SettingsError(f"{path}: {error}") from None
    log_bounds = [weights.get(f"{prefix}logvar_{end}") for end in ("min", "max")]
    if any(bound is not None and bound.size != 1 for bound in log_bounds):
        raise SettingsError(f"{path}: {prefix}logvar_min and _max must be one number.")
    low, high = (
        None if bound is None else float(np.exp(0.5 * bound.reshape(())))
        for bound in log_bounds
    )
    return ReferenceCheckpoint(
        stage="finetune" if tuned else "pretrain",
        params=PolicyParams(base=base, tuned=params),
        critic=critic,
        std_bounds=None if low is None or high is None else (low, high),
        iteration=iteration,
    )


def _check_numbers(weights: Mapping[str, np.ndarray], path: str | os.PathLike) -> None:
    """Refuse weights that are no numbers of float32.

    Masks may be infinite, and so may the logit of an eta at an end of its range.
    """
    largest = np.finfo(np.float32).max
    for name, array in weights.items():
        if array.dtype.kind == "f" and not name.endswith(("mask", "eta_logit")):
            with np.errstate(invalid="ignore"):
                if not (np.abs(array) <= largest).all():
                    raise SettingsError(
                        f"{path}: {name} has entries that are NaN, infinite or too "
                        "large for float32; copy the file again, or pass a checkpoint "
                        "of a run that did not diverge."
                    )


def save_reference_checkpoint(
    path: str | os.PathLike,
    checkpoint: ReferenceCheckpoint,
    *,
    eta: float | None = None,
) -> None:
    """Write a `.pt` that the reference can load.

    For a pre-trained policy, both `model` and `ema` are the moving average. The
    reference can load a fine-tuned policy without a critic only where it allows missing
    weights (`network_path`, evaluation); it cannot resume a run from it.

    Args:
        eta: noise level of a DDIM policy, which the reference saves with the weights.

    Raises:
        SettingsError: parameters that have no name in the reference, or an `eta`
            outside the reference's bounds.
    """
    constants = {}
    if checkpoint.std_bounds is not None:
        constants = {
            f"logvar_{end}": np.asarray(2 * np.log(std), np.float32)
            for end, std in zip(("min", "max"), checkpoint.std_bounds)
        }
    base, tuned = (
        constants | params_to_reference(params)
        for params in (checkpoint.params.base, checkpoint.params.tuned)
    )
    if checkpoint.stage == "pretrain":
        network = _prefixed("network", tuned)
        tree = {"epoch": checkpoint.iteration, "model": network, "ema": network}
        save_torch_file(path, tree)
        return
    # In the reference, `network.*` is the base network of a diffusion policy, but the
    # tuned network of a Gaussian policy or a mixture.
    is_diffusion = _is_diffusion(checkpoint.params.tuned)
    model = _prefixed("network", base if is_diffusion else tuned)
    if eta is not None:
        model["eta.eta_logit"] = _eta_logit(eta)
    if not _is_mixture(checkpoint.params.tuned):
        model |= _prefixed("actor", base)
    model |= _prefixed("actor_ft", tuned)
    if checkpoint.critic is not None:
        model |= _prefixed("critic", params_to_reference(checkpoint.critic))
    save_torch_file(path, {"itr": checkpoint.iteration, "model": model})


def infer_settings(
    checkpoint: ReferenceCheckpoint, normalizer: Normalizer
) -> dict[str, Any]:
    """Infer settings of the configuration from the weights.

    Args:
        normalizer: bounds that the policy was trained with. They give the sizes of an
            action and an observation, which are needed to infer the lengths of chunk
            and history from the weights.

    Returns:
        For example {"model.chunk": 4, "model.network.hidden_sizes": (512, 512, 512)}.
        Settings on which the weights do not depend are missing.

    Raises:
        SettingsError: a normalizer of other sizes, or networks with missing layers.
    """
    net, critic = checkpoint.params.base["params"], {}
    try:
        if _is_diffusion(checkpoint.params.base):
            settings = _diffusion_settings(net)
        else:
            settings = _head_settings(
                net, checkpoint.std_bounds, len(normalizer.action_min)
            )
        if "encoder" in net:
            told, size = infer_encoder(net["encoder"])
            settings |= _prefixed("model.network.encoder", told)
            settings["inputs"] -= size
        if checkpoint.critic is not None:
            critic = _critic_settings(checkpoint.critic["params"])
    except KeyError as error:
        raise SettingsError(
            f"the policy lacks the weights {error}; only a denoiser, a Gaussian "
            "policy, a mixture and V(s) can be imported."
        ) from None
    trunk = settings.pop("trunk")
    sizes = [("inputs", normalizer.obs_min, "env.history")]
    if "outputs" in settings:
        sizes.insert(0, ("outputs", normalizer.action_min, "model.chunk"))
    else:
        _check_action_dim(settings.pop("action_dim"), normalizer)
    for what, vector, name in sizes:
        size = settings.pop(what)
        settings[name], rest = divmod(size, len(vector))
        if rest or not settings[name]:
            raise SettingsError(
                f"the policy has {size} {what}, which is not a multiple of the "
                f"{len(vector)} in the normalization; pass the --normalization that "
                "the policy was trained with."
            )
    return settings | _prefixed("model.network", trunk) | _prefixed("critic", critic)


def _diffusion_settings(net: Mapping[str, Any]) -> dict[str, Any]:
    if reference_unet.is_unet(net):
        return _unet_settings(net)
    time_dim = len(net["time_embedding"]["linear_2"]["bias"])
    inputs, outputs = _inputs(net["mean"]), _outputs(net["mean"])
    condition_sizes = None
    inputs -= time_dim + outputs
    if "condition" in net:
        layers = _perceptron(net["condition"])["hidden_sizes"]
        condition_sizes = (*layers, _outputs(net["condition"]))
        inputs = _inputs(net["condition"])
    return {
        "model.kind": "diffusion",
        "model.network.time_dim": time_dim,
        "model.network.condition_sizes": condition_sizes,
        "inputs": inputs,
        "outputs": outputs,
        "trunk": {"kind": "mlp"} | _perceptron(net["mean"]),
    }


def _unet_settings(net: Mapping[str, Any]) -> dict[str, Any]:
    """The number of actions is missing: convolutions are the same for any number."""
    num_levels = sum(re.fullmatch(r"down_\d+_0", name) is not None for name in net)
    blocks = [net[f"down_{i}_0"] for i in range(num_levels)]
    widths = [len(block["block_1"]["conv"]["bias"]) for block in blocks]
    dim = len(net["out_block"]["conv"]["bias"])
    film = blocks[0]["film"]
    larger_encoder = "linear_3" in film
    first, last = ("linear_1", "linear_3") if larger_encoder else ("linear", "linear")
    time_dim = len(net["time_embedding"]["linear_2"]["bias"])
    inputs, condition_sizes = film[first]["kernel"].shape[0] - time_dim, None
    if "condition" in net:
        inputs = _inputs(net["condition"])
        layers = _perceptron(net["condition"])["hidden_sizes"]
        condition_sizes = (*layers, _outputs(net["condition"]))
    network = {
        "kind": "unet",
        "dim": dim,
        "dim_mults": tuple(width // dim for width in widths),
        "kernel_size": blocks[0]["block_1"]["conv"]["kernel"].shape[0],
        "predict_scale": len(film[last]["bias"]) == 2 * widths[0],
        "larger_encoder": larger_encoder,
        "time_dim": time_dim,
        "condition_sizes": condition_sizes,
    }
    return {
        "model.kind": "diffusion",
        "inputs": inputs,
        "action_dim": len(net["out"]["bias"]),
        "trunk": network,
    }


def _check_action_dim(size: int, normalizer: Normalizer) -> None:
    if size != len(normalizer.action_min):
        raise SettingsError(
            f"the policy has actions of {size} numbers, the normalization of "
            f"{len(normalizer.action_min)}; pass the --normalization that the policy "
            "was trained with."
        )


def _head_settings(
    net: Mapping[str, Any], std_bounds: tuple[float, float] | None, action_dim: int
) -> dict[str, Any]:
    """Of a Gaussian or a mixture.

    Args:
        action_dim: Da, which tells whether a transformer predicts log-variances.
    """
    kind = "gmm" if "logits" in net else "gaussian"
    settings: dict[str, Any] = {"model.kind": kind}
    num_modes = 1
    if kind == "gmm":
        logits = net["logits"]
        num_modes = len(logits["bias"]) if "bias" in logits else _outputs(logits)
        settings["model.gmm.num_modes"] = num_modes
    if "transformer" in net:
        found = _transformer(net["transformer"])
        predicts = found["outputs"] == 2 * num_modes * found["chunk"] * action_dim
        found["outputs"] //= 1 + predicts
        del found["chunk"]
    else:
        first = net.get("base", net["mean"])
        trunk = {"kind": "mlp"} | _perceptron(first)
        predicts = "log_variance" in net
        if "base" in net:
            trunk["hidden_sizes"] += (_outputs(net["base"]),)
        outputs = _outputs(net["mean"])
        found = dict(inputs=_inputs(first), outputs=outputs, trunk=trunk)
    found["outputs"] //= num_modes
    learned = "fixed_log_variance" in net
    settings[f"model.{kind}.learn_fixed_std"] = learned
    if predicts:
        settings[f"model.{kind}.fixed_std"] = None
    if std_bounds is not None and (learned or predicts):
        for name, bound in zip(("std_min", "std_max"), std_bounds):
            settings[f"model.{kind}.{name}"] = bound
    return settings | found


def _transformer(net: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a transformer; the number of its heads is in no weight."""
    _, chunk, size = net["position"].shape
    num_layers = sum(name.startswith("layer_") for name in net)
    return dict(
        inputs=net["observation"]["kernel"].shape[0],
        outputs=chunk * len(net["head"]["bias"]),
        chunk=chunk,
        trunk={"kind": "transformer", "embed_dim": size, "num_layers": num_layers},
    )


def _critic_settings(net: Mapping[str, Any]) -> dict[str, Any]:
    told = infer_encoder(net["encoder"])[0] if "encoder" in net else {}
    return _perceptron(net["value"]) | _prefixed("encoder", told)


def _perceptron(net: Mapping[str, Any]) -> dict[str, Any]:
    """Infer the settings of a plain or residual perceptron from its layers."""
    residual = "linear_0" in net
    sizes: tuple[int, ...]
    if residual:
        hidden = [layer for name, layer in net.items() if name.startswith("block_")]
        sizes = (len(net["linear_0"]["bias"]),) * (1 + 2 * len(hidden))
    else:
        layers = [net[f"layer_{i}"] for i in range(len(net))]
        hidden = layers[:-1]
        sizes = tuple(len(layer["linear"]["bias"]) for layer in hidden)
    settings = {"hidden_sizes": sizes, "residual": residual}
    if hidden:
        settings["layer_norm"] = any(name.startswith("norm") for name in hidden[0])
    return settings


def _inputs(net: Mapping[str, Any]) -> int:
    first = net["linear_0"] if "linear_0" in net else net["layer_0"]["linear"]
    return first["kernel"].shape[0]


def _outputs(net: Mapping[str, Any]) -> int:
    if "linear_0" in net:
        num_blocks = sum(name.startswith("block_") for name in net)
        return len(net[f"linear_{num_blocks + 1}"]["bias"])
    return len(net[f"layer_{len(net) - 1}"]["linear"]["bias"])


def _has_state_critic(weights: Mapping[str, Any]) -> bool:
    names = [name for name in weights if name.startswith("critic.")]
    return bool(names) and not any(name.startswith("critic.Q2.") for name in names)


def _is_diffusion(params: PyTree) -> bool:
    return "time_embedding" in params["params"]


def _is_mixture(params: PyTree) -> bool:
    return "logits" in params["params"]


def _prefixed(prefix: str, items: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in items.items()}


def _eta_logit(eta: float) -> np.ndarray:
    """Compute the parameter that the reference maps by tanh into the bounds of eta."""
    low, high = _ETA_BOUNDS
    if not low <= eta <= high:
        raise SettingsError(
            f"eta={eta} lies outside [{low}, {high}], the reference's bounds; its "
            "configurations use 1 in training, and it always uses 0 in evaluation."
        )
    with np.errstate(divide="ignore"):
        return np.arctanh([np.float32(2 * (eta - low) / (high - low) - 1)])
