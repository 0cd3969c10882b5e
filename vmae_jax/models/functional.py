"""From a module to a pure pair (init, apply) over plain nested dicts of arrays.

Everything past this file sees only dicts: jit, grad, scan, sharding rules, checkpoints, converters.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Functional:
    """A network as pure functions of its parameters.

    Attributes:
      build: makes the module from a source of keys.
      graphdef: its static structure.
      shapes: nested dict of `jax.ShapeDtypeStruct`, the parameters without their values.
    """

    build: Callable[[nnx.Rngs], nnx.Module]
    graphdef: nnx.GraphDef
    shapes: Params

    def init(self, key: jax.Array) -> Params:
        """Parameters as a nested dict keyed by module path; pure, so jit and shard it outside."""
        return nnx.to_pure_dict(nnx.state(self.build(nnx.Rngs(params=key)), nnx.Param))

    def apply(self, params: Params, *args, method: str = "__call__", **kwargs):
        """Calls a method of the network with these parameters, of any float dtype."""
        return getattr(self.module(params), method)(*args, **kwargs)

    def module(self, params: Params) -> nnx.Module:
        """A short-lived module around `params`; it shares their buffers, so do not keep it."""
        return nnx.merge(self.graphdef, params)

    @property
    def num_params(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.shapes))


def functional(build: Callable[[nnx.Rngs], nnx.Module]) -> Functional:
    """Wraps `build`, e.g. `lambda rngs: ViTEncoder(spec, ..., rngs=rngs)`; allocates nothing."""
    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(params=jax.random.key(0))))
    graphdef, state = nnx.split(abstract)
    return Functional(build, graphdef, nnx.to_pure_dict(state))
