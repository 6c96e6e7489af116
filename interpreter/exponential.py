"""The exponential function for use inside Numba kernels, in operations that vectorise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from store.kernels import inlined, intrinsic

LOG2_E = 1.4426950408889634


@intrinsic
def _bits_to_float(_context: Any, bits: Any) -> Any:
    """Reinterpret an int32 as a float32."""
    if bits != types.int32:
        return None

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


@inlined(fastmath=True)
def exp2(x: Any) -> Any:
    """2^x for x <= 0 to about 2e-7 relative, in operations that vectorise."""
    x = max(np.float32(x), np.float32(-126))
    k = np.rint(x)
    r = x - k  # within -1/2 .. 1/2, where the Chebyshev interpolant of degree 5 is exact to 1.1e-7
    p = np.float32(1.339086336353527e-3)
    p = p * r + np.float32(9.676031918255982e-3)
    p = p * r + np.float32(5.550357114222094e-2)
    p = p * r + np.float32(2.402210748530968e-1)
    p = p * r + np.float32(6.931471880262273e-1)
    p = p * r + np.float32(1.0000000754548972)
    return p * _bits_to_float(np.int32((np.int32(k) + np.int32(127)) << np.int32(23)))
