"""Computations that are recorded as CUDA graphs and replayed.

A forward is a thousand kernels. Who launches them one by one waits for the interpreter lock and for a core before
each, and beside a dozen threads that decode and write, longer than the device computes; a replay is one call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

Maps = dict[str, torch.Tensor]
Computation = Callable[..., Maps]

RUNS_BEFORE = 2
"""Times that a computation is run before it is recorded: what comes once is not worth it, and libraries choose and
load their kernels meanwhile."""
MOST = 8
"""Graphs that are kept; whatever else is asked for is run."""


class Recordings:
    """The graphs of one device. They share their memory, which is that of the largest; one thread may use them."""

    def __init__(self) -> None:
        self._asked: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, _Recorded] = {}
        self._pool: Any = None
        self._most = MOST

    def run(self, name: Hashable, compute: Computation, inputs: Sequence[torch.Tensor]) -> Maps:
        """What ``compute`` makes of the inputs.

        Args:
            name: computations of one name, inputs of one shape and type and nothing else make the same kernels.
            compute: makes tensors of tensors on a CUDA device, without asking for their numbers.
        """
        key = name, *((x.shape, x.dtype, x.device) for x in inputs)
        recorded = self._graphs.get(key)
        if recorded is None:
            self._asked[key] += 1
            if self._asked[key] <= RUNS_BEFORE or len(self._graphs) >= self._most:
                return compute(*inputs)
            try:
                recorded = self._record(compute, inputs)
            except torch.OutOfMemoryError:
                self.forget()
                return compute(*inputs)
            self._graphs[key] = recorded
        return recorded.replay(inputs)

    def forget(self) -> bool:
        """Give the graphs' memory back and record nothing from now on; whether there was any."""
        had_any = bool(self._graphs)
        self._most = 0
        self._graphs.clear()
        torch.cuda.empty_cache()
        return had_any

    def _record(self, compute: Computation, inputs: Sequence[torch.Tensor]) -> _Recorded:
        with torch.cuda.device(inputs[0].device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            return _Recorded(compute, inputs, self._pool)


class _Recorded:
    """One graph, and where it reads and writes."""

    def __init__(self, compute: Computation, inputs: Sequence[torch.Tensor], pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._inputs = [x.clone() for x in inputs]
        # Other threads may copy and allocate meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._outputs = compute(*self._inputs)

    def replay(self, inputs: Sequence[torch.Tensor]) -> Maps:
        """What it makes of these inputs, in memory of its own: the next replay of any graph writes over the graph's."""
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._graph.replay()
        return {name: made.clone() for name, made in self._outputs.items()}
