"""Small pieces that Numba's own loops are too slow for, in LLVM's terms: their numbers stay in vector registers.

All but ``take`` want flat float32 arrays and indices into them, and return nothing. Whoever changes this file
has to touch ``convolution.py``, too: Numba's cache only looks at the file that a kernel stands in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

LANES = 8  # floats in a vector register
ROWS = 4  # rows that one product takes together
COLUMNS = 2 * LANES  # columns that it takes together

_VECTOR, _INTEGERS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.IntType(32), LANES)
_FAST = ("contract", "reassoc", "nsz", "arcp")  # but not what takes all numbers to be finite

Signature = Any
Write = Callable[["_Code", Sequence[Any]], None]


class _Code:
    """The code of a function that is being written; arrays are named by their places among its arguments."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> None:
        self.builder = builder
        self._data = [
            context.make_array(kind)(context, builder, argument).data if isinstance(kind, types.Array) else None
            for kind, argument in zip(signature.args, arguments, strict=True)
        ]

    def at(self, start: Any, *steps: tuple[Any, Any]) -> Any:
        """start + the products of all steps; of indices and Python's integers."""
        for one, other in steps:
            start = self.builder.add(start, self.builder.mul(self._index(one), self._index(other)))
        return start

    def load(self, array: int, index: Any) -> Any:
        return self.builder.load(self._place(array, index), align=4)

    def store(self, number: Any, array: int, index: Any) -> None:
        self.builder.store(number, self._place(array, index), align=4)

    def spread(self, array: int, index: Any) -> Any:
        """One number in all lanes."""
        number = self.builder.load(self.builder.gep(self._data[array], [index]))
        nothing = ir.Constant(_VECTOR, ir.Undefined)
        first = self.builder.insert_element(nothing, number, ir.Constant(ir.IntType(32), 0))
        return self.builder.shuffle_vector(first, nothing, ir.Constant(_INTEGERS, [0] * LANES))

    def sum(self, one: Any, other: Any) -> Any:
        return self.builder.fadd(one, other, flags=_FAST)

    def difference(self, one: Any, other: Any) -> Any:
        return self.builder.fsub(one, other, flags=_FAST)

    def product(self, one: Any, other: Any) -> Any:
        return self.builder.fmul(one, other, flags=_FAST)

    def weighted(self, numbers: Sequence[Any], factors: NDArray[np.float64]) -> Any:
        """sum_i factors[i] numbers[i]; not all factors are zero."""
        total = None
        for number, factor in zip(numbers, factors, strict=True):
            if factor:
                term = number if factor == 1 else self.product(number, _constant(factor))
                total = term if total is None else self.sum(total, term)
        return total

    def variable(self, value: Any) -> Any:
        """A place for a value that a loop changes; LLVM keeps it in a register."""
        return cgutils.alloca_once_value(self.builder, value)

    def add_to(self, variable: Any, value: Any) -> None:
        self.builder.store(self.sum(self.builder.load(variable), value), variable)

    @contextmanager
    def loop(self, count: Any) -> Iterator[Any]:
        with cgutils.for_range(self.builder, count) as loop:
            yield loop.index

    def _place(self, array: int, index: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(self._data[array], [index]), _VECTOR.as_pointer())

    @staticmethod
    def _index(number: Any) -> Any:
        return ir.Constant(ir.IntType(64), number) if isinstance(number, int) else number


def _constant(number: float) -> Any:
    return ir.Constant(_VECTOR, [number] * LANES)


def _void(write: Write, *kinds: Any) -> tuple[Signature, Callable[..., Any]]:
    """What Numba wants of an intrinsic that returns nothing: its signature, and who writes its code."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        write(_Code(context, builder, signature, arguments), arguments)
        return context.get_dummy_value()

    return types.void(*(kind if isinstance(kind, types.Array) else types.intp for kind in kinds)), generate


def _multiply(onto: bool) -> Write:
    def write(code: _Code, arguments: Sequence[Any]) -> None:
        _, at_v, _, at_u, _, at_m, depth, width = arguments
        halves = range(2)

        def place(r: int, half: int) -> Any:
            return code.at(at_m, (width, r), (LANES, half))

        sums = [
            [code.variable(code.load(4, place(r, h)) if onto else _constant(0.0)) for h in halves] for r in range(ROWS)
        ]
        with code.loop(depth) as i:
            columns = [code.load(2, code.at(at_u, (i, COLUMNS), (LANES, half))) for half in halves]
            for r in range(ROWS):
                number = code.spread(0, code.at(at_v, (depth, r), (i, 1)))
                for half in halves:
                    code.add_to(sums[r][half], code.product(number, columns[half]))
        for r in range(ROWS):
            for half in halves:
                code.store(code.builder.load(sums[r][half]), 4, place(r, half))

    return write


@intrinsic  # type: ignore[untyped-decorator]
def multiply(_typing: Any, v: Any, at_v: Any, u: Any, at_u: Any, m: Any, at_m: Any, depth: Any, width: Any) -> Any:
    """m[at_m + r width + j] = sum_i v[at_v + r depth + i] u[at_u + 16 i + j] for ROWS r and COLUMNS j."""
    return _void(_multiply(onto=False), v, at_v, u, at_u, m, at_m, depth, width)


@intrinsic  # type: ignore[untyped-decorator]
def multiply_onto(_typing: Any, v: Any, at_v: Any, u: Any, at_u: Any, m: Any, at_m: Any, depth: Any, width: Any) -> Any:
    """The same with += instead of =."""
    return _void(_multiply(onto=True), v, at_v, u, at_u, m, at_m, depth, width)


@intrinsic  # type: ignore[untyped-decorator]
def activate(
    _typing: Any,
    x: Any,
    at: Any,
    step: Any,
    count: Any,
    scale: Any,
    shift: Any,
    at_channel: Any,
    y: Any,
    at_y: Any,
    step_y: Any,
) -> Any:
    """y = SiLU(scale x + shift), to 3e-7 relative, of LANES channels of ``count`` pixels."""

    def write(code: _Code, arguments: Sequence[Any]) -> None:
        _, at, step, count, _, _, at_channel, _, at_y, step_y = arguments
        of_channel, moved = code.load(4, at_channel), code.load(5, at_channel)
        with code.loop(count) as i:
            z = code.sum(code.product(code.load(0, code.at(at, (i, step))), of_channel), moved)
            silu = code.builder.fdiv(z, code.sum(_constant(1.0), _power(code.builder, code, z)), flags=_FAST)
            code.store(silu, 7, code.at(at_y, (i, step_y)))

    return _void(write, x, at, step, count, scale, shift, at_channel, y, at_y, step_y)


def _power(builder: Any, code: _Code, z: Any) -> Any:
    """exp(-z) = 2^whole 2^f, -1/2 <= f <= 1/2: the polynomial interpolates 2^f in Chebyshev's points."""
    y = code.product(z, _constant(-1.4426950408889634))
    for limit, too_far in ((126.0, ">"), (-126.0, "<")):
        y = builder.select(builder.fcmp_ordered(too_far, y, _constant(limit)), _constant(limit), y)
    rounding = _constant(1.5 * 2.0**23)  # added, it leaves the nearest integer in the last bits
    shifted = builder.fadd(y, rounding)
    f = builder.fsub(y, builder.fsub(shifted, rounding))
    p = _constant(_POWER_OF_TWO[-1])
    for coefficient in _POWER_OF_TWO[-2::-1]:
        p = code.sum(code.product(p, f), _constant(coefficient))
    whole = builder.shl(builder.bitcast(shifted, _INTEGERS), ir.Constant(_INTEGERS, [23] * LANES))
    return builder.bitcast(builder.add(builder.bitcast(p, _INTEGERS), whole), _VECTOR)


def _power_of_two() -> list[float]:
    found = np.polynomial.Chebyshev.interpolate(lambda f: 2.0**f, 5, domain=(-0.5, 0.5))
    return [float(c) for c in found.convert(kind=np.polynomial.Polynomial).coef]


_POWER_OF_TWO = _power_of_two()


@intrinsic  # type: ignore[untyped-decorator]
def settle(
    _typing: Any,
    y: Any,
    at: Any,
    step: Any,
    count: Any,
    bias: Any,
    at_bias: Any,
    reference: Any,
    at_reference: Any,
    sums: Any,
) -> Any:
    """y += bias, of LANES channels of ``count`` pixels; sums (2 LANES) of y - reference and of its squares."""

    def write(code: _Code, arguments: Sequence[Any]) -> None:
        _, at, step, count, _, at_bias, _, at_reference, _ = arguments
        first, second = (code.variable(_constant(0.0)) for _ in range(2))
        with code.loop(count) as i:
            place = code.at(at, (i, step))
            number = code.sum(code.load(0, place), code.load(4, at_bias))
            code.store(number, 0, place)
            away = code.difference(number, code.load(6, at_reference))
            code.add_to(first, away)
            code.add_to(second, code.product(away, away))
        for i, total in enumerate((first, second)):
            code.store(code.builder.load(total), 8, ir.Constant(ir.IntType(64), LANES * i))

    return _void(write, y, at, step, count, bias, at_bias, reference, at_reference, sums)


@intrinsic  # type: ignore[untyped-decorator]
def take(_typing: Any, counter: Any) -> Any:
    """The number in an int64 array of one element, which is one more afterwards: each number is taken once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), generate


def combination(matrix: NDArray[np.float64]) -> Any:
    """A function for Numba that applies a small matrix to vectors of LANES floats each:

    to[at_to + i step_to] = sum_j matrix[i, j] from[at_from + j step_from], of flat arrays.

    Neighbouring rows, and columns, that differ in signs alone share their sums and differences.
    """

    def write(code: _Code, arguments: Sequence[Any]) -> None:
        _, at, step, _, at_to, step_to = arguments
        numbers = [code.load(0, code.at(at, (step, j))) for j in range(matrix.shape[1])]
        factors = matrix.copy()
        for j in _twins(matrix.T):
            one, other = numbers[j : j + 2]
            numbers[j : j + 2] = code.sum(one, other), code.difference(one, other)
            factors[:, j], factors[:, j + 1] = _halves(matrix[:, j], matrix[:, j + 1])
        results = [code.weighted(numbers, row) for row in factors]
        for i in _twins(factors):
            same, rest = (code.weighted(numbers, row) for row in _halves(factors[i], factors[i + 1]))
            results[i : i + 2] = code.sum(same, rest), code.difference(same, rest)
        for i, result in enumerate(results):
            code.store(result, 3, code.at(at_to, (step_to, i)))

    @intrinsic  # type: ignore[untyped-decorator]
    def combine(_typing: Any, source: Any, at: Any, step: Any, target: Any, at_to: Any, step_to: Any) -> Any:
        return _void(write, source, at, step, target, at_to, step_to)

    return combine


def _twins(rows: NDArray[np.float64]) -> list[int]:
    """Where a row and the next differ in signs, and in signs alone."""
    alike = [np.array_equal(np.abs(one), np.abs(next_)) for one, next_ in pairwise(rows)]
    return [i for i, found in enumerate(alike) if found and np.any(rows[i] != rows[i + 1])]


def _halves(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return (one + other) / 2, (one - other) / 2
