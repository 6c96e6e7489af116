"""Weights of convolutions, transformed for ``extractor.cpu.convolution``, and the matrices that transform them.

c  channels in     k  channels out     p  points of evaluation along an axis: 6, or 5 for doubled maps
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.polynomial import polynomial

from extractor.cpu.vectors import COLUMNS
from store.kernels import Doubles, Floats


def _matrices(points: tuple[float, ...]) -> tuple[Doubles, Doubles, Doubles]:
    """A^T (4, 6), G (6, 3) and B^T (6, 6) of F(4, 3) for five points of evaluation, and infinity for the sixth.

    By the Toom-Cook algorithm: Barabasz et al. 2020, "Error analysis and improving the accuracy of Winograd
    convolution", Algorithm 1.
    """
    a, g, b = np.zeros((4, 6)), np.zeros((6, 3)), np.zeros((6, 6))
    for j, point in enumerate(points):
        others = [other for other in points if other != point]
        a[:, j] = [point**i for i in range(4)]
        g[j] = np.array([1, point, point**2]) / np.prod([point - other for other in others])
        b[j, :5] = polynomial.polyfromroots(others)
    a[3, 5] = g[5, 2] = 1
    b[5] = polynomial.polyfromroots(points)
    return a, g, b


# Points with a small error. Those for doubled maps are 1, -1 and a symmetric pair, because then -1 gives zero.
AT, G, BT = _matrices((0, 3 / 4, -3 / 4, 3 / 2, -3 / 2))
AT_DOUBLED, G_DOUBLED, BT_DOUBLED = (
    np.delete(matrix, 2, axis) for matrix, axis in zip(_matrices((0, 1, -1, 2, -2)), (1, 0, 0), strict=True)
)
DOUBLING = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


@dataclass(frozen=True)
class Kernel:
    """A 3 x 3 convolution's weights, transformed, in the order the products read them.

    Attributes:
        weights: float32 (p p, panels, c, 16); a panel is 16 output channels, the last one padded with zeros.
        outputs: number of output channels k.
        doubled: whether every pixel of the map is doubled along both axes before it is convolved.
    """

    weights: Floats
    outputs: int
    doubled: bool

    @property
    def inputs(self) -> int:
        """Number of input channels c."""
        return int(self.weights.shape[2])


def transform_kernel(weights: Floats, *, doubled: bool = False) -> Kernel:
    """Transform weights g (k, c, 3, 3) to G g G^T; c must be a multiple of 8."""
    g = G_DOUBLED if doubled else G
    transformed = np.einsum("iy,kcyx,jx->ijck", g, weights.astype(np.float64), g)
    return Kernel(_panels(transformed), len(weights), doubled)


def transform_projection(weights: Floats) -> Floats:
    """Arrange weights (k, c) of a 1 x 1 convolution in the order the products read them: (1, panels, c, 16)."""
    return _panels(weights.T[None, None].astype(np.float64))


def _panels(weights: Doubles) -> Floats:
    """(i, j, c, k) -> (i j, panels, c, 16)."""
    c, k = weights.shape[2:]
    whole = np.pad(weights, ((0, 0), (0, 0), (0, 0), (0, -k % COLUMNS)))
    return np.ascontiguousarray(
        whole.reshape(-1, c, whole.shape[3] // COLUMNS, COLUMNS).transpose(0, 2, 1, 3), np.float32
    )
