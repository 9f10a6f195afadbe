"""Rewrites a function of a random key into one of the numbers that it draws.

Formats such as ONNX have no generator like JAX's, so the draws become inputs. A traced
function (a jaxpr) is evaluated again, equation by equation, and each call that draws
standard-normal numbers is replaced by an input. Other random numbers are refused.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal

from dppo_jax.errors import SettingsError
from dppo_jax.types import Array, PyTree

# The compiled function of jax.random whose output becomes an input.
_NORMAL = "_normal"
# Equations that call another jaxpr with their own inputs, and where they hold it.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
_REFUSED = (
    "this policy draws random numbers that are not standard-normal, or draws them "
    "within a loop; these cannot become inputs of its program, so leave out --onnx."
)
# (equation, its inputs) -> the numbers that it draws.
_Draw = Callable[[Any, list[Any]], Array]


class Opened(NamedTuple):
    """A function whose random numbers are inputs.

    shapes: of the arrays of standard-normal numbers that it draws, in this order.
    run: (these arrays, other arguments) -> result, an array. Loops are unrolled.
    recorded: (key, other arguments) -> (result, numbers), as the function itself.
    """

    shapes: tuple[tuple[int, ...], ...]
    run: Callable[..., Array]
    recorded: Callable[..., tuple[Array, list[Array]]]


def open_draws(
    function: Callable[..., Array], *examples: PyTree, max_equations: int = 3_000
) -> Opened:
    """Make the random numbers of a function its inputs.

    Args:
        function: (key, ...) -> array.
        examples: of its other arguments, arrays or their shapes and types.
        max_equations: `run` keeps a loop that would become more equations as a loop.

    Raises:
        SettingsError: the function draws within a loop or a branch, or numbers of other
            distributions.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    traced = jax.make_jaxpr(function)(key, *examples)
    shapes: list[tuple[int, ...]] = []

    def find(equation: Any, inputs: list[Any]) -> Array:
        like = equation.outvars[0].aval
        shapes.append(tuple(like.shape))
        return jnp.zeros(like.shape, like.dtype)

    def run(numbers: Sequence[Array], *arguments: PyTree) -> Array:
        rest = iter(numbers)
        return _run(traced, None, arguments, lambda *_: next(rest), max_equations)

    def recorded(key: Array, *arguments: PyTree) -> tuple[Array, list[Array]]:
        numbers: list[Array] = []

        def record(equation: Any, inputs: list[Any]) -> Array:
            numbers.extend(_bind(equation, inputs))
            return numbers[-1]

        return _run(traced, key, arguments, record, 0), numbers

    jax.eval_shape(lambda *args: _run(traced, None, args, find, 0), *examples)
    return Opened(tuple(shapes), run, recorded)


def _run(
    traced: ClosedJaxpr,
    key: Array | None,
    arguments: Sequence[PyTree],
    draw: _Draw,
    max_equations: int,
) -> Array:
    inputs = [key, *jax.tree.leaves(arguments)]
    evaluator = _Evaluator(draw, max_equations, has_key=key is not None)
    return evaluator.evaluate(traced, inputs, [True])[0]


class _Evaluator(NamedTuple):
    """Evaluates jaxprs.

    has_key: False: the key and what is made of it are None.
    """

    draw: _Draw
    max_equations: int
    has_key: bool

    def evaluate(
        self, closed: ClosedJaxpr, inputs: Sequence[Any], wanted: Sequence[bool]
    ) -> list[Any]:
        """The wanted outputs, and None for the others. Nothing else is computed."""
        jaxpr = closed.jaxpr
        names = (*jaxpr.constvars, *jaxpr.invars)
        values = dict(zip(names, (*closed.consts, *inputs), strict=True))

        def read(name: Any) -> Any:
            return name.val if isinstance(name, Literal) else values[name]

        results = [name for name, is_wanted in zip(jaxpr.outvars, wanted) if is_wanted]
        for equation, needed in self._needed(jaxpr.eqns, results):
            reads_no_key = _draws(equation) and not self.has_key
            given = [None if reads_no_key else read(x) for x in equation.invars]
            values.update(zip(equation.outvars, self._outputs(equation, given, needed)))
        return [
            read(name) if is_wanted else None
            for name, is_wanted in zip(jaxpr.outvars, wanted)
        ]

    def _needed(
        self, equations: Sequence[Any], results: Sequence[Any]
    ) -> Iterator[tuple[Any, list[bool]]]:
        """The equations that results depend on, and which outputs of each."""
        used = {name for name in results if not isinstance(name, Literal)}
        kept = []
        for equation in reversed(equations):
            needed = [name in used for name in equation.outvars]
            if any(needed):
                kept.append((equation, needed))
                if self.has_key or not _draws(equation):
                    used |= {x for x in equation.invars if not isinstance(x, Literal)}
        return reversed(kept)

    def _outputs(self, equation: Any, inputs: list[Any], needed: list[bool]) -> list:
        if _draws(equation):
            return [self.draw(equation, inputs)]
        kind = equation.primitive.name
        if kind in _CALLS:
            inner = equation.params[_CALLS[kind]]
            if isinstance(inner, ClosedJaxpr):
                return self.evaluate(inner, inputs, needed)
        if any(x is None for x in inputs):
            raise SettingsError(_REFUSED)
        if kind == "scan":
            return self._loop(equation.params, inputs, needed)
        if kind == "stack":
            # Exporters of other formats know it only by its parts.
            axis = equation.params["axis"]
            return [jnp.concatenate([jnp.expand_dims(x, axis) for x in inputs], axis)]
        return _bind(equation, inputs)

    def _loop(self, params: Any, inputs: list[Any], needed: list[bool]) -> list[Any]:
        """A `lax.scan`, unrolled unless it becomes too long."""
        num_consts, num_carry = params["num_consts"], params["num_carry"]
        consts, inputs = inputs[:num_consts], inputs[num_consts:]
        carry, xs = inputs[:num_carry], inputs[num_carry:]
        body, length = params["jaxpr"], params["length"]
        keeps = needed[num_carry:]
        wanted = [*[True] * num_carry, *keeps]

        def step(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
            outputs = inside.evaluate(body, [*consts, *carry, *x], wanted)
            kept = [y for y, is_kept in zip(outputs[num_carry:], keeps) if is_kept]
            return outputs[:num_carry], kept

        inside = self._replace(draw=_refuse)
        if length * _num_equations(body) > self.max_equations:
            carry, kept = jax.lax.scan(
                step, carry, xs, length=length, reverse=params["reverse"]
            )
        else:
            order = range(length)[::-1] if params["reverse"] else range(length)
            rows = {}
            for i in order:
                carry, rows[i] = step(carry, [x[i] for x in xs])
            columns = zip(*(rows[i] for i in range(length)))
            kept = [jnp.concatenate([y[None] for y in column]) for column in columns]
        stacked = iter(kept)
        return [*carry, *(next(stacked) if is_kept else None for is_kept in keeps)]


def _draws(equation: Any) -> bool:
    is_call = equation.primitive.name in _CALLS
    return is_call and equation.params.get("name") == _NORMAL


def _refuse(equation: Any, inputs: list[Any]) -> Array:
    raise SettingsError(_REFUSED)


def _bind(equation: Any, inputs: list[Any]) -> list[Any]:
    primitive = equation.primitive
    outputs = primitive.bind(*inputs, **primitive.get_bind_params(equation.params))
    return list(outputs) if primitive.multiple_results else [outputs]


def _num_equations(closed: ClosedJaxpr) -> int:
    """Of a jaxpr and of those that it calls."""
    total = 0
    for equation in closed.jaxpr.eqns:
        inner = equation.params.get(_CALLS.get(equation.primitive.name, "jaxpr"))
        is_closed = isinstance(inner, ClosedJaxpr)
        total += _num_equations(inner) if is_closed else 1
    return total
