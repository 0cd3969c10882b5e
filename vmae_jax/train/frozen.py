"""The tree that a system needs and never trains (a teacher), on a mesh."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from vmae_jax.systems.base import System, frozen_copy
from vmae_jax.train.sharding import state_shardings


def abstract_frozen(system: System, mesh: Mesh) -> Any:
    """Shapes, dtypes and layouts of the tree as a step gets it; None where there is none."""
    return _abstract(_stored(system), mesh) if system.init_frozen else None


def place_frozen(
    system: System, mesh: Mesh, key: jax.Array, load: Callable[[Any], Any] | None = None
) -> Any:
    """The tree on the devices, its matrices in the compute dtype; None where there is none.

    Args:
      system: the method.
      mesh: it is sharded over, by the rules for parameters.
      key: for random values, where nothing is loaded.
      load: abstract float32 tree with layouts -> its values.
    """
    if system.init_frozen is None:
        return None
    layout = jax.tree.map(lambda x: x.sharding, abstract_frozen(system, mesh))
    if load is None:
        return jax.jit(_stored(system), out_shardings=layout)(key)
    loaded = load(_abstract(system.init_frozen, mesh))
    return jax.jit(lambda tree: frozen_copy(tree, system.compute_dtype), out_shardings=layout)(
        loaded
    )


def _stored(system: System) -> Callable[[jax.Array], Any]:
    return lambda key: frozen_copy(system.init_frozen(key), system.compute_dtype)


def _abstract(init: Callable[[jax.Array], Any], mesh: Mesh) -> Any:
    shapes = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        state_shardings(shapes, mesh),
    )
