import jax.numpy as jnp
import numpy as np
import pytest

from dppo_jax.learning import optimizers


def step(grads, *, learning_rate=0.1, **settings):
    params = jnp.array([1.0, -2.0])
    optimizer = optimizers.adamw(**({"weight_decay": 0.0} | settings))
    return optimizers.update(
        optimizer, jnp.array(grads), optimizer.init(params), params, learning_rate
    )[0]


def test_the_first_step_of_adam_has_the_size_of_the_learning_rate():
    """In the first step Adam's moments cancel, whatever the size of the gradient."""
    np.testing.assert_allclose(step([5.0, -0.01]), [0.9, -1.9], rtol=1e-5)


def test_weight_decay_is_decoupled_from_the_gradient():
    """p - lr (sign + decay p): the decay is not divided by the gradient's size."""
    decayed = step([5.0, 5.0], weight_decay=0.5)
    np.testing.assert_allclose(decayed, [1 - 0.1 * 1.5, -2 - 0.1 * 0.0], rtol=1e-5)


def test_a_learning_rate_of_zero_changes_nothing():
    np.testing.assert_array_equal(step([1.0, 1.0], learning_rate=0.0), [1.0, -2.0])


def test_gradients_are_scaled_down_to_the_norm_and_never_up():
    """Adam's step does not depend on the scale of gradients, but its moments do."""
    optimizer = optimizers.adamw(weight_decay=0.0, max_grad_norm=1.0)
    params = jnp.zeros(2)

    def first_moment(grads):
        _, state = optimizers.update(
            optimizer, jnp.array(grads), optimizer.init(params), params, 0.1
        )
        return np.asarray(state[1].mu) / 0.1

    np.testing.assert_allclose(first_moment([3.0, 4.0]), [0.6, 0.8], rtol=1e-5)
    np.testing.assert_allclose(first_moment([0.3, 0.4]), [0.3, 0.4], rtol=1e-5)


def test_a_trainer_takes_the_steps_of_adamw_at_one_rate():
    params, grads = jnp.array([1.0, -2.0]), jnp.array([5.0, -0.01])
    trainer = optimizers.trainer(learning_rate=0.1, weight_decay=0.5)
    trained = trainer.descend(trainer.init(params), grads)
    np.testing.assert_array_equal(trained.params, step([5.0, -0.01], weight_decay=0.5))
    assert trained.optimizer[0].count == 1
    with pytest.raises(ValueError, match="learning_rate=-1"):
        optimizers.trainer(learning_rate=-1)


def test_a_target_network_moves_by_its_rate():
    """After n steps towards a fixed network (1 - rate)^n of the difference is left."""
    target, online = {"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 4.0])}
    for _ in range(3):
        target = optimizers.polyak(target, online, 0.5)
    np.testing.assert_allclose(target["w"], [0.125, 3.5])
