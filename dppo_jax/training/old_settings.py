"""Update configurations of older runs: renamed settings and settings added later."""

from typing import Any

# Old name -> new name, of a setting or a section; the first entry that matches is used.
RENAMED = {
    **{
        f"{section}model.{old}": f"{section}model.network.{name}"
        for section in ("", "collect.")
        for old, name in (
            ("compute_dtype", "compute_dtype"),
            ("diffusion.time_dim", "time_dim"),
            ("diffusion.condition_sizes", "condition_sizes"),
        )
    },
    "model.diffusion.ddim_steps": "model.sampling.ddim_steps",
    "collect.model.diffusion.ddim_steps": "collect.model.sampling.ddim_steps",
    "pretrain.num_epochs": "loop.pretrain.num_epochs",
    "finetune.num_iterations": "loop.finetune.num_iterations",
    "collect.ppo.num_iterations": "loop.collect.num_iterations",
    "collect.random_steps": "collect.rollout.random_steps",
    "collect.num_steps": "collect.num_control_steps",
    **{
        f"{section}{old}": f"{section}{new}"
        for section in ("", "collect.")
        for old, new in (
            ("model.diffusion.num_steps", "model.diffusion.num_denoising_steps"),
            ("rollout.num_steps", "rollout.num_chunks"),
        )
    },
    **{
        f"{old}.{name}": f"{new}rollout.{today}"
        for old, new in (("finetune", ""), ("collect.ppo", "collect."))
        for name, today in (
            ("num_envs", "num_envs"),
            ("num_steps", "num_chunks"),
            ("reset_at_iteration", "reset_at_iteration"),
        )
    },
    **{
        f"{old}.{name}": f"{new}model.sampling.{name}"
        for old, new in (("finetune", ""), ("collect.ppo", "collect."))
        for name in (
            *("num_tuned_steps", "min_std", "min_log_prob_std", "eta"),
            *("draw_clip", "noise_clip", "final_clip"),
        )
    },
    "finetune": "algorithm.ppo",
}

# Of networks that read the state alone; the rest had no effect yet.
_STATE_ENCODER = {
    "kind": "state",
    "vit": {
        "image_size": [96, 96],
        "num_cameras": 1,
        "image_history": 1,
        "patch_layers": 2,
        "patch_size": 8,
        "patch_norm": False,
        "depth": 1,
        "num_heads": 4,
        "embed_dim": 128,
        "pooling": "spatial",
        "features": 128,
    },
}

# Settings that were added later -> the value that reproduces older runs. They are added
# only to configurations that have their section.
ADDED = {
    "env.wrappers": [],
    "env.limit_terminates": False,
    "env.randomization": {
        **dict.fromkeys(("mass", "friction", "damping", "gain"), [1.0, 1.0]),
        "shared": True,
        "delay": [0, 0],
        "action_noise": 0.0,
        "obs_noise": 0.0,
    },
    "env.randomization.initial_state": 0.0,
    **{
        f"{section}{name}": value
        for section in ("", "collect.")
        for name, value in {
            "model.network.kind": "mlp",
            "model.network.options": {},
            "model.network.compute_dtype": "float32",
            "model.squashed": {"std_min": 0.0067, "std_max": 7.39},
            "model.flow": {"times": "uniform", "num_times": 20},
            "model.flow.cloning": "flow",
            "model.flow.step_share": 0.25,
            "model.flow.max_steps": 128,
            "model.noise": {
                "std_min": 0.1,
                "std_max": 0.24,
                "hidden_sizes": [64, 64],
                "activation": "tanh",
            },
            "model.sampling.flow_steps": 4,
            "model.sampling.ddim_spacing": "leading",
            "model.sampling.mean_clip": 1.0,
            "model.sampling.rederive_noise": True,
            "model.diffusion.beta_schedule": "cosine",
            "model.diffusion.beta_start": 1e-4,
            "model.diffusion.beta_end": 0.02,
            "model.diffusion.past_actions": 0,
            "model.gmm": {
                "num_modes": 5,
                "fixed_std": 0.1,
                "learn_fixed_std": False,
                "std_min": 0.01,
                "std_max": 1.0,
                "tanh_output": True,
            },
            "model.gaussian.clone_std": True,
            "model.gmm.clone_std": True,
            "model.network.encoder": _STATE_ENCODER,
            "critic.compute_dtype": "float32",
            "critic.encoder": _STATE_ENCODER,
        }.items()
    },
    "evaluate.until_width": 0.0,
    "pretrain.random_shift": 0,
    "pretrain.ema_warmup": False,
    "algorithm.name": "ppo",
    "algorithm.fpo.average_decay": 0.0,
    "algorithm.ppo_exact.ode_tolerance": None,
    "algorithm.fpo.average_start": 500,
    **{
        f"algorithm.{name}.replay.in_checkpoints": True
        for name in (
            *("sac", "rlpd", "calql", "ibrl", "dsrl"),
            *("idql", "dql", "qsm", "dipo", "ogpo"),
        )
    },
    "rollout.random_steps": 20_000,
    "rollout.action_noise": 0.0,
    "rollout.action_noise_start": 0,
    "rollout.action_noise_ramp": 0,
    "pretrain.num_episodes": None,
    "loop.pretrain.max_skipped": 3,
    "loop.finetune.max_skipped": 3,
    "loop.pretrain.keep_best": "",
    "loop.finetune.keep_best": "",
    "loop.finetune.evaluate_from_return": None,
    **{
        f"{section}.{name}": value
        for section in ("algorithm.ppo", "collect.ppo")
        for name, value in {
            "minibatch": "pair",
            "ratio": "move",
            "distance_coef": 0.0,
            "chain_kl": {"coef": 0.0, "limit": None},
            "log_prob_bounds": [-5.0, 2.0],
            "bound_entries": None,
            "shuffle_groups": 1,
            "random_shift": 0,
        }.items()
    },
}


def updated(config: dict[str, Any]) -> dict[str, Any]:
    """Rename and add settings of a configuration in plain dictionaries."""
    config = nested({new_name(name): value for name, value in flatten(config).items()})
    for name, value in ADDED.items():
        *sections, key = name.split(".")
        section: Any = config
        for part in sections:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section.setdefault(key, value)
    return config


def new_name(name: str) -> str:
    """Today's name of a setting."""
    for old, new in RENAMED.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return name


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Convert nested dictionaries to {name with dots: value}; keep empty sections."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`; TypeError if a name is a value and a section."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *sections, key = name.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise TypeError(f"{section}={node!r} must be a section, for {name}")
        node[key] = value
    return tree
