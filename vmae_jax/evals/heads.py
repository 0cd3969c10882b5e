"""Trains small classifiers on kept features: several learning rates at once, in one pass.

Heads with different rates lie side by side on a leading axis; they see the same batches and do not
know of each other. Batches do not depend on the number of devices.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vmae_jax.evals.passes import everywhere

_STEPS_IN_FLIGHT = 2

Head = Any


@dataclasses.dataclass(frozen=True)
class HeadRecipe:
    """How heads are trained.

    Attributes:
      init: `(key, features' shape without the first axis, classes) -> parameters` of one head.
      logits: `(parameters, float features [B, ...]) -> [B, K]` of one head.
      rates: peak learning rates, one head each.
      direction: optimizer without its rate.
      epochs: passes over the clips; the first tenth warms up, then the rate falls as a cosine to 0.
      batch: clips in a batch; at most an eighth of all.
    """

    init: Callable[[jax.Array, tuple[int, ...], int], Head]
    logits: Callable[[Head, jax.Array], jax.Array]
    rates: tuple[float, ...]
    direction: optax.GradientTransformation
    epochs: int
    batch: int


def train_heads(
    recipe: HeadRecipe, features: np.ndarray, labels: np.ndarray, *, classes: int, seed: int = 0
) -> Head:
    """Trains one head per rate.

    Args:
      recipe: what and how.
      features: [n, ...], the same on every process.
      labels: int32 [n].
      classes: K.
      seed: of their first values and the order of the clips.

    Returns:
      parameters of the heads, stacked.
    """
    batch = max(1, min(recipe.batch, len(features) // 8))
    steps = recipe.epochs * math.ceil(len(features) / batch)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, steps // 10, steps)
    factors = iter(np.asarray(jax.vmap(schedule)(np.arange(steps))))
    heads, state = _start(recipe, jax.random.key(seed), features.shape[1:], classes)
    in_flight: collections.deque[jax.Array] = collections.deque()
    for epoch in range(recipe.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(features))
        for x, y, counted in _batches(features, labels, order, batch):
            heads, state, losses = _step(recipe, heads, state, x, y, counted, next(factors))
            in_flight.append(losses)
            if len(in_flight) == _STEPS_IN_FLIGHT:  # or all batches would wait on the devices
                in_flight.popleft().block_until_ready()
    return heads


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _start(recipe, key, shape, classes):
    keys = jax.random.split(key, len(recipe.rates))
    heads = jax.vmap(lambda key: recipe.init(key, shape, classes))(keys)
    return everywhere((heads, jax.vmap(recipe.direction.init)(heads)))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _step(recipe, heads, state, x, y, counted, factor):
    """One update of all heads, and their losses; clips that fill up a batch have no weight."""

    def loss(head):
        told = optax.softmax_cross_entropy_with_integer_labels(
            recipe.logits(head, x.astype(jnp.float32)), y
        )
        return (told * counted).sum() / counted.sum()

    def update(head, state, rate):
        value, grads = jax.value_and_grad(loss)(head)
        direction, state = recipe.direction.update(grads, state, head)
        return jax.tree.map(lambda p, d: p - factor * rate * d, head, direction), state, value

    return everywhere(jax.vmap(update)(heads, state, jnp.asarray(recipe.rates)))


def find_correct(
    recipe: HeadRecipe, heads: Head, features: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """bool [heads, 2, n], whether a clip's label is the first, or among the first five answers."""
    order = np.arange(len(features))
    found = [
        np.asarray(_correct(recipe, heads, x, y))
        for x, y, _ in _batches(features, labels, order, recipe.batch)
    ]
    rows = [part[..., : recipe.batch] for part in found]  # without what fills up for the devices
    return np.concatenate(rows, axis=-1)[..., : len(features)]


@functools.partial(jax.jit, static_argnums=0)
def _correct(recipe, heads, x, y):
    logits = jax.vmap(recipe.logits, in_axes=(0, None))(heads, x.astype(jnp.float32))
    return everywhere(jax.vmap(lambda answers: correct_at(answers, y))(logits))


def correct_at(answers: jax.Array, labels: jax.Array) -> jax.Array:
    """bool [2, B], whether the label is first, or among the first five, of answers [B, K].

    An answer that is not finite is never right.
    """
    own = jnp.take_along_axis(answers, labels[:, None], axis=1)
    ahead = (answers > own).sum(axis=1)
    # Of equal answers, those of smaller classes come first.
    ahead += ((answers == own) & (jnp.arange(answers.shape[1]) < labels[:, None])).sum(axis=1)
    return jnp.stack([jnp.isfinite(own[:, 0]) & (ahead < k) for k in (1, 5)])


def _batches(
    features: np.ndarray, labels: np.ndarray, order: np.ndarray, batch: int
) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
    """Batches of equal size over the mesh, the last one filled up with clips that do not count."""
    mesh = jax.sharding.get_mesh()
    rows = math.ceil(batch / max(mesh.size, 1)) * max(mesh.size, 1)
    for begin in range(0, len(order), batch):
        chosen = order[begin : begin + batch]
        counted = np.zeros(rows, np.float32)
        counted[: len(chosen)] = 1
        chosen = np.pad(chosen, (0, rows - len(chosen)))
        yield tuple(spread(x) for x in (features[chosen], labels[chosen], counted))


def spread(array: np.ndarray) -> jax.Array:
    """An array that every process has, its rows over the devices of the mesh that is set."""
    return _placed(array, P(jax.sharding.get_mesh().axis_names))


def copied(array: np.ndarray) -> jax.Array:
    """An array that every process has, whole on each device of the mesh that is set."""
    return _placed(array, P())


def _placed(array: np.ndarray, spec: P) -> jax.Array:
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jnp.asarray(array)
    layout = NamedSharding(mesh, spec)
    return jax.make_array_from_callback(array.shape, layout, lambda index: array[index])
