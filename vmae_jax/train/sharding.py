"""Mesh and layouts: one table says where every parameter lives."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vmae_jax import rules
from vmae_jax.config import ConfigError

BATCH_AXES = ("data", "fsdp")

# Each entry is about the last axes of a parameter: before them, stacked blocks have an axis of
# layers, and convolutions those of their window. The MLP's hidden axis is never split: ViT-g's
# decoder is 2234 wide there, which no power of two divides.
SHARDING_RULES = (
    (r"blocks/.*(qkv|proj|fc1)/kernel$", P("fsdp", None)),
    (r"blocks/.*fc2/kernel$", P(None, "fsdp")),
    (r"patch_embed/kernel$", P(None, "fsdp")),
    (r"(head|proj|encoder_to_decoder)/kernel$", P("fsdp", None)),
    # Vectors, tables and depth-wise filters are a thousandth of the parameters; gathering them
    # would cost more than they save.
    (r"(^|/)(bias|[qkv]_bias|scale|gamma_1|gamma_2|(mask|cls)_token|pos_embed(_\w+)?)$", P()),
    (r"blocks/.*(rel_pos_[thw]|pool_[qkv]/kernel)$", P()),
)


def make_mesh(fsdp: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh `("data", "fsdp")` over all devices; parameters are never shared across slices.

    Args:
      fsdp: wanted number of devices that share one copy of the parameters. The degree in force is
        its greatest common divisor with the number of devices of a slice.
      devices: default: all devices of all processes.
    """
    devices = list(jax.devices() if devices is None else devices)
    # Between slices of a pod, or nodes of GPUs, runs the slower network: data parallel only.
    slices = len({getattr(device, "slice_index", None) for device in devices})
    degree = fsdp_degree(fsdp, len(devices), slices)
    shape = (len(devices) // slices // degree, degree)
    # Without the permission to split a physical axis, 8 of a 4 x 4 x 4 torus is refused.
    if slices == 1:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_hybrid_device_mesh(
            shape, (slices, 1), devices, allow_split_physical_axes=True
        )
    # Auto: under Explicit axes, reshapes of sharded batches are refused.
    return Mesh(grid, BATCH_AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def fsdp_degree(fsdp: int, num_devices: int, slices: int = 1) -> int:
    """Devices that share one copy of the parameters, of `num_devices` in equal slices."""
    return math.gcd(fsdp, num_devices // slices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Layout of every array of a batch: the leading axis over all devices."""
    return NamedSharding(mesh, P(BATCH_AXES))


def state_shardings(abstract_state: Any, mesh: Mesh) -> Any:
    """Layout of a state, or of any tree that holds parameters, by `SHARDING_RULES`.

    Moments and averages carry their parameter's path inside theirs and so get its layout; scalars
    are replicated.

    Raises:
      ValueError: a leaf that no rule matches.
      ConfigError: an axis that `mesh.fsdp` does not divide.
    """

    def layout(path: str, leaf: Any) -> NamedSharding:
        if not leaf.shape:
            return NamedSharding(mesh, P())
        spec = rules.match(SHARDING_RULES, path, what="sharding rule")
        spec = P(*[None] * (leaf.ndim - len(spec)), *spec) if len(spec) else spec
        for axis, name in enumerate(spec):
            if name and leaf.shape[axis] % mesh.shape[name]:
                raise ConfigError(
                    f"{path} of shape {leaf.shape} cannot be split over {mesh.shape[name]} devices "
                    f"along axis {axis}; choose a mesh.fsdp that divides {leaf.shape[axis]}"
                )
        return NamedSharding(mesh, spec)

    return rules.map_with_path(layout, abstract_state)
