"""The train step: loss, gradient, clipping, update, guard. One for all systems."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from vmae_jax.ops.losses import Ratio
from vmae_jax.systems.base import Batch, System, clip_keys, compute_copy
from vmae_jax.train import optim
from vmae_jax.train.sharding import BATCH_AXES
from vmae_jax.train.state import TrainState

TrainStep = Callable[[TrainState, Any, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """What a step does beyond loss and optimizer.

    Attributes:
      clip_norm: largest global gradient norm; 0 for no clipping.
      accumulate: micro-batches that one update is summed from.
      ema_decay: decay of the parameter average; 0 for none.
    """

    clip_norm: float = 0.0
    accumulate: int = 1
    ema_decay: float = 0.0


def make_train_step(
    system: System,
    tx: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    options: StepOptions,
) -> TrainStep:
    """Returns `(state, frozen, batch, key) -> (state, metrics)`; pure: jit and donate it outside.

    An update whose loss or gradient norm is not finite changes nothing but the step number and
    the counters, and shows as `skipped = 1` in the metrics.
    """

    def ratios(params: Any, frozen: Any, batch: Batch, keys: jax.Array):
        with jax.named_scope("targets"):
            batch = jax.lax.stop_gradient(system.targets(frozen, batch, keys))
        loss, metrics = system.loss(compute_copy(params, system.compute_dtype), batch, keys, True)
        return loss.total, (loss.weight, {"loss": loss, **metrics})

    # The weight does not depend on the parameters, so the gradient of total / weight over the
    # whole batch is the summed gradient of the totals over the summed weight.
    gradient = jax.grad(ratios, has_aux=True)

    def summed_gradient(params: Any, frozen: Any, batch: Batch, keys: jax.Array):
        if options.accumulate == 1:
            return gradient(params, frozen, batch, keys)
        parts = _micro_batches({**batch, "keys": keys}, options.accumulate, system.together)
        shapes = jax.eval_shape(
            lambda part: gradient(params, frozen, *_split_keys(part)),
            jax.tree.map(lambda x: x[0], parts),
        )
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add(total, part):
            return jax.tree.map(jnp.add, total, gradient(params, frozen, *_split_keys(part))), None

        return jax.lax.scan(add, zeros, parts)[0]

    def train_step(state: TrainState, frozen: Any, batch: Batch, key: jax.Array):
        keys = clip_keys(key, state.step, batch["index"])
        grads, (weight, sums) = summed_gradient(state.params, frozen, batch, keys)
        return update(state, grads, weight, sums)

    @jax.named_scope("update")
    def update(state: TrainState, grads: Any, weight: jax.Array, sums: dict[str, Ratio]):
        grads = jax.tree.map(lambda g: g / weight, grads)
        metrics = {name: ratio.total / ratio.weight for name, ratio in sums.items()}

        norm = optax.tree.norm(grads)
        factor = optim.clip_factor(norm, options.clip_norm)
        grads = jax.tree.map(lambda g: g * factor, grads)
        direction, opt_state = tx.update(grads, state.opt_state, state.params)
        lr = schedule(state.step)
        params = jax.tree.map(lambda p, d: p - lr * d, state.params, direction)
        ema = state.ema
        if options.ema_decay:
            ema = jax.tree.map(lambda a, p: a + (1 - options.ema_decay) * (p - a), ema, params)

        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        params, opt_state, ema = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state, ema),
            (state.params, state.opt_state, state.ema),
        )
        skipped = 1 - finite.astype(jnp.int32)
        new_state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=ema,
            skipped=state.skipped + skipped,
            skipped_in_a_row=(state.skipped_in_a_row + 1) * skipped,
        )
        metrics |= {
            "lr": lr,
            "grad_norm": norm,
            "param_norm": optax.tree.norm(params),
            "skipped": skipped,
            "skipped_total": new_state.skipped,
            "skipped_in_a_row": new_state.skipped_in_a_row,
        }
        return new_state, metrics

    return train_step


def lower_step(
    train_step: Callable[..., Any], state: TrainState, frozen: Any, batch: Batch, key: jax.Array
) -> jax.stages.Lowered:
    """The one program of a run, sharded, its state donated; `compile()` it.

    Args:
      train_step: of `make_train_step`.
      state, frozen, batch, key: its arguments: arrays, or `jax.ShapeDtypeStruct`s with shardings.
    """
    # As the input's, or the second call would meet another layout.
    layout = jax.tree.map(lambda x: x.sharding, state)
    step = jax.jit(train_step, out_shardings=(layout, None), donate_argnums=0)
    return step.lower(state, frozen, batch, key)


def _micro_batches(batch: dict[str, jax.Array], count: int, together: int) -> dict[str, jax.Array]:
    """Splits `[B, ...]` into `[count, B / count, ...]` without moving a row between devices.

    Micro-batch i takes every count-th row from row i: each device, which holds a contiguous block
    of rows, keeps a part of its own block. Where one row of an array serves several clips, or the
    system needs `together` adjacent clips in one micro-batch, these stay together.
    """
    rows = min(x.shape[0] for x in batch.values())
    # `together` divides the clips of a micro-batch, so this divides the rows.
    units = math.gcd(rows, batch["index"].shape[0] // together)

    def split(x: jax.Array) -> jax.Array:
        parts = jnp.moveaxis(x.reshape(units // count, count, -1, *x.shape[1:]), 1, 0)
        parts = parts.reshape(count, x.shape[0] // count, *x.shape[1:])
        if not jax.sharding.get_abstract_mesh().empty:
            parts = jax.lax.with_sharding_constraint(parts, P(None, BATCH_AXES))
        return parts

    return {name: split(x) for name, x in batch.items()}


def _split_keys(part: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], jax.Array]:
    return {name: x for name, x in part.items() if name != "keys"}, part["keys"]
