"""Floors: the least time that a computation could take, given the work it must do.

`products` reads the matrix products of a function from its jaxpr, with shapes and axes,
so it assumes nothing about the network. `flops` adds up their operations, including
those in loops. `Replay` runs only these products, to measure the rate that the device
can reach. XLA's count (`cost_flops`) is a check. Where memory is the limit, as in
optimizers, `Stream` measures how fast arrays of that size can be read and written.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr

from benchmarks import timing
from dppo_jax.errors import SettingsError
from dppo_jax.types import Array, PyTree

# Seconds that one timed call should take: so long that starting a program and waking
# threads takes a negligible part.
CALL_SECONDS = 0.2

Pool = dict[str, Array]


class Product(NamedTuple):
    """One `dot_general`.

    lhs, rhs: shapes with data types.
    operands: identifiers of both operands in the jaxpr; equal ones are the same array.
    given: whether each operand is an argument of the function, as weights are, or a
        result, as activations are.
    params: dimension numbers, precision and data type of the result, as JAX binds them.
    """

    lhs: jax.ShapeDtypeStruct
    rhs: jax.ShapeDtypeStruct
    operands: tuple[int, int]
    given: tuple[bool, bool]
    params: dict[str, Any]

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        (_, contracted), (_, batched) = self.params["dimension_numbers"]
        free = [
            size
            for axis, size in enumerate(self.rhs.shape)
            if axis not in (*contracted, *batched)
        ]
        return 2 * math.prod(self.lhs.shape) * math.prod(free)


def products(
    function: Callable[..., Any], *args: Any, unknown: int | None = None
) -> list[tuple[Product, int]]:
    """The matrix products of `function(*args)`, each with the number of times it runs.

    The body of a loop of known length counts once per iteration. Of several branches
    only the one with the most operations counts. A product whose result nothing uses
    does not count, because the compiler removes it.

    Args:
        unknown: how often loops run whose length depends on data.

    Raises:
        SettingsError: products inside such a loop, and `unknown` is None.
    """
    jaxpr, _ = dce_jaxpr(jax.make_jaxpr(function)(*args).jaxpr, used_outputs=True)
    return _products(jaxpr, unknown)


def flops(function: Callable[..., Any], *args: Any) -> int:
    """Multiplications and additions of all matrix products of `function(*args)`."""
    return _total(products(function, *args))


def alone_seconds(
    found: Sequence[tuple[Product, int]], *, share: float = 0.99
) -> float:
    """Seconds that products take if each runs by itself, at its fastest.

    Args:
        found: as `products` returns them.
        share: of the operations that is measured, the largest products first. The rest
            counts with the mean rate of these.
    """
    counts: dict[str, int] = {}
    firsts: dict[str, Product] = {}
    for product, count in found:
        name = f"{product.lhs} {product.rhs} {product.params}"
        firsts.setdefault(name, product)
        counts[name] = counts.get(name, 0) + count
    work = {name: firsts[name].flops * count for name, count in counts.items()}
    total, seconds, measured = sum(work.values()), 0.0, 0
    for name in sorted(work, key=work.__getitem__, reverse=True):
        if measured >= share * total:
            break
        seconds += counts[name] * _product_seconds(firsts[name])
        measured += work[name]
    return seconds * total / measured if measured else 0.0


def _product_seconds(product: Product) -> float:
    def run(lhs: Array, rhs: Array) -> Array:
        return jax.lax.dot_general_p.bind(lhs, rhs, **product.params)

    operands = (jnp.zeros(x.shape, x.dtype) for x in (product.lhs, product.rhs))
    replay = Replay(run, *operands)
    calls = replay.calls()
    timings = timing.measure_together(list(calls.values()), repeats=3, max_seconds=1.0)
    return product.flops / max(replay.rates(dict(zip(calls, timings))).values())


def cost_flops(function: Callable[..., Any], *args: Any) -> float | None:
    """XLA's count of operations for `function(*args)`; None if XLA gives none.

    It includes elementwise arithmetic. The body of a loop counts only once, as in
    `Replay.flops_without_loops`.
    """
    cost: Any = jax.jit(function).lower(*args).compile().cost_analysis()
    if isinstance(cost, Sequence):
        cost = cost[0] if cost else None
    return float(cost["flops"]) if cost and "flops" in cost else None


class Replay:
    """Programs that run the products of `function(*args)` and nothing else.

    If all run a multiple of n times, in loops, the programs run an n-th of them.

    Which arrangement of them is fastest depends on device and size, so there are three,
    and the fastest gives the floor:

    - `apart`: operands as in the function; no product waits for another;
    - `in turn`: every product waits for the previous one, like the layers of a network.
      Weights are separate arrays as in the function. Activations of equal shape share
      one array, which stays in the caches as between two layers;
    - `straight`: `apart` without a loop, one call for one evaluation.
    """

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.products = products(function, *args)
        if not self.products:
            raise SettingsError("the function has no matrix product to set a floor.")
        common = math.gcd(*(count for _, count in self.products))
        self.products = [(p, count // common) for p, count in self.products]
        self.flops = _total(self.products)
        self.flops_without_loops = sum(p.flops for p, _ in self.products)
        self._repeated = [p for p, count in self.products for _ in range(count)]
        self.count = 1
        seconds = timing.measure(
            jax.jit(self._outs), self._operands(shared=False), max_seconds=1.0
        ).fastest
        self.count = max(1, math.ceil(CALL_SECONDS / seconds))

    def calls(self) -> dict[str, timing.Call]:
        """The calls to time, by arrangement; see `evaluations`."""

        def loop(once: Callable[[Pool], Pool], *, shared: bool) -> timing.Call:
            # Each loop needs its own arrays, because it donates them.
            carry = self._operands(shared=shared), jnp.asarray(self.count)
            return timing.Call(_loop(once), (carry,), carry=True)

        straight = jax.jit(self._outs), (self._operands(shared=False),)
        return {
            "apart": loop(self._apart, shared=False),
            "in turn": loop(self._in_turn, shared=True),
            "straight": timing.Call(*straight),
        }

    def evaluations(self, arrangement: str) -> int:
        """How often one call of an arrangement runs all products."""
        return 1 if arrangement == "straight" else self.count

    def rates(self, timings: dict[str, timing.Timing]) -> dict[str, float]:
        """Operations per second by arrangement, from the medians."""
        return {
            name: self.evaluations(name) * self.flops / timed.median
            for name, timed in timings.items()
        }

    def _operands(self, *, shared: bool) -> Pool:
        pool: Pool = {}
        for product in self._repeated:
            for side in (0, 1):
                name = _name(product, side, shared=shared)
                struct = (product.lhs, product.rhs)[side]
                if name not in pool:
                    # This scale keeps repeated products within the range of floats.
                    key = jax.random.key(len(pool))
                    scale = max(struct.shape) ** -0.5
                    draws = scale * jax.random.normal(key, struct.shape)
                    pool[name] = draws.astype(struct.dtype)
        return pool

    def _run(self, product: Product, pool: Pool, *, shared: bool) -> Array:
        lhs, rhs = (pool[_name(product, side, shared=shared)] for side in (0, 1))
        return jax.lax.dot_general_p.bind(lhs, rhs, **product.params)

    def _outs(self, pool: Pool) -> list[Array]:
        return [self._run(product, pool, shared=False) for product in self._repeated]

    # One number of every result is written into an operand, so that the compiler cannot
    # skip a product, move it out of the loop or merge two. The barriers keep it from
    # computing only that number.

    def _apart(self, pool: Pool) -> Pool:
        outs, pool = jax.lax.optimization_barrier((self._outs(pool), pool))
        first = jnp.stack([_first(out).astype(jnp.float32) for out in outs]).sum()
        touched = {_name(product, 0, shared=False) for product in self._repeated}
        return {k: _set_first(x, first) if k in touched else x for k, x in pool.items()}

    def _in_turn(self, pool: Pool) -> Pool:
        for product in self._repeated:
            out = self._run(product, pool, shared=True)
            out, pool = jax.lax.optimization_barrier((out, pool))
            name = _name(product, 0, shared=True)
            pool = pool | {name: _set_first(pool[name], _first(out))}
        return pool


class Stream:
    """A program that moves the bytes of an AdamW step, with hardly any arithmetic.

    For each array in `tree` it reads four arrays and writes three.
    """

    def __init__(self, tree: PyTree) -> None:
        leaves = jax.tree.leaves(tree)
        self.num_bytes = 7 * sum(x.nbytes for x in leaves)
        self._arrays = [[jnp.zeros(x.shape, x.dtype)] * 4 for x in leaves]
        self.count = 1
        (timed,) = timing.measure_together([self.call()], repeats=3, max_seconds=1.0)
        seconds = timed.fastest
        self.count = max(1, math.ceil(CALL_SECONDS / seconds))

    def call(self) -> timing.Call:
        """The call to time; it moves `count * num_bytes` bytes."""

        def once(arrays: list[list[Array]]) -> list[list[Array]]:
            return [[p + g, m + g, v + g, g] for p, m, v, g in arrays]

        arrays = jax.tree.map(jnp.copy, self._arrays)
        return timing.Call(_loop(once), ((arrays, jnp.asarray(self.count)),), True)

    def rate(self, timed: timing.Timing) -> float:
        """Bytes per second."""
        return self.count * self.num_bytes / timed.median


def matmul_rate(rows: int, width: int, dtype: Any = jnp.float32) -> float:
    """Floating-point operations per second of [rows, width] @ [width, width]."""
    x, weight = jnp.zeros((rows, width), dtype), jnp.zeros((width, width), dtype)
    replay = Replay(jnp.matmul, x, weight)
    calls = replay.calls()
    timings = timing.measure_together(list(calls.values()), max_seconds=5.0)
    return max(replay.rates(dict(zip(calls, timings))).values())


def _loop(once: Callable[[Any], Any]) -> Callable[..., Any]:
    """(state, count) -> (state after `count` calls of `once`, count); donates both."""

    def run(carry: tuple[Any, Array]) -> tuple[Any, Array]:
        state, count = carry
        return jax.lax.fori_loop(0, count, lambda _, x: once(x), state), count

    return jax.jit(run, donate_argnums=0)


def _name(product: Product, side: int, *, shared: bool) -> str:
    struct = (product.lhs, product.rhs)[side]
    if shared and not product.given[side]:
        return str(struct)
    return f"{product.operands[side]} {struct}"


def _first(x: Array) -> Array:
    return x[(0,) * x.ndim]


def _set_first(x: Array, value: Array) -> Array:
    return x.at[(0,) * x.ndim].set(value.astype(x.dtype))


def _total(found: Iterable[tuple[Product, int]]) -> int:
    return sum(product.flops * count for product, count in found)


def _products(jaxpr: Any, unknown: int | None = None) -> list[tuple[Product, int]]:
    found: list[tuple[Product, int]] = []
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            lhs, rhs = (
                jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype)
                for x in equation.invars
            )
            left, right = equation.invars
            operands, arguments = (id(left), id(right)), [*map(id, jaxpr.invars)]
            given = operands[0] in arguments, operands[1] in arguments
            found.append((Product(lhs, rhs, operands, given, dict(params)), 1))
        elif name == "cond":
            branches = [
                _products(branch.jaxpr, unknown) for branch in params["branches"]
            ]
            found += max(branches, key=_total)
        else:
            inner = [x for p in params.values() for x in _jaxprs(p)]
            inside = [pair for x in inner for pair in _products(x, unknown)]
            if name == "while" and inside and unknown is None:
                raise SettingsError(
                    "matrix products inside a loop of unknown length cannot be "
                    "counted; give the function a loop of fixed length."
                )
            times = params["length"] if name == "scan" else 1
            if name == "while" and unknown is not None:
                times = unknown
            found += [(product, count * times) for product, count in inside]
    return found


def _jaxprs(value: Any) -> list[Any]:
    """The jaxprs among the parameters of an equation."""
    if hasattr(value, "jaxpr"):
        return [value.jaxpr]
    if hasattr(value, "eqns"):
        return [value]
    if isinstance(value, (tuple, list)):
        return [x for item in value for x in _jaxprs(item)]
    return []
