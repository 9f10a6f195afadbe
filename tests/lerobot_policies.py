"""Diffusion policies in the layout of LeRobot, and what LeRobot computes of them.

Facts are those of github huggingface/lerobot (lerobot/policies/diffusion,
lerobot/processor) and of the schedulers of github huggingface/diffusers. Everything is
NumPy: convolutions are loops, and arrays are [B, C, T] as in PyTorch.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

STATE_DIM, ENV_DIM, ACTION_DIM = 3, 1, 2
_TYPES = {
    "f4": "F32",
    "f8": "F64",
    "f2": "F16",
    "i8": "I64",
    "u2": "BF16",
    "b1": "BOOL",
}

STATS = {
    "observation.state": {
        "min": [-0.5, 2.0, 100.0],
        "max": [1.5, 3.0, 300.0],
        "mean": [0.4, 2.4, 180.0],
        "std": [0.3, 0.2, 40.0],
        "q01": [-0.4, 2.1, 110.0],
        "q99": [1.4, 2.9, 290.0],
        "q10": [-0.3, 2.2, 120.0],
        "q90": [1.3, 2.8, 280.0],
    },
    "observation.environment_state": {
        "min": [-7.0],
        "max": [9.0],
        "mean": [1.0],
        "std": [4.0],
        "q01": [-6.0],
        "q99": [8.0],
        "q10": [-5.0],
        "q90": [7.0],
    },
    "action": {
        "min": [-0.01, -3.0],
        "max": [0.02, 5.0],
        "mean": [0.0, 1.0],
        "std": [0.01, 2.0],
        "q01": [-0.009, -2.0],
        "q99": [0.019, 4.0],
        "q10": [-0.008, -1.0],
        "q90": [0.018, 3.0],
    },
}


def make_config(**changes: Any) -> dict[str, Any]:
    """The `config.json` of a small policy, with To = 2, Ta = 4 and T = 5."""
    return {
        "type": "diffusion",
        "n_obs_steps": 2,
        "input_features": {
            "observation.state": {"type": "STATE", "shape": [STATE_DIM]},
            "observation.environment_state": {"type": "ENV", "shape": [ENV_DIM]},
        },
        "output_features": {"action": {"type": "ACTION", "shape": [ACTION_DIM]}},
        "device": "cpu",
        "horizon": 4,
        "n_action_steps": 2,
        "normalization_mapping": {
            "VISUAL": "MEAN_STD",
            "STATE": "MIN_MAX",
            "ENV": "MIN_MAX",
            "ACTION": "MIN_MAX",
        },
        "vision_backbone": "resnet18",
        "down_dims": [8, 16],
        "kernel_size": 3,
        "n_groups": 4,
        "diffusion_step_embed_dim": 4,
        "use_film_scale_modulation": True,
        "noise_scheduler_type": "DDPM",
        "num_train_timesteps": 5,
        "beta_schedule": "squaredcos_cap_v2",
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "prediction_type": "epsilon",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "num_inference_steps": None,
    } | changes


def make_weights(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights, with the names and shapes of `DiffusionConditionalUnet1d`."""
    draws, weights = np.random.default_rng(seed), {}

    def add(name: str, *shape: int, bias: int | None = None) -> None:
        for leaf, size in (("weight", shape), ("bias", (bias or shape[0],))):
            scale = 0.4 if len(shape) == 1 else 1.5 / np.sqrt(np.prod(shape[1:]))
            array = scale * draws.normal(size=size) + (len(shape) == 1)
            weights[f"diffusion.unet.{name}.{leaf}"] = array.astype(np.float32)

    time_dim, size = config["diffusion_step_embed_dim"], config["kernel_size"]
    observed = sum(x["shape"][0] for x in config["input_features"].values())
    condition = time_dim + config["n_obs_steps"] * observed
    film = 2 if config["use_film_scale_modulation"] else 1

    def block(name: str, inputs: int, outputs: int) -> None:
        for i, channels in ((1, inputs), (2, outputs)):
            add(f"{name}.conv{i}.block.0", outputs, channels, size)
            add(f"{name}.conv{i}.block.1", outputs)
        add(f"{name}.cond_encoder.1", film * outputs, condition)
        if inputs != outputs:
            add(f"{name}.residual_conv", outputs, inputs, 1)

    add("diffusion_step_encoder.1", 4 * time_dim, time_dim)
    add("diffusion_step_encoder.3", time_dim, 4 * time_dim)
    dims = [ACTION_DIM, *config["down_dims"]]
    for i, (inputs, outputs) in enumerate(zip(dims, dims[1:])):
        block(f"down_modules.{i}.0", inputs, outputs)
        block(f"down_modules.{i}.1", outputs, outputs)
        if i < len(dims) - 2:
            add(f"down_modules.{i}.2", outputs, outputs, 3)
    for i in (0, 1):
        block(f"mid_modules.{i}", dims[-1], dims[-1])
    for i, (outputs, inputs) in enumerate(reversed(list(zip(dims[1:], dims[2:])))):
        block(f"up_modules.{i}.0", 2 * inputs, outputs)
        block(f"up_modules.{i}.1", outputs, outputs)
        add(f"up_modules.{i}.2", outputs, outputs, 4)
    add("final_conv.0.block.0", dims[1], dims[1], size)
    add("final_conv.0.block.1", dims[1])
    add("final_conv.1", ACTION_DIM, dims[1], 1)
    return weights


def save_safetensors(path: Path, arrays: dict[str, np.ndarray], **extra: Any) -> Path:
    """Write arrays as the package of that name does; uint16 stands for bfloat16."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    content = b""
    for name, array in arrays.items():
        data = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": _TYPES[array.dtype.str[1:]],
            "shape": list(array.shape),
            "data_offsets": [len(content), len(content) + len(data)],
        }
        content += data
    text = json.dumps(header | extra).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    return path


def save_policy(
    folder: Path,
    config: dict[str, Any] | None = None,
    *,
    weights: dict[str, np.ndarray] | None = None,
    stats: dict[str, dict[str, list[float]]] | None = None,
    pipelines: bool = True,
    **step: Any,
) -> str:
    """Write the folder of `save_pretrained`.

    Args:
        pipelines: with normalisation in pipelines; otherwise among the weights, as
            before version 0.4.
        step: settings of the step that normalises observations.
    """
    folder.mkdir()
    config = make_config() if config is None else config
    weights = make_weights(config) if weights is None else dict(weights)
    arrays = {
        name: {key: np.asarray(x, np.float32) for key, x in values.items()}
        for name, values in (STATS if stats is None else stats).items()
    }
    features = config["input_features"] | config["output_features"]
    if pipelines:
        for direction, name, kept in (
            ("pre", "normalizer_processor", features),
            ("post", "unnormalizer_processor", config["output_features"]),
        ):
            file = f"policy_{direction}processor_step_0_{name}.safetensors"
            flat = {f"{k}.{s}": x for k, v in arrays.items() for s, x in v.items()}
            save_safetensors(folder / file, flat)
            options = {
                "eps": 1e-8,
                "features": kept,
                "norm_map": config["normalization_mapping"],
            }
            if direction == "pre":
                options |= step
            steps = [
                {"registry_name": "rename_observations_processor", "config": {}},
                {"registry_name": "to_batch_processor", "config": {}},
                {
                    "registry_name": "device_processor",
                    "config": {"device": "cpu", "float_dtype": None},
                },
                {"registry_name": name, "config": options, "state_file": file},
            ]
            (folder / f"policy_{direction}processor.json").write_text(
                json.dumps({"name": f"policy_{direction}processor", "steps": steps})
            )
    else:
        for name, feature in features.items():
            mode = config["normalization_mapping"].get(feature["type"], "IDENTITY")
            keys = {"MIN_MAX": ("min", "max"), "MEAN_STD": ("mean", "std")}
            module = "normalize_inputs"
            if feature["type"] == "ACTION":
                module = "unnormalize_outputs"
            for key in keys.get(mode, ()):
                buffer = f"{module}.buffer_{name.replace('.', '_')}.{key}"
                weights[buffer] = arrays[name][key]
    (folder / "config.json").write_text(json.dumps(config))
    save_safetensors(folder / "model.safetensors", weights)
    return str(folder)


def normalize(x: np.ndarray, mode: str, stats: dict, *, pipelines: bool) -> np.ndarray:
    """An observation, normalised by `NormalizerProcessorStep` or `Normalize`."""
    s = {key: np.asarray(value, np.float64) for key, value in stats.items()}
    if mode == "IDENTITY":
        return x
    if mode == "MEAN_STD":
        return (x - s["mean"]) / (s["std"] + 1e-8)
    low, high = {"MIN_MAX": "min max", "QUANTILES": "q01 q99", "QUANTILE10": "q10 q90"}[
        mode
    ].split()
    width = s[high] - s[low]
    width = np.where(width == 0, 1e-8, width) if pipelines else width + 1e-8
    return 2 * (x - s[low]) / width - 1


def unnormalize(z: np.ndarray, mode: str, stats: dict) -> np.ndarray:
    """An action, as `UnnormalizerProcessorStep` and `Unnormalize` return it."""
    s = {key: np.asarray(value, np.float64) for key, value in stats.items()}
    if mode == "IDENTITY":
        return z
    if mode == "MEAN_STD":
        return z * s["std"] + s["mean"]
    low, high = {"MIN_MAX": "min max", "QUANTILES": "q01 q99", "QUANTILE10": "q10 q90"}[
        mode
    ].split()
    return (z + 1) / 2 * (s[high] - s[low]) + s[low]


def mish(x: np.ndarray) -> np.ndarray:
    return x * np.tanh(np.logaddexp(0, x))


def conv(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, *, stride: int, padding: int
) -> np.ndarray:
    """Conv1d: x [B, C, T], weight [O, C, size]."""
    size = weight.shape[-1]
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding)))
    steps = range(0, x.shape[-1] - size + 1, stride)
    columns = [
        np.einsum("bcs,ocs->bo", x[..., t : t + size], weight) + bias for t in steps
    ]
    return np.stack(columns, axis=-1)


def conv_transpose(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """ConvTranspose1d(kernel 4, stride 2, padding 1): weight [C, O, 4]."""
    out = np.zeros((len(x), weight.shape[1], 2 * x.shape[-1] + 2))
    for t in range(x.shape[-1]):
        for i in range(4):
            out[..., 2 * t + i] += x[..., t] @ weight[..., i]
    return out[..., 1:-1] + bias[:, None]


def group_norm(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, num_groups: int
) -> np.ndarray:
    groups = x.reshape(len(x), num_groups, -1)
    mean, variance = groups.mean(-1, keepdims=True), groups.var(-1, keepdims=True)
    normal = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    return normal * weight[:, None] + bias[:, None]


def unet(
    config: dict[str, Any],
    weights: dict[str, np.ndarray],
    x: np.ndarray,
    time: int,
    condition: np.ndarray,
) -> np.ndarray:
    """`DiffusionConditionalUnet1d`: x [B, T, Da], condition [B, F] -> like x."""

    def layer(name: str) -> tuple[np.ndarray, np.ndarray]:
        leaves = (f"diffusion.unet.{name}.{leaf}" for leaf in ("weight", "bias"))
        weight, bias = (weights[leaf].astype(np.float64) for leaf in leaves)
        return weight, bias

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        weight, bias = layer(name)
        return x @ weight.T + bias

    def conv_block(name: str, x: np.ndarray, num_groups: int) -> np.ndarray:
        size = config["kernel_size"]
        x = conv(x, *layer(f"{name}.block.0"), stride=1, padding=size // 2)
        return mish(group_norm(x, *layer(f"{name}.block.1"), num_groups))

    def residual(name: str, x: np.ndarray) -> np.ndarray:
        out = conv_block(f"{name}.conv1", x, config["n_groups"])
        film = linear(f"{name}.cond_encoder.1", mish(feature))[..., None]
        if config["use_film_scale_modulation"]:
            channels = out.shape[1]
            out = film[:, :channels] * out + film[:, channels:]
        else:
            out = out + film
        out = conv_block(f"{name}.conv2", out, config["n_groups"])
        if x.shape[1] != out.shape[1]:
            x = conv(x, *layer(f"{name}.residual_conv"), stride=1, padding=0)
        return out + x

    half = config["diffusion_step_embed_dim"] // 2
    angle = time * np.exp(-np.log(10000) / (half - 1) * np.arange(half))
    embedding = np.concatenate([np.sin(angle), np.cos(angle)])[None]
    embedding = linear("diffusion_step_encoder.1", embedding)
    embedding = linear("diffusion_step_encoder.3", mish(embedding))
    embedding = np.repeat(embedding, len(x), axis=0)
    feature = np.concatenate([embedding, condition], axis=-1)
    x, skipped = np.swapaxes(x, 1, 2), []
    levels = len(config["down_dims"])
    for i in range(levels):
        x = residual(f"down_modules.{i}.1", residual(f"down_modules.{i}.0", x))
        skipped.append(x)
        if i < levels - 1:
            x = conv(x, *layer(f"down_modules.{i}.2"), stride=2, padding=1)
    for i in (0, 1):
        x = residual(f"mid_modules.{i}", x)
    for i in range(levels - 1):
        x = np.concatenate([x, skipped.pop()], axis=1)
        x = residual(f"up_modules.{i}.1", residual(f"up_modules.{i}.0", x))
        x = conv_transpose(x, *layer(f"up_modules.{i}.2"))
    x = conv_block("final_conv.0", x, 8)
    x = conv(x, *layer("final_conv.1"), stride=1, padding=0)
    return np.swapaxes(x, 1, 2)


def alpha_bars(config: dict[str, Any]) -> np.ndarray:
    """`alphas_cumprod` of both schedulers."""
    num_steps = config["num_train_timesteps"]
    if config["beta_schedule"] == "linear":
        betas = np.linspace(config["beta_start"], config["beta_end"], num_steps)
    else:

        def level(u: float) -> float:
            return np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2

        steps = range(num_steps)
        betas = [
            min(1 - level((i + 1) / num_steps) / level(i / num_steps), 0.999)
            for i in steps
        ]
    return np.cumprod(1 - np.asarray(betas))


def sample(
    config: dict[str, Any],
    weights: dict[str, np.ndarray],
    condition: np.ndarray,
    draws: np.ndarray,
) -> np.ndarray:
    """`DiffusionModel.generate_actions`, normalised.

    Args:
        condition: [B, F].
        draws: [K + 1, B, horizon, Da] standard normal; entry 0 starts the chain.

    Returns:
        [B, n_action_steps, Da].
    """
    trained, levels = config["num_train_timesteps"], alpha_bars(config)
    num_steps = config["num_inference_steps"] or trained
    stride = trained // num_steps
    x = draws[0].astype(np.float64)
    for time, draw in zip((np.arange(num_steps) * stride)[::-1], draws[1:]):
        out = unet(config, weights, x, int(time), condition)
        level = levels[time]
        before = levels[time - stride] if time >= stride else 1.0
        if config["prediction_type"] == "epsilon":
            clean, noise = (x - np.sqrt(1 - level) * out) / np.sqrt(level), out
        else:
            clean, noise = out, (x - np.sqrt(level) * out) / np.sqrt(1 - level)
        if config["clip_sample"]:
            bound = config["clip_sample_range"]
            clean = np.clip(clean, -bound, bound)
        if config["noise_scheduler_type"] == "DDIM":
            x = np.sqrt(before) * clean + np.sqrt(1 - before) * noise
            continue
        alpha = level / before
        x = (
            np.sqrt(before) * (1 - alpha) / (1 - level) * clean
            + np.sqrt(alpha) * (1 - before) / (1 - level) * x
        )
        if time > 0:
            x = x + np.sqrt((1 - before) / (1 - level) * (1 - alpha)) * draw
    start = config["n_obs_steps"] - 1
    return x[:, start : start + config["n_action_steps"]]
