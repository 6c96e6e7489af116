"""Computations that are recorded as CUDA graphs and replayed.

A forward launches a thousand kernels. Launched one by one, each waits for the interpreter lock and for a core; beside a
dozen threads that decode and write, that takes longer than the device computes. A replay is a single call.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch

logger = logging.getLogger(__name__)

Maps = dict[str, torch.Tensor]
Computation = Callable[..., Maps]

WARMUP_RUNS = 2
"""Times that a computation is run before it is recorded: one that is rare is not worth it, and libraries choose and
load their kernels during these runs."""
MAX_GRAPHS = 8
"""Most graphs that are kept; further computations are run without recording."""


class GraphCache:
    """The CUDA graphs of one device, for one thread.

    Each graph has its own inputs; intermediate results are in a memory pool that the graphs share.
    """

    def __init__(self) -> None:
        self._asked: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, _Graph] = {}
        self._max_graphs = MAX_GRAPHS
        self._context: _CaptureContext | None = None

    def run(self, name: Hashable, compute: Computation, inputs: Sequence[torch.Tensor]) -> Maps:
        """Apply ``compute`` to the inputs: replay its graph if there is one, else run it, and record it if it is due.

        Args:
            name: identifies the computation: with one name, and inputs of the same shapes and types, it must launch
                the same kernels.
            compute: maps tensors to tensors on a CUDA device, without reading their values.

        Raises:
            OutOfMemoryError: no room, even after the graphs' memory was freed.
        """
        try:
            return self._replayed_or_run(name, compute, inputs)
        except torch.OutOfMemoryError:
            if not self.forget():
                raise
        # Outside the clause above: the exception keeps tensors alive until its clause ends.
        torch.cuda.empty_cache()
        return compute(*inputs)

    def _replayed_or_run(self, name: Hashable, compute: Computation, inputs: Sequence[torch.Tensor]) -> Maps:
        key = name, *((x.shape, x.dtype, x.device) for x in inputs)
        if key not in self._graphs:
            self._asked[key] += 1
            if self._asked[key] > WARMUP_RUNS and len(self._graphs) < self._max_graphs:
                self._record(key, compute, inputs)
        recorded = self._graphs.get(key)
        return compute(*inputs) if recorded is None else recorded.replay(inputs)

    def forget(self) -> bool:
        """Free the graphs' memory and record no more; returns False, and changes nothing, if there are no graphs."""
        if not self._graphs:
            return False
        self._max_graphs = 0
        self._graphs.clear()
        self._context = None
        torch.cuda.empty_cache()
        return True

    def _record(self, key: Hashable, compute: Computation, inputs: Sequence[torch.Tensor]) -> None:
        """Record a computation. If that fails, never record again: computations are then run without graphs."""
        reason = None
        if self._context is None:
            self._context = _capture_context(inputs[0].device)
        try:
            self._graphs[key] = _Graph(compute, inputs, self._context)
        except RuntimeError as error:  # the device may be full, or another thread may be recording
            reason = str(error).strip().partition("\n")[0]
        if reason is not None:  # outside the clause above: the exception keeps tensors alive until its clause ends
            self._max_graphs = 0
            self.forget()
            logger.warning("forwards are not recorded as CUDA graphs (%s), which makes them a little slower", reason)


class _CaptureContext(NamedTuple):
    """The device and stream on which graphs are recorded, and the memory pool that they share."""

    device: torch.device
    stream: torch.cuda.Stream
    pool: Any


def _capture_context(device: torch.device) -> _CaptureContext:
    with torch.cuda.device(device):  # torch's default stream for recording would be on the first device used
        return _CaptureContext(device, torch.cuda.Stream(device), torch.cuda.graph_pool_handle())


class _Graph:
    """One CUDA graph, with the tensors that it reads and writes."""

    def __init__(self, compute: Computation, inputs: Sequence[torch.Tensor], context: _CaptureContext) -> None:
        before = torch.cuda.current_stream(context.device)
        with torch.cuda.device(context.device):
            self._graph = torch.cuda.CUDAGraph()
            self._inputs = [x.clone() for x in inputs]
            try:
                # thread_local: other threads may copy and allocate during the recording.
                recording = torch.cuda.graph(
                    self._graph, pool=context.pool, stream=context.stream, capture_error_mode="thread_local"
                )
                with recording:
                    self._outputs = compute(*self._inputs)
            except RuntimeError:
                torch.cuda.set_stream(before)  # torch does not restore it if the recording cannot even be ended
                raise

    def replay(self, inputs: Sequence[torch.Tensor]) -> Maps:
        """Replay the graph on these inputs and return copies of its outputs, which the next replay may overwrite."""
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._graph.replay()
        return {name: made.clone() for name, made in self._outputs.items()}
