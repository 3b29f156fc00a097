"""Several images at once on a CPU.

XLA for CPU shares every single product of a program among the cores. The products of one graph are
too small for that: an epoch of a GCN takes no longer on one core than on two. So a batch is not
one program there but one for every image, and as many of them run at a time as there are cores.
What is found in an image then cannot depend on the batch that it is in, and there is one program
for batches of all sizes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Result = TypeVar("Result")


def takes_images_apart() -> bool:
    """Whether `map_images` calls a function for each image: on a CPU, but not if it is divided
    into several devices."""
    return jax.default_backend() == "cpu" and jax.local_device_count() == 1


def map_images(function: Callable[[Any, Any], Result], shared: Any, batch: Any) -> Result:
    """function(shared, batch), on a CPU as one call an image, the results put together again.

    The function is called on other threads, where JAX's context managers (`jax.debug_nans` and its
    like) do not reach; `jax.config` does.

    Args:
        function: jitted or compiled; takes a tree as `batch` of any number of images, where
            `takes_images_apart` of one, and gives a tree of arrays with the same leading axis.
        shared: tree that every call gets whole. What is traced must be in here or in batch: under
            a transformation of JAX there is one call, on the caller's thread.
        batch: tree of arrays whose leading axis are the images.

    Returns:
        What the function gives, possibly before it is computed.
    """
    leaves = jax.tree.leaves(batch)
    count = len(leaves[0])
    traced = any(isinstance(leaf, Tracer) for leaf in (*leaves, *jax.tree.leaves(shared)))
    if count < 2 or traced or not takes_images_apart():
        return function(shared, batch)
    # NumPy's slices are free; JAX's are one program for all.
    split = _split if all(isinstance(leaf, np.ndarray) for leaf in leaves) else _split_on_device
    images = split(batch)
    lanes = _lanes()
    # The first one alone: what has to be compiled is compiled once.
    results = [lanes[0].submit(function, shared, images[0]).result()]
    waiting = [
        lanes[at % len(lanes)].submit(function, shared, image)
        for at, image in enumerate(images[1:], 1)
    ]
    results += [future.result() for future in waiting]
    return _join(results)


def pad_batch(batch: np.ndarray, size: int) -> np.ndarray:
    """A batch (B, …) padded to `size` images by repeating its last one."""
    missing = max(0, size - len(batch))
    return np.concatenate([batch, np.repeat(batch[-1:], missing, 0)]) if missing else batch


@functools.cache
def _lanes() -> list[ThreadPoolExecutor]:
    """One thread a core. XLA runs what one thread starts in turn, and the threads side by side."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [ThreadPoolExecutor(1, "unseg_jax") for _ in range(cores or 1)]


def _split(batch):
    count = len(jax.tree.leaves(batch)[0])
    return [jax.tree.map(lambda leaf, at=at: leaf[at : at + 1], batch) for at in range(count)]


_split_on_device = jax.jit(_split)


@jax.jit
def _join(results):
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *results)
