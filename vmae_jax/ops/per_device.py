"""Runs a function of arrays with a leading batch axis on each device's own clips."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec


def per_device(fn: Callable[..., Any], *arrays: jax.Array) -> Any:
    """Calls `fn(*arrays)` under shard_map over the mesh in force; plainly where there is none.

    For kernels, which the compiler cannot partition by itself.

    Args:
      fn: arrays [B, ...] -> one or more arrays [B, ...]; treats each clip by itself.
      arrays: of one B. One that the devices do not divide (of a picture) is computed by all.
    """
    mesh = jax.sharding.get_abstract_mesh()
    auto = tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Auto
    )
    if not auto:  # no mesh, or already inside shard_map
        return fn(*arrays)
    # Every mesh axis carries batch in this house. Kernels do not annotate varying axes.
    spec = PartitionSpec(auto if arrays[0].shape[0] % mesh.size == 0 else None)
    return jax.shard_map(fn, in_specs=(spec,) * len(arrays), out_specs=spec, check_vma=False)(
        *arrays
    )
