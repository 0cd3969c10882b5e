"""What one process alone knows and all must act on, carried by the step that all take anyway.

A signal reaches one process; a pipeline fails on one; each counts the videos that it replaced. But
processes must take the same steps, or they hang. So each puts its numbers into a row of a small
array that goes into the step with the batch, and reads their sums among the metrics. A process that
wishes to stop takes part with an empty batch, and such a step changes nothing on any process.
"""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vmae_jax.train.sharding import batch_sharding
from vmae_jax.train.state import TrainState
from vmae_jax.train.step import TrainStep

# Sums over all processes, by their names in the metrics of a step. Wishes are of the moment at
# which a step begins, notes belong to its batch.
WISHES = ("stops", "faults")
NOTES = ("replaced", "clips")


def rows(mesh: Mesh, values: Sequence[int]) -> jax.Array:
    """This process's part of an int32 [devices, len(values)] whose sum over devices is agreed on.

    Args:
      mesh: all devices; the first axis is laid out like a batch.
      values: modulo 2**32.
    """
    local = np.zeros((len(mesh.local_devices), len(values)), np.uint32)
    local[0] = [value % 2**32 for value in values]
    return jax.make_array_from_process_local_data(batch_sharding(mesh), local.view(np.int32))


def clips_sum(names: Sequence[str], first: int) -> int:
    """This process's share of a step's fingerprint, to be added up modulo 2**32.

    Args:
      names: of the videos in this process's part of the batch, in order.
      first: place of the first one in the global batch.
    """
    places = enumerate(names, first)
    return sum(zlib.crc32(f"{place}:{name}".encode()) for place, name in places) % 2**32


def make_agreed_step(train_step: TrainStep) -> TrainStep:
    """Returns `train_step` for a batch that also holds "wishes" and "notes"; see `rows`.

    The sums are among the metrics. If any process wishes to stop, the state comes back as it was.
    """

    def agreed_step(state: TrainState, frozen: Any, batch: Any, key: jax.Array):
        clips = {name: x for name, x in batch.items() if name not in ("wishes", "notes")}
        wishes, notes = batch["wishes"].sum(axis=0), batch["notes"].sum(axis=0)
        after, metrics = train_step(state, frozen, clips, key)
        sums = dict(zip((*WISHES, *NOTES), (*wishes, *notes), strict=True))
        failures = state.decode_failures + sums.pop("replaced")
        after = dataclasses.replace(after, decode_failures=failures)
        go_on = wishes.sum() == 0
        after = jax.tree.map(lambda new, old: jnp.where(go_on, new, old), after, state)
        return after, metrics | sums | {"decode_failures": failures}

    return agreed_step
