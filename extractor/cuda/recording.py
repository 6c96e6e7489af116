"""Computations that are recorded as CUDA graphs and replayed.

A forward is a thousand kernels. Who launches them one by one waits for the interpreter lock and for a core before
each, and beside a dozen threads that decode and write, longer than the device computes; a replay is one call.
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

RUNS_BEFORE = 2
"""Times that a computation is run before it is recorded: what comes once is not worth it, and libraries choose and
load their kernels meanwhile."""
MOST = 8
"""Graphs that are kept; whatever else is asked for is run."""


class Recordings:
    """The graphs of one device, for one thread.

    Each keeps its inputs and outputs; what lies between is in memory that they share.
    """

    def __init__(self) -> None:
        self._asked: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, _Recorded] = {}
        self._most = MOST
        self._place: _Place | None = None

    def run(self, name: Hashable, compute: Computation, inputs: Sequence[torch.Tensor]) -> Maps:
        """What ``compute`` makes of the inputs.

        Args:
            name: computations of one name, inputs of one shape and type and nothing else make the same kernels.
            compute: makes tensors of tensors on a CUDA device, without asking for their numbers.

        Raises:
            OutOfMemoryError: no room, though what was recorded had been given up.
        """
        try:
            return self._replayed_or_run(name, compute, inputs)
        except torch.OutOfMemoryError:
            if not self.forget():
                raise
        # Not within the clause above: the error holds what was made until it is left.
        torch.cuda.empty_cache()
        return compute(*inputs)

    def _replayed_or_run(self, name: Hashable, compute: Computation, inputs: Sequence[torch.Tensor]) -> Maps:
        key = name, *((x.shape, x.dtype, x.device) for x in inputs)
        if key not in self._graphs:
            self._asked[key] += 1
            if self._asked[key] > RUNS_BEFORE and len(self._graphs) < self._most:
                self._record(key, compute, inputs)
        recorded = self._graphs.get(key)
        return compute(*inputs) if recorded is None else recorded.replay(inputs)

    def forget(self) -> bool:
        """Give the graphs' memory back and record no more; False, and nothing is changed, where there are none."""
        if not self._graphs:
            return False
        self._most = 0
        self._graphs.clear()
        self._place = None
        torch.cuda.empty_cache()
        return True

    def _record(self, key: Hashable, compute: Computation, inputs: Sequence[torch.Tensor]) -> None:
        """Record, or never try again: what cannot be recorded can still be run."""
        reason = None
        if self._place is None:
            self._place = _place_on(inputs[0].device)
        try:
            self._graphs[key] = _Recorded(compute, inputs, self._place)
        except RuntimeError as error:  # of the device, which may be full, or of another thread that records, too
            reason = str(error).strip().partition("\n")[0]
        if reason is not None:  # not within the clause above: the error holds what was made until it is left
            self._most = 0
            self.forget()
            logger.warning("forwards are not recorded (%s); they are run, which takes a little longer", reason)


class _Place(NamedTuple):
    """Where the graphs of one device are recorded, and the memory that they share."""

    device: torch.device
    stream: torch.cuda.Stream
    pool: Any


def _place_on(device: torch.device) -> _Place:
    with torch.cuda.device(device):  # a stream of one's own: torch's for recording belongs to the device that was first
        return _Place(device, torch.cuda.Stream(device), torch.cuda.graph_pool_handle())


class _Recorded:
    """One graph, and where it reads and writes."""

    def __init__(self, compute: Computation, inputs: Sequence[torch.Tensor], place: _Place) -> None:
        before = torch.cuda.current_stream(place.device)
        with torch.cuda.device(place.device):
            self._graph = torch.cuda.CUDAGraph()
            self._inputs = [x.clone() for x in inputs]
            try:
                # Other threads may copy and allocate meanwhile.
                recording = torch.cuda.graph(
                    self._graph, pool=place.pool, stream=place.stream, capture_error_mode="thread_local"
                )
                with recording:
                    self._outputs = compute(*self._inputs)
            except RuntimeError:
                torch.cuda.set_stream(before)  # which torch does not where a recording cannot even be ended
                raise

    def replay(self, inputs: Sequence[torch.Tensor]) -> Maps:
        """What it makes of these inputs, in memory of its own: the next replay of any graph writes over the graph's."""
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._graph.replay()
        return {name: made.clone() for name, made in self._outputs.items()}
