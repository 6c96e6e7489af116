"""Features in batches, read through Dask.

b  images in a batch        t  timesteps of each         c, h, w  channels and size of a block's map
k  stored planes: channels, or components of the compact encoding

``stream`` reads batches in the background, at most ``prefetch`` ahead, on Dask's threaded scheduler
(the codecs release the GIL) or on a Dask client whose workers are threads of this process.
``lazy_maps`` reads nothing until its arrays are computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import dask
import dask.array as da
import numpy as np
from dask.base import tokenize
from numpy.typing import NDArray

from store.encoded import Encoded, stacked
from store.errors import SpecError
from store.feature_store import FeatureStore
from store.features import STORED_TYPES, FeatureEntry, Key
from store.parallel import lookahead
from store.spec import FeatureSpec

if TYPE_CHECKING:
    from distributed import Client


MOST_OPENED = 64
"""Entries that lazy maps keep open."""


class Batch(NamedTuple):
    """A batch in memory.

    Attributes:
        position: position in the epoch, from 0.
        keys: the b images, each in one view.
        timesteps: (b, t), the timesteps of each image's maps.
        maps: {block: Encoded (b, t, k, h, w)}, which the spec's codec decodes to feature maps.
    """

    position: int
    keys: tuple[Key, ...]
    timesteps: NDArray[np.int64]
    maps: dict[str, Encoded]


class Plan(NamedTuple):
    """The contents of a batch that is still to be read: keys (b) and timesteps (b, t)."""

    keys: tuple[Key, ...]
    timesteps: NDArray[np.int64]


def plan_epoch(
    spec: FeatureSpec,
    keys: Sequence[Key],
    batch: int,
    *,
    seed: int | None = None,
    epoch: int = 0,
    one_timestep: bool = False,
) -> list[Plan]:
    """Plan the batches of one epoch. The plan depends on the arguments alone, so that an epoch can be resumed.

    Args:
        keys: the images, each in one view.
        batch: batch size; the last batch may be smaller.
        seed: shuffles the images, differently in every epoch; None keeps their order.
        one_timestep: draw one timestep for each image instead of taking all.
    """
    random = np.random.default_rng([seed or 0, epoch])
    order = np.arange(len(keys)) if seed is None else random.permutation(len(keys))
    plans = []
    for start in range(0, len(order), batch):
        members = tuple(keys[i] for i in order[start : start + batch])
        timesteps = (
            random.choice(spec.timesteps, size=(len(members), 1))
            if one_timestep
            else np.tile(spec.timesteps, (len(members), 1))
        )
        plans.append(Plan(members, timesteps.astype(np.int64)))
    return plans


def stream(
    store: FeatureStore,
    spec: FeatureSpec,
    plans: Sequence[Plan],
    blocks: Sequence[str] | None = None,
    *,
    start: int = 0,
    prefetch: int = 1,
    client: Client | None = None,
) -> Iterator[Batch]:
    """Read the planned batches in order, up to ``prefetch`` of them ahead.

    Args:
        blocks: names of blocks; all of the spec's if None.
        start: index of the first batch; an epoch that was left after batch n is resumed with ``start=n + 1``.
        prefetch: batches that are read while the caller works on one; memory holds at most ``prefetch + 1``. With 0
            each is read when it is asked for.
        client: a Dask client whose workers are threads of this process
            (``Client(processes=False)``); the threaded scheduler if None.

    Raises:
        DamagedEntry, MissingEntry: an entry of a batch is damaged or missing; raised in place of that batch.
        SpecError: the client's workers are separate processes, which would send every map through a socket.
    """
    if client is not None:
        _require_threads(client)
    names = [block.name for block in spec.blocks] if blocks is None else list(blocks)

    def load(index: int) -> Batch:
        plan = plans[index]
        return Batch(index, plan.keys, plan.timesteps, _read(store, spec, plan, names, client))

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as reader:
        try:
            for reading in lookahead((reader.submit(load, index) for index in range(start, len(plans))), prefetch):
                yield reading.result()
        finally:
            reader.shutdown(wait=False, cancel_futures=True)


def _read(
    store: FeatureStore, spec: FeatureSpec, plan: Plan, names: Sequence[str], client: Client | None
) -> dict[str, Encoded]:
    """{block: Encoded (b, t, k, h, w)}, read with one task for each block of each image."""
    if client is not None:
        return _read_with(client, store, spec, plan, names)
    # Every task decodes into its own slice of the batch, so that nothing is copied afterwards.
    shape = plan.timesteps.shape
    element = STORED_TYPES[spec.encoding.kind]
    targets = {name: np.empty((*shape, *spec.stored_shape(name)[1:]), element) for name in names}
    entries = [dask.delayed(store.entry, pure=False)(spec, key) for key in plan.keys]
    tasks = [
        dask.delayed(_encoded, pure=False)(entry, name, timesteps, targets[name][i])
        for i, (entry, timesteps) in enumerate(zip(entries, plan.timesteps, strict=True))
        for name in names
    ]
    parts = dask.compute(*tasks, scheduler="threads", optimize_graph=False)
    maps = {}
    for position, name in enumerate(names):
        rows = parts[position :: len(names)]
        maps[name] = Encoded(targets[name], _stacked_parameter(rows, "scale"), _stacked_parameter(rows, "offset"))
    return maps


def _read_with(
    client: Client, store: FeatureStore, spec: FeatureSpec, plan: Plan, names: Sequence[str]
) -> dict[str, Encoded]:
    entries = [client.submit(store.entry, spec, key, pure=False) for key in plan.keys]
    tasks = [(entry, name, steps) for name in names for entry, steps in zip(entries, plan.timesteps, strict=True)]
    parts = client.gather([client.submit(_encoded, *task, None, pure=False) for task in tasks])
    return {name: stacked(parts[i * len(entries) : (i + 1) * len(entries)]) for i, name in enumerate(names)}


def _encoded(entry: FeatureEntry, block: str, timesteps: NDArray[np.int64], out: NDArray[Any] | None) -> Encoded:
    return entry.encoded(block, [int(t) for t in timesteps], out)


def _stacked_parameter(parts: Sequence[Encoded], parameter: str) -> NDArray[np.float32] | None:
    values = [getattr(part, parameter) for part in parts]
    return None if values[0] is None else np.stack(values)


def _require_threads(client: Client) -> None:
    addresses = list(client.nthreads())
    if foreign := [address for address in addresses if not address.startswith("inproc://")]:
        raise SpecError(
            f"the workers {', '.join(foreign[:3])} are separate processes; reading needs threads of this one: "
            "Client(processes=False)"
        )


def lazy_maps(
    store: FeatureStore, spec: FeatureSpec, plan: Plan, blocks: Sequence[str] | None = None
) -> dict[str, da.Array]:
    """Decoded feature maps as {block: dask array, float32 (b, t, c, h, w)}.

    Nothing is read here, not even whether the images are stored. Computing an array, or a part of it, reads no other
    timesteps than the planned ones; each image and timestep is one chunk.

    Raises:
        SpecError: the spec has no such block.
    """
    names = [block.name for block in spec.blocks] if blocks is None else list(blocks)
    entries = _LastEntries(store, spec, plan.keys)
    return {name: _lazy(_Maps(entries, plan, name)) for name in names}


class _LastEntries:
    """Entries of a store, those that were asked for lately still open."""

    def __init__(self, store: FeatureStore, spec: FeatureSpec, keys: Sequence[Key]) -> None:
        self._store, self.spec, self._keys = store, spec, keys
        self._opened: dict[int, FeatureEntry] = {}

    def __getitem__(self, image: int) -> FeatureEntry:
        entry = self._opened.get(image)
        if entry is None:
            if len(self._opened) >= MOST_OPENED:
                self._opened.clear()
            self._opened[image] = entry = self._store.entry(self.spec, self._keys[image])
        return entry

    @property
    def place(self) -> str:
        """Where they are: two stores in memory have one location."""
        location = self._store.location
        return f"memory {id(self._store.objects)}" if location == "memory://" else location


class _Maps:
    """The feature maps of one block, float32 (b, t, c, h, w), which are read when it is indexed."""

    dtype, ndim = np.dtype(np.float32), 5

    def __init__(self, entries: _LastEntries, plan: Plan, name: str) -> None:
        self._entries, self._plan, self._block = entries, plan, entries.spec.block(name)
        block = self._block
        self.shape = (*plan.timesteps.shape, block.channels, block.height, block.width)

    @property
    def token(self) -> str:
        """A name for the numbers: equal for equal maps of one store."""
        return str(tokenize(self._entries.place, self._entries.spec.digest, self._block.name, *self._plan))

    def __getitem__(self, index: tuple[int | slice, ...]) -> NDArray[np.float32]:
        images, steps = (np.arange(count)[one] for count, one in zip(self.shape, index[:2], strict=False))
        maps = np.stack([self._read(int(i), np.atleast_1d(steps)) for i in np.atleast_1d(images)])
        found: NDArray[np.float32] = maps[
            (*(0 if np.ndim(one) == 0 else slice(None) for one in (images, steps)), *index[2:])
        ]
        return found

    def _read(self, image: int, steps: NDArray[np.intp]) -> NDArray[np.float32]:
        timesteps = [int(t) for t in self._plan.timesteps[image, steps]]
        return self._entries[image].read(self._block.name, timesteps)


def _lazy(maps: _Maps) -> da.Array:
    chunks = (1, 1, *maps.shape[2:])
    nothing = np.empty((0,) * maps.ndim, maps.dtype)
    array: da.Array = da.from_array(
        maps, chunks, name=f"maps-{maps.token}", asarray=False, fancy=False, meta=nothing, inline_array=True
    )
    return array
