"""An on-policy algorithm that saves an average of its actor over iterations."""

import jax
import jax.numpy as jnp

from dppo_jax.errors import SettingsError
from dppo_jax.learning.on_policy import OnPolicyState
from dppo_jax.policies import PolicyParams
from dppo_jax.types import Algorithm, Array, Metrics, PyTree


def average_actor(algorithm: Algorithm, decay: float, *, start: int) -> Algorithm:
    """Average the tuned parameters exponentially, once after the updates of each step.

    Evaluations and saved policies have the average. Roll-outs and updates use the
    parameters that are trained, so that ratios still start at one (as in FPO++, arXiv
    2602.02481).

    Args:
        algorithm: of `on_policy.on_policy`.
        decay: of the average; 0: no average, and `algorithm` is returned.
        start: iterations after which averaging starts; until then the average is a
            copy.

    Raises:
        SettingsError: a decay outside [0, 1), or a negative start.
    """
    if not 0 <= decay < 1:
        raise SettingsError(f"average_decay={decay} must lie in [0, 1); 0: no average.")
    if start < 0:
        raise SettingsError(f"average_start={start} must not be negative.")
    if not decay:
        return algorithm
    collect, learn = algorithm.phases

    def init(
        key: Array,
        params: PolicyParams | None = None,
        critic_params: PyTree | None = None,
    ) -> OnPolicyState:
        state = algorithm.init(key, params, critic_params)
        return state._replace(average=state.params.tuned)

    def learn_and_average(
        state: OnPolicyState, steps: PyTree, metrics: Metrics
    ) -> tuple[OnPolicyState, Metrics]:
        state, metrics = learn(state, steps, metrics)
        kept = jnp.where(state.iteration <= start, 0.0, decay)
        average = jax.tree.map(
            lambda old, new: kept * old + (1 - kept) * new,
            state.average,
            state.params.tuned,
        )
        return state._replace(average=average), metrics

    def step(state: OnPolicyState) -> tuple[OnPolicyState, Metrics]:
        return learn_and_average(*collect(state))

    return algorithm._replace(
        init=jax.jit(init),
        step=step,
        params=lambda state: state.params._replace(tuned=state.average),
        phases=(collect, learn_and_average),
    )
