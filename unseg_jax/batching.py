"""How the images of a batch are taken: vmapped, in turn, or several at once on a CPU.

Accelerators want one program for the whole batch (`jax.vmap`). XLA for CPU shares every single
product of a program among the cores, and the products of one graph are too small for that: an
epoch of a GCN takes no longer on one core than on two, and the working set of one graph fits the
cache. So on a CPU a program takes its images in turn, and a batch is one call per image, with as
many calls at a time as there are cores. Results then do not depend on the batch that an image is
in, and one program serves batches of all sizes.

`Batching` names the choice: "vmap", "loop" (in turn, in one program), "threads" (one call per
image), or None for the default of the platform that the program is lowered for. Where this process
has several accelerators, a vmapped batch is divided among them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unseg_jax.devices import core_count

Result = TypeVar("Result")
Batching = Literal["vmap", "loop", "threads"]


def check_batching(how: str | None, choices: tuple[str, ...] = get_args(Batching)) -> None:
    """Raises ValueError if `how` is neither None nor one of the choices."""
    if how is not None and how not in choices:
        raise ValueError(f"batching={how!r} is not one of {', '.join(choices)}.")


def map_batch(function: Callable[[Any], Result], batch: Any, how: Batching | None = None) -> Result:
    """A function of one image over a batch, within one program that may be jitted or exported.

    Args:
        function: of a tree of arrays.
        batch: the same tree with a leading batch axis on every array.
        how: "vmap" or "loop". None is "loop" where the program is lowered for a CPU and "vmap"
            for every other platform; where the CPU is divided into several devices it is "vmap"
            too, outside of `jax.shard_map`: a loop would gather a batch that is sharded over
            them, and every device would run all of it.

    Returns:
        The function's results with a leading batch axis.

    Example:
        >>> import jax.numpy as jnp
        >>> map_batch(jnp.sum, jnp.arange(6.0).reshape(3, 2), "loop").tolist()
        [1.0, 5.0, 9.0]
    """
    at_once, in_turn = jax.vmap(function), functools.partial(jax.lax.map, function)
    one_image = len(jax.tree.leaves(batch)[0]) == 1
    if how is None and not one_image:
        return take_by_platform(batch, at_once=at_once, in_turn=in_turn)
    return at_once(batch) if how == "vmap" else in_turn(batch)


def take_by_platform(
    batch: Any, *, at_once: Callable[[Any], Result], in_turn: Callable[[Any], Result]
) -> Result:
    """Two forms of one function of a batch, chosen as `map_batch` does without `how`.

    Args:
        batch: tree of arrays with a leading batch axis.
        at_once: the form for accelerators, and for a CPU that is divided into several devices.
        in_turn: the form that takes one image after the other, for a CPU.
    """
    own_share = bool(jax.sharding.get_abstract_mesh().manual_axes)
    if jax.local_device_count(backend="cpu") > 1 and not own_share:
        return at_once(batch)
    return jax.lax.platform_dependent(batch, cpu=in_turn, default=at_once)


def takes_images_apart(how: Batching | None = None) -> bool:
    """Whether `map_images` calls a function once per image.

    Args:
        how: "threads" does; None does on a CPU that is not divided into several devices.
    """
    if how is None:
        return jax.default_backend() == "cpu" and jax.local_device_count() == 1
    return how == "threads"


def devices_for(how: Batching | None = None) -> int:
    """How many devices `map_images` divides a batch among: all of this process, but one where
    images are taken one by one, or where `jax_default_device` names it."""
    one = takes_images_apart(how) or how == "loop" or jax.config.jax_default_device is not None
    return 1 if one else jax.local_device_count()


def replicate(tree: Any, how: Batching | None = None) -> Any:
    """A tree of arrays on each of the devices that `map_images` uses; as it is where that is one.

    Done once, it is not copied with every batch."""
    return tree if devices_for(how) == 1 else jax.device_put(tree, _shardings()[0])


@functools.cache
def _shardings() -> tuple[NamedSharding, NamedSharding]:
    """On all devices of this process: the same arrays, and the leading axis divided."""
    mesh = Mesh(np.array(jax.local_devices()), ("images",))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("images"))


def by_shares(
    function: Callable[[Any, Any], Result], shared: Any, batch: Any, how: Batching | None = None
) -> Result:
    """function(shared, batch) within a program, each device with its own part of the batch.

    XLA then divides nothing by itself: it would refuse a kernel, and gather a batch for `eigh`.

    Args:
        function: returns a tree of arrays with the leading axis of the batch.
        shared: tree that every device gets whole.
        batch: tree of arrays whose leading axis is the images.
        how: see `devices_for`. Where it names one device, or the batch is not to be divided
            evenly, or already is divided, the function is just called.
    """
    devices = devices_for(how)
    divided = bool(jax.sharding.get_abstract_mesh().manual_axes)
    if devices == 1 or divided or len(jax.tree.leaves(batch)[0]) % devices:
        return function(shared, batch)
    whole, parts = _shardings()
    # Nothing is exchanged, so that there is nothing for the check of varying values to find.
    shares = jax.shard_map(
        function,
        mesh=whole.mesh,
        in_specs=(whole.spec, parts.spec),
        out_specs=parts.spec,
        check_vma=False,
    )
    return shares(shared, batch)


def map_images(
    function: Callable[[Any, Any], Result], shared: Any, batch: Any, how: Batching | None = None
) -> Result:
    """function(shared, batch), as one call per image where `takes_images_apart` says so, and with
    the batch divided among several devices where they divide it evenly.

    The function is called on other threads, where JAX's context managers (`jax.debug_nans` and its
    like) do not reach; `jax.config` does.

    Args:
        function: jitted or compiled; takes a tree as `batch` of any number of images, where
            `takes_images_apart` of one, and returns a tree of arrays with the same leading axis.
        shared: tree that every call gets whole. Traced values must be in here or in batch: under
            a transformation of JAX there is one call, on the caller's thread.
        batch: tree of arrays whose leading axis is the images.
        how: see `takes_images_apart`.

    Example:
        >>> program = jax.jit(lambda factor, batch: factor * batch)
        >>> map_images(program, 2.0, np.arange(3.0), "threads").tolist()
        [0.0, 2.0, 4.0]

    Returns:
        The results of all images joined, possibly before they are computed.
    """
    leaves = jax.tree.leaves(batch)
    count = len(leaves[0])
    traced = any(isinstance(leaf, Tracer) for leaf in (*leaves, *jax.tree.leaves(shared)))
    if count < 2 or traced or not takes_images_apart(how):
        if not traced and devices_for(how) > 1 and count % devices_for(how) == 0:
            whole, divided = _shardings()
            shared, batch = jax.device_put(shared, whole), jax.device_put(batch, divided)
        return function(shared, batch)
    # NumPy's slices are free; JAX's are one program for all.
    split = _split if all(isinstance(leaf, np.ndarray) for leaf in leaves) else _split_on_device
    images = split(batch)
    lanes = _lanes()
    # The first one alone, so that its program is compiled once.
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
    """One thread per core: XLA runs the calls of one thread in turn, those of several at once."""
    return [ThreadPoolExecutor(1, "unseg_jax") for _ in range(core_count())]


def _split(batch):
    count = len(jax.tree.leaves(batch)[0])
    return [jax.tree.map(lambda leaf, at=at: leaf[at : at + 1], batch) for at in range(count)]


_split_on_device = jax.jit(_split)


@jax.jit
def _join(results):
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *results)
