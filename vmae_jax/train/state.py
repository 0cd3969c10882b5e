"""What a training run carries from step to step, and how it is created on a mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """State of a run.

    Attributes:
      step: int32 scalar, number of updates tried so far.
      params: nested dict of float32 arrays.
      opt_state: optimizer state of the same layout.
      ema: exponential moving average of the parameters, or None.
      skipped: int32 scalar, non-finite updates so far.
      skipped_in_a_row: int32 scalar, non-finite updates since the last good one.
      decode_failures: int32 scalar, videos replaced so far, on all processes.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    decode_failures: jax.Array


def make_init(
    init_params: Callable[[jax.Array], Any], tx: optax.GradientTransformation, *, ema: bool
) -> Callable[[jax.Array], TrainState]:
    """Returns `key -> TrainState` at step 0; pure, so it can be jitted with shardings or traced."""

    def init(key: jax.Array) -> TrainState:
        params = init_params(key)
        zero = jnp.zeros((), jnp.int32)
        # A copy: two leaves of a donated state must not share one buffer.
        average = jax.tree.map(jnp.copy, params) if ema else None
        return TrainState(
            step=zero,
            params=params,
            opt_state=tx.init(params),
            ema=average,
            skipped=zero,
            skipped_in_a_row=zero,
            decode_failures=zero,
        )

    return init
