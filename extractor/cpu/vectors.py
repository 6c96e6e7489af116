"""Inner loops written in LLVM IR, because Numba's own loops do not keep their numbers in vector registers.

All but ``fetch_add`` operate on flat float32 arrays and indices into them, and return nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, codegen, config
from numpy.typing import NDArray

from store.kernels import intrinsic


def _is_wide() -> bool:
    """Return whether the processor that Numba compiles for, which users may configure, has 512-bit vector registers."""
    features = codegen.get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
    return "+avx512f" in features.split(",")


LANES = 16 if _is_wide() else 8  # floats in a vector register
NARROW = 8  # floats in the shortest vector; numbers of channels are multiples of it
ROWS = 8 if _is_wide() else 4  # rows that ``multiply`` computes together, so that eight vector sums are in flight
FEW_ROWS = 4  # rows that ``multiply_onto`` computes together: the width of a tile in pixels
COLUMNS = 16  # columns that both compute together

_FAST = ("contract", "reassoc", "nsz", "arcp")  # without the flags that assume finite numbers

Signature = Any
Write = Callable[["_Code", Sequence[Any]], None]


class _Code:
    """Writes the code of one function; arrays are named by their positions among its arguments.

    Attributes:
        builder: LLVM's IR builder.
        lanes: floats in each vector.
    """

    def __init__(self, builder: Any, data: Sequence[Any], lanes: int = LANES) -> None:
        self.builder, self.lanes = builder, lanes
        self._data = data
        self._vector, self._integers = ir.VectorType(ir.FloatType(), lanes), ir.VectorType(ir.IntType(32), lanes)

    def at(self, start: Any, *steps: tuple[Any, Any]) -> Any:
        """The index start + the sum of the products in ``steps``; factors are LLVM values or Python integers."""
        for one, other in steps:
            start = self.builder.add(start, self.builder.mul(_index(one), _index(other)))
        return start

    def load(self, array: int, index: Any) -> Any:
        return self.builder.load(self._place(array, index), align=4)

    def store(self, number: Any, array: int, index: Any) -> None:
        self.builder.store(number, self._place(array, index), align=4)

    def spread(self, array: int, index: Any) -> Any:
        """Load one number into all lanes."""
        number = self.builder.load(self.builder.gep(self._data[array], [index]))
        nothing = ir.Constant(self._vector, ir.Undefined)
        first = self.builder.insert_element(nothing, number, ir.Constant(ir.IntType(32), 0))
        return self.builder.shuffle_vector(first, nothing, ir.Constant(self._integers, [0] * self.lanes))

    def constant(self, number: float) -> Any:
        """A constant in all lanes."""
        return ir.Constant(self._vector, [number] * self.lanes)

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
                term = number if factor == 1 else self.product(number, self.constant(factor))
                total = term if total is None else self.sum(total, term)
        return total

    def power(self, z: Any) -> Any:
        """exp(-z) = 2^whole 2^f, -1/2 <= f <= 1/2: the polynomial interpolates 2^f in Chebyshev's points."""
        builder, constant = self.builder, self.constant
        y = self.product(z, constant(-1.4426950408889634))
        for limit, too_far in ((126.0, ">"), (-126.0, "<")):
            y = builder.select(builder.fcmp_ordered(too_far, y, constant(limit)), constant(limit), y)
        rounding = constant(1.5 * 2.0**23)  # adding it leaves the nearest integer in the lowest bits
        shifted = builder.fadd(y, rounding)
        f = builder.fsub(y, builder.fsub(shifted, rounding))
        p = constant(_POWER_OF_TWO[-1])
        for coefficient in _POWER_OF_TWO[-2::-1]:
            p = self.sum(self.product(p, f), constant(coefficient))
        exponent = ir.Constant(self._integers, [23] * self.lanes)
        whole = builder.shl(builder.bitcast(shifted, self._integers), exponent)
        return builder.bitcast(builder.add(builder.bitcast(p, self._integers), whole), self._vector)

    def variable(self, value: Any) -> Any:
        """A stack slot for a value that a loop changes; LLVM keeps it in a register."""
        return cgutils.alloca_once_value(self.builder, value)

    def add_to(self, variable: Any, value: Any) -> None:
        self.builder.store(self.sum(self.builder.load(variable), value), variable)

    @contextmanager
    def loop(self, count: Any) -> Iterator[Any]:
        with cgutils.for_range(self.builder, count) as loop:
            yield loop.index

    def along(self, count: Any, write: Callable[[_Code, Any], None]) -> None:
        """Write a loop over vectors from 0 to ``count``, a multiple of NARROW; the last vector may be narrow."""
        lanes = _index(self.lanes)
        whole = self.builder.udiv(count, lanes)
        with self.loop(whole) as i:
            write(self, self.builder.mul(i, lanes))
        if self.lanes > NARROW:
            done = self.builder.mul(whole, lanes)
            with self.builder.if_then(self.builder.icmp_unsigned("<", done, count)):
                write(_Code(self.builder, self._data, NARROW), done)

    def _place(self, array: int, index: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(self._data[array], [index]), self._vector.as_pointer())


def _index(number: Any) -> Any:
    return ir.Constant(ir.IntType(64), number) if isinstance(number, int) else number


def _power_of_two() -> list[float]:
    found = np.polynomial.Chebyshev.interpolate(lambda f: 2.0**f, 5, domain=(-0.5, 0.5))
    return [float(c) for c in found.convert(kind=np.polynomial.Polynomial).coef]


_POWER_OF_TWO = _power_of_two()


def _void(write: Write, *kinds: Any) -> tuple[Signature, Callable[..., Any]]:
    """The signature and the code generator of an intrinsic that returns nothing, as Numba expects them."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = [
            context.make_array(kind)(context, builder, argument).data if isinstance(kind, types.Array) else None
            for kind, argument in zip(signature.args, arguments, strict=True)
        ]
        write(_Code(builder, data), arguments)
        return context.get_dummy_value()

    return types.void(*(kind if isinstance(kind, types.Array) else types.intp for kind in kinds)), generate


def _multiply(rows: int, *, onto: bool) -> Write:
    def write(code: _Code, arguments: Sequence[Any]) -> None:
        _, at_v, _, at_u, _, at_m, depth, width = arguments
        vectors = range(COLUMNS // LANES)

        def place(r: int, vector: int) -> Any:
            return code.at(at_m, (width, r), (LANES, vector))

        sums = [
            [code.variable(code.load(4, place(r, of)) if onto else code.constant(0.0)) for of in vectors]
            for r in range(rows)
        ]
        with code.loop(depth) as i:
            columns = [code.load(2, code.at(at_u, (i, COLUMNS), (LANES, vector))) for vector in vectors]
            for r in range(rows):
                number = code.spread(0, code.at(at_v, (depth, r), (i, 1)))
                for vector in vectors:
                    code.add_to(sums[r][vector], code.product(number, columns[vector]))
        for r in range(rows):
            for vector in vectors:
                code.store(code.builder.load(sums[r][vector]), 4, place(r, vector))

    return write


@intrinsic
def multiply(_typing: Any, v: Any, at_v: Any, u: Any, at_u: Any, m: Any, at_m: Any, depth: Any, width: Any) -> Any:
    """m[at_m + r width + j] = sum_i v[at_v + r depth + i] u[at_u + 16 i + j] for r < ROWS and j < COLUMNS."""
    return _void(_multiply(ROWS, onto=False), v, at_v, u, at_u, m, at_m, depth, width)


@intrinsic
def multiply_onto(_typing: Any, v: Any, at_v: Any, u: Any, at_u: Any, m: Any, at_m: Any, depth: Any, width: Any) -> Any:
    """The same as ``multiply`` for r < FEW_ROWS, with += instead of =."""
    return _void(_multiply(FEW_ROWS, onto=True), v, at_v, u, at_u, m, at_m, depth, width)


@intrinsic
def activate(
    _typing: Any,
    x: Any,
    at: Any,
    channels: Any,
    count: Any,
    scale: Any,
    shift: Any,
    at_channel: Any,
    y: Any,
    at_y: Any,
    step_y: Any,
) -> Any:
    """y = SiLU(scale x + shift), to a relative error of 3e-7, for all ``channels`` of ``count`` pixels."""

    def write(code: _Code, arguments: Sequence[Any]) -> None:
        _, at, channels, count, _, _, at_channel, _, at_y, step_y = arguments

        def write_channels(code: _Code, e: Any) -> None:
            of_channel, moved = (code.load(array, code.at(at_channel, (e, 1))) for array in (4, 5))
            with code.loop(count) as i:
                x = code.load(0, code.at(at, (i, channels), (e, 1)))
                z = code.sum(code.product(x, of_channel), moved)
                silu = code.builder.fdiv(z, code.sum(code.constant(1.0), code.power(z)), flags=_FAST)
                code.store(silu, 7, code.at(at_y, (i, step_y), (e, 1)))

        code.along(channels, write_channels)

    return _void(write, x, at, channels, count, scale, shift, at_channel, y, at_y, step_y)


@intrinsic
def add_bias_and_sum(
    _typing: Any, y: Any, at: Any, channels: Any, count: Any, bias: Any, at_bias: Any, reference: Any, sums: Any
) -> Any:
    """y += bias for all ``channels`` of ``count`` pixels; sums (2 channels) of y - reference, then of its squares."""

    def write(code: _Code, arguments: Sequence[Any]) -> None:
        _, at, channels, count, _, at_bias, _, _ = arguments

        def write_channels(code: _Code, e: Any) -> None:
            first, second = (code.variable(code.constant(0.0)) for _ in range(2))
            bias, reference = code.load(4, code.at(at_bias, (e, 1))), code.load(6, e)
            with code.loop(count) as i:
                place = code.at(at, (i, channels), (e, 1))
                number = code.sum(code.load(0, place), bias)
                code.store(number, 0, place)
                away = code.difference(number, reference)
                code.add_to(first, away)
                code.add_to(second, code.product(away, away))
            for i, total in enumerate((first, second)):
                code.store(code.builder.load(total), 7, code.at(e, (i, channels)))

        code.along(channels, write_channels)

    return _void(write, y, at, channels, count, bias, at_bias, reference, sums)


@intrinsic
def fetch_add(_typing: Any, counter: Any) -> Any:
    """Return the number in an int64 array of one element and increment it atomically: each number is taken once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), generate


def combination(matrix: NDArray[np.float64]) -> Any:
    """A function for Numba that applies a small matrix to rows of ``count`` floats each:

    to[at_to + i step_to + e] = sum_j matrix[i, j] from[at_from + j step_from + e] for e < count, with flat arrays.

    Adjacent rows, or columns, of the matrix that differ in signs alone share their sums and differences.
    """

    def write(code: _Code, arguments: Sequence[Any]) -> None:
        _, at, step, _, at_to, step_to, count = arguments

        def write_vector(code: _Code, e: Any) -> None:
            numbers = [code.load(0, code.at(at, (step, j), (e, 1))) for j in range(matrix.shape[1])]
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
                code.store(result, 3, code.at(at_to, (step_to, i), (e, 1)))

        code.along(count, write_vector)

    @intrinsic
    def combine(
        _typing: Any, source: Any, at: Any, step: Any, target: Any, at_to: Any, step_to: Any, count: Any
    ) -> Any:
        return _void(write, source, at, step, target, at_to, step_to, count)

    return combine


def _twins(rows: NDArray[np.float64]) -> list[int]:
    """Indices of the rows that differ from the next row in signs, and in signs alone."""
    alike = [np.array_equal(np.abs(one), np.abs(next_)) for one, next_ in pairwise(rows)]
    return [i for i, found in enumerate(alike) if found and np.any(rows[i] != rows[i + 1])]


def _halves(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return (one + other) / 2, (one - other) / 2
