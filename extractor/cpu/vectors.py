"""Small pieces that Numba's own loops are too slow for, in LLVM's terms: their numbers stay in vector registers.

All take flat float32 arrays and indices into them.
"""

from __future__ import annotations

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


@intrinsic  # type: ignore[untyped-decorator]
def multiply(_typing: Any, v: Any, _at_v: Any, u: Any, _at_u: Any, m: Any, _at_m: Any, _depth: Any, _width: Any) -> Any:
    """m[at_m + r width + j] = sum_i v[at_v + r depth + i] u[at_u + 16 i + j] for ROWS r and COLUMNS j.

    Written in LLVM's own terms, because the sums have to stay in vector registers: flat arrays, and
    ``depth`` the number of channels in.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def data(i: int) -> Any:
            return context.make_array(signature.args[i])(context, builder, arguments[i]).data

        v_data, u_data, m_data = data(0), data(2), data(4)
        _, at_v, _, at_u, _, at_m, depth, width = arguments
        vector = ir.VectorType(ir.FloatType(), LANES)
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        fast = ("fast",)
        sums = [
            [cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * LANES)) for _ in range(2)]
            for _ in range(ROWS)
        ]

        def place(base: Any, index: Any) -> Any:
            return builder.bitcast(builder.gep(base, [index]), vector.as_pointer())

        with cgutils.for_range(builder, depth) as loop:
            at = builder.add(at_u, builder.mul(loop.index, ir.Constant(loop.index.type, COLUMNS)))
            columns = [
                builder.load(place(u_data, builder.add(at, ir.Constant(at.type, LANES * half))), align=4)
                for half in range(2)
            ]
            for r in range(ROWS):
                row = builder.add(at_v, builder.mul(depth, ir.Constant(depth.type, r)))
                number = builder.load(builder.gep(v_data, [builder.add(row, loop.index)]))
                first = builder.insert_element(
                    ir.Constant(vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0)
                )
                spread = builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), lanes)
                for half in range(2):
                    product = builder.fmul(spread, columns[half], flags=fast)
                    builder.store(builder.fadd(builder.load(sums[r][half]), product, flags=fast), sums[r][half])
        for r in range(ROWS):
            row = builder.add(at_m, builder.mul(width, ir.Constant(width.type, r)))
            for half in range(2):
                to = place(m_data, builder.add(row, ir.Constant(row.type, LANES * half)))
                builder.store(builder.load(sums[r][half]), to, align=4)
        return context.get_dummy_value()

    return types.void(v, types.intp, u, types.intp, m, types.intp, types.intp, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def bits_to_float(_typing: Any, bits: Any) -> Any:
    """An int32 read as the float32 with the same bits."""
    if bits != types.int32:
        return None

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


def combination(matrix: NDArray[np.float64]) -> Any:
    """A function for Numba that applies a small matrix to vectors of LANES floats each:

    to[at_to + i step_to] = sum_j matrix[i, j] from[at_from + j step_from], of flat arrays.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def combine(_typing: Any, source: Any, _at: Any, _step: Any, target: Any, _at_to: Any, _step_to: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _, at, step, _, at_to, step_to = arguments
            vector = ir.VectorType(ir.FloatType(), LANES)

            def place(i: int, start: Any, step: Any, j: int) -> Any:
                data = context.make_array(signature.args[i])(context, builder, arguments[i]).data
                index = builder.add(start, builder.mul(step, ir.Constant(step.type, j)))
                return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())

            numbers = [builder.load(place(0, at, step, j), align=4) for j in range(matrix.shape[1])]
            for i, row in enumerate(matrix):
                total = None
                for number, factor in zip(numbers, row, strict=True):
                    if factor == 0:
                        continue
                    term = builder.fmul(number, ir.Constant(vector, [factor] * LANES), flags=("fast",))
                    total = term if total is None else builder.fadd(total, term, flags=("fast",))
                builder.store(total, place(3, at_to, step_to, i), align=4)
            return context.get_dummy_value()

        return types.void(source, types.intp, types.intp, target, types.intp, types.intp), generate

    return combine
