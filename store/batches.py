"""Features in batches, read through Dask.

b  images in a batch      t  timesteps of each      c, h, w  channels and size of a block's map

Nothing is read until a batch is computed; reading runs on Dask's threaded scheduler (the codecs
release the GIL) in the background, ``prefetch`` batches ahead and no further.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import dask
import dask.array as da
import numpy as np
from numpy.typing import NDArray

from store.feature_store import FeatureEntry, FeatureStore, Key, timestep_indices
from store.spec import FeatureSpec


class Batch(NamedTuple):
    """A batch in memory.

    Attributes:
        position: position in the epoch, from 0.
        keys: b images.
        timesteps: (b, t), the timesteps of each image's maps.
        maps: {block: (b, t, c, h, w)} in the store's element type.
    """

    position: int
    keys: tuple[Key, ...]
    timesteps: NDArray[np.int64]
    maps: dict[str, NDArray[np.floating]]


class Plan(NamedTuple):
    """What a batch will hold: keys (b) and timesteps (b, t)."""

    keys: tuple[Key, ...]
    timesteps: NDArray[np.int64]


def lazy_maps(
    store: FeatureStore, spec: FeatureSpec, plan: Plan, blocks: Sequence[str] | None = None
) -> dict[str, da.Array]:
    """{block: dask array (b, t, c, h, w)}; computing it reads the planned timesteps and no others."""
    entries = [store.entry(spec, key) for key in plan.keys]
    names = [block.name for block in spec.blocks] if blocks is None else list(blocks)
    return {name: _lazy_block(spec, entries, plan, name) for name in names}


def _lazy_block(spec: FeatureSpec, entries: Sequence[FeatureEntry], plan: Plan, block: str) -> da.Array:
    rows = []
    for entry, key, timesteps in zip(entries, plan.keys, plan.timesteps, strict=True):
        stored = entry.array(block)
        lazy = da.from_array(
            stored,
            chunks=stored.chunks,
            name=f"{block}-{key.view}-{key.image_id[:16]}-{spec.digest[:16]}",
            meta=np.empty((0,) * 4, dtype=stored.dtype),
        )
        rows.append(da.stack([lazy[i] for i in timestep_indices(spec, [int(t) for t in timesteps])]))
    return da.stack(rows)


def plan_epoch(
    spec: FeatureSpec,
    keys: Sequence[Key],
    batch: int,
    *,
    seed: int | None = None,
    epoch: int = 0,
    one_timestep: bool = False,
) -> list[Plan]:
    """The batches of one epoch; a function of its arguments alone, so that it can be resumed.

    Args:
        keys: the images.
        batch: images in a batch; the last one may be smaller.
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
    prefetch: int = 2,
) -> Iterator[Batch]:
    """Read the planned batches in order, ``prefetch`` of them ahead.

    Args:
        start: first batch; an epoch that was left after batch n goes on with ``start=n + 1``.
        prefetch: batches in flight; memory holds at most ``prefetch + 1``.

    Raises:
        DamagedEntry, MissingEntry: from the batch that is damaged or gone.
    """

    def load(index: int) -> Batch:
        plan = plans[index]
        return Batch(index, plan.keys, plan.timesteps, compute(lazy_maps(store, spec, plan, blocks)))

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as reader:
        waiting: deque[Future[Batch]] = deque()
        upcoming = iter(range(start, len(plans)))
        try:
            while True:
                while len(waiting) < max(prefetch, 1) and (index := next(upcoming, None)) is not None:
                    waiting.append(reader.submit(load, index))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for pending in waiting:
                pending.cancel()


def compute(maps: Mapping[str, da.Array]) -> dict[str, NDArray[np.floating]]:
    """Read all maps at once on the threaded scheduler."""
    values = dask.compute(*maps.values(), scheduler="threads")
    return dict(zip(maps, values, strict=True))
