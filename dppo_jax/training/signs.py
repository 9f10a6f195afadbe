"""The signs of runs that will not learn, and what to try against each.

A sign is a function from rows of metrics to the text of a warning, or to None. `SIGNS`
has all of them by the code of the warning, which docs/troubleshooting.md explains.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, float]]

# Consecutive rows for which most signs must hold: a single iteration gives no warning.
PATIENCE = 5
# Share of ratios that PPO clips: outside, updates are too large or nearly nothing.
CLIP_FRACTIONS = (0.01, 0.3)
# A KL estimate of an iteration below which a policy hardly changes.
LEAST_KL = 1e-6
# How far the ratio of the first update may be from 1.
RATIO_SLACK = 0.01
# Share of observation entries outside [-2, 2] that a policy can hardly cope with.
MOST_OUTSIDE = 0.05


class Settings:
    """Settings by their name with dots."""

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self._tree = tree
        self.section = f"algorithm.{self.get('algorithm.name', 'ppo')}"

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a setting, such as "env.max_steps"; `default` if it is None."""
        node: Any = self._tree
        for key in name.split("."):
            if not isinstance(node, Mapping) or key not in node:
                return default
            node = node[key]
        return default if node is None else node

    def flag(self, name: str, value: Any) -> str:
        """The flag that sets a number or a truth value, as a shell takes it."""
        text = f"{value:g}" if isinstance(value, float) else str(value)
        return f"--config.{name}={text}"

    def scaled(self, name: str, factor: float, default: float) -> str:
        """The flag that multiplies a setting of the algorithm."""
        name = f"{self.section}.{name}"
        return self.flag(name, float(f"{factor * self.get(name, default):.2g}"))


def _recent(rows: Rows, name: str, num: int = PATIENCE) -> list[float]:
    """The last values of a metric, without NaN; empty if there are fewer than `num`."""
    values = [row[name] for row in rows if name in row and not math.isnan(row[name])]
    return values[-num:] if len(values) >= num else []


def _is_learning(row: Mapping[str, float]) -> bool:
    return row.get("params_change", 1.0) > 0


def _no_success(rows: Rows, settings: Settings) -> str | None:
    scores = _recent(rows, "success")
    if not scores or any(scores) or any(_recent(rows, "eval/success", 1)):
        return None
    more_noise = ""
    if settings.get("model.kind") == "diffusion":
        std = float(settings.get("model.sampling.min_std", 0.1))
        flag = settings.flag("model.sampling.min_std", 2 * std)
        more_noise = f", or explore more: {flag}"
    return (
        f"none of the episodes in {PATIENCE} rows succeeded, so there is nothing to "
        "learn from, unless the task rewards progress as well. Clone the policy for "
        "longer or from more demonstrations until its evaluation succeeds now and "
        f"then{more_noise}"
    )


def _equal_rewards(rows: Rows, settings: Settings) -> str | None:
    spread, mean = _recent(rows, "reward_std"), _recent(rows, "reward")
    # Rounding spreads equal rewards a little.
    if not (spread and mean) or max(spread) > 1e-6 * max(*map(abs, mean), 1e-30):
        return None
    return (
        f"all rewards are equal, {mean[-1]:g}, so no action is better than another. "
        "See whether the task rewards anything that these episodes reach, and raise "
        f"{settings.flag('env.max_steps', 2 * settings.get('env.max_steps', 100))} if "
        "the reward comes at the end"
    )


def _clips_much(rows: Rows, settings: Settings) -> str | None:
    share = _recent(rows, "clip_fraction")
    if not share or min(share) <= CLIP_FRACTIONS[1]:
        return None
    return (
        f"{share[-1]:.0%} of the ratios are clipped: the updates are too large. Try "
        f"{settings.scaled('actor.learning_rate', 0.3, 1e-4)} or fewer epochs, "
        f"{settings.flag(f'{settings.section}.epochs', _half(settings))}"
    )


def _clips_little(rows: Rows, settings: Settings) -> str | None:
    learning = [row for row in rows if _is_learning(row)]
    share, change = (_recent(learning, x) for x in ("clip_fraction", "approx_kl"))
    # Good runs of DPPO clip as little, because a chunk shares its change among moves.
    if not share or not change or max(map(abs, change)) >= LEAST_KL:
        return None
    if max(share) >= CLIP_FRACTIONS[0]:
        return None
    return (
        f"only {share[-1]:.2%} of the ratios are clipped and approx_kl is "
        f"{change[-1]:.1g}: the policy hardly changes. If its return does not rise, "
        "try "
        f"{settings.scaled('actor.learning_rate', 3, 1e-4)}"
    )


def _first_ratio(rows: Rows, settings: Settings) -> str | None:
    ratio = _recent(rows, "first_ratio", 1)
    if not ratio or abs(ratio[0] - 1) <= RATIO_SLACK:
        return None
    cure = "start the command with JAX_DEFAULT_MATMUL_PRECISION=float32"
    name = "model.network.compute_dtype"
    if settings.get(name, "float32") != "float32":
        cure = f"try {settings.flag(name, 'float32')}"
    return (
        f"the first update of an iteration finds a ratio of {ratio[0]:.3f} instead of "
        "1, so log-probabilities of the roll-out and of the updates disagree, usually "
        f"because they are computed with too few digits; {cure}"
    )


def _critic_is_worse_than_the_mean(rows: Rows, settings: Settings) -> str | None:
    explained = _recent(rows, "explained_variance", 2 * PATIENCE)
    if not explained or max(explained) >= 0:
        return None
    warmup = settings.get(f"{settings.section}.critic_warmup", 0) + 5
    return (
        f"the critic explains {explained[-1]:.2f} of the variance of its targets, less "
        "than their mean would, so advantages are mostly noise. Let it learn first, "
        f"{settings.flag(f'{settings.section}.critic_warmup', warmup)}, or faster, "
        f"{settings.scaled('critic.learning_rate', 3, 1e-3)}"
    )


def _kl_stops_at_once(rows: Rows, settings: Settings) -> str | None:
    limit = settings.get(f"{settings.section}.target_kl")
    updates, kl = _recent(rows, "num_updates"), _recent(rows, "approx_kl_last")
    if limit is None or not (updates and kl) or max(updates) > 2 or min(kl) <= limit:
        return None
    return (
        f"target_kl={limit:g} ends every iteration after {updates[-1]:.0f} updates. "
        f"Try {settings.scaled('actor.learning_rate', 0.3, 1e-4)}, or allow more: "
        f"{settings.scaled('target_kl', 3, limit)}"
    )


def _far_outside(rows: Rows, _: Settings) -> str | None:
    share = _recent(rows, "obs_outside")
    if not share or min(share) <= MOST_OUTSIDE:
        return None
    return (
        f"{share[-1]:.0%} of the entries of normalised observations lie outside "
        "[-2, 2], where the policy has seen no data. If failures lead there, such as "
        "objects that fall, learning from what follows them can make the policy worse; "
        "then lower env.max_steps to little more than the longest demonstration. Else "
        "use bounds and data of the same task, version and units"
    )


def _no_episode(rows: Rows, settings: Settings) -> str | None:
    ended = _recent(rows, "num_episodes", 3)
    if not ended or any(ended):
        return None
    steps = settings.get("env.max_steps", 0)
    executed = settings.get("env.executed", settings.get("model.chunk", 1))
    chunks = -(-steps // executed) if steps else 2 * _chunks(settings)
    return (
        "no episode has ended in the roll-outs, so success and return stay empty. Make "
        "roll-outs as long as an episode, "
        f"{settings.flag('rollout.num_chunks', chunks)}, or let episodes go on in the "
        "next iteration, "
        f"{settings.flag('rollout.reset_at_iteration', False)}"
    )


def _diverged(rows: Rows, settings: Settings) -> str | None:
    steps = _recent(rows, "diverged", 1)
    if not steps or not steps[0]:
        return None
    return (
        f"the simulation broke in {steps[0]:.0f} steps of an iteration: an "
        "observation, a reward or a state was NaN, infinite or above 1e8. These steps "
        "are left out and their episodes start anew. See whether the task divides by "
        "zero, and whether its physics needs a smaller time step; broken/ in the run "
        "directory has states and actions to repeat such steps, unless the simulators "
        "run in host processes"
    )


def _full(rows: Rows, settings: Settings) -> str | None:
    spaces = {
        name: max(_recent(rows, f"{name}_full", 1), default=0.0)
        for name in ("contacts", "constraints")
    }
    full = {name: space for name, space in spaces.items() if space}
    if not full:
        return None
    engine, _, stated = settings.get("env.engine", "mjx-warp").partition(":")
    space = dict(entry.split("=") for entry in stated.split(",") if entry)
    space |= {name: f"{2 * number:.0f}" for name, number in full.items()}
    stated = ",".join(f"{name}={number}" for name, number in space.items())
    seen = " and ".join(f"{number:.0f} {name}" for name, number in full.items())
    return (
        f"a simulation has space for {seen}, which was too little: what does not fit "
        "is left out, so objects may pass through each other. Try "
        f"{settings.flag('env.engine', f'{engine}:{stated}')}"
    )


def _skipped(rows: Rows, settings: Settings) -> str | None:
    updates = _recent(rows, "skipped_updates", 1)
    if not updates or not updates[0]:
        return None
    return (
        f"in {updates[0]:.0f} updates of an iteration at least one network was not "
        "updated, because its gradients were NaN or infinite. If that goes on, lower "
        "the learning rate and set max_grad_norm"
    )


def _average_lags(rows: Rows, settings: Settings) -> str | None:
    of_average, loss = (_recent(rows, x, 3) for x in ("average_loss", "loss"))
    if not (of_average and loss) or loss[-1] <= 0:
        return None
    if min(a / b for a, b in zip(of_average, loss)) < 2:
        return None
    epochs = settings.get("loop.pretrain.num_epochs", 1000)
    decay = max(1 - 4 * (1 - settings.get("pretrain.ema_decay", 0.995)), 0.0)
    cure = (
        f"{settings.flag('pretrain.ema_decay', decay)}, with which it follows faster, "
        f"or more epochs, {settings.flag('loop.pretrain.num_epochs', 2 * epochs)}"
    )
    if not settings.get("pretrain.ema_warmup", True):
        cure = settings.flag("pretrain.ema_warmup", True)
    return (
        f"the averaged network, which is the policy, has a loss of {of_average[-1]:.3g}"
        f", the trained one {loss[-1]:.3g}: the average lags behind. Try {cure}"
    )


def _short_episodes(rows: Rows, settings: Settings) -> str | None:
    executed = settings.get("env.executed", settings.get("model.chunk", 1))
    length = _recent(rows, "episode_length")
    if not length or executed < 2 or max(length) > executed:
        return None
    return (
        f"episodes last {length[-1]:.1f} control steps, no longer than the {executed} "
        "actions of a chunk, so the policy decides once per episode. Try "
        f"{settings.flag('env.executed', max(executed // 4, 1))}"
    )


def _half(settings: Settings) -> int:
    return max(settings.get(f"{settings.section}.epochs", 4) // 2, 1)


def _chunks(settings: Settings) -> int:
    return settings.get("rollout.num_chunks", 50)


SIGNS = {
    "no_success": _no_success,
    "equal_rewards": _equal_rewards,
    "clips_much": _clips_much,
    "clips_little": _clips_little,
    "first_ratio": _first_ratio,
    "critic": _critic_is_worse_than_the_mean,
    "kl_stop": _kl_stops_at_once,
    "obs_outside": _far_outside,
    "no_episode": _no_episode,
    "diverged": _diverged,
    "full": _full,
    "skipped": _skipped,
    "average_lags": _average_lags,
    "short_episodes": _short_episodes,
}
