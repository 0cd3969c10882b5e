"""Saving and restoring a run with orbax: asynchronous, atomic, resumable on another mesh.

Every process writes and reads the shards of its own devices and nothing else. What the processes
must agree on, whether a save or a restore has worked on all of them, is asked in between.

A checkpoint holds five named parts: `params`, `ema` (if kept), `progress` (optimizer state and
counters), `data` (position in the epoch order and the facts that define it) and `meta` (resolved
config and versions). Weights can so be loaded without the rest.
"""

import functools
import importlib.metadata
import logging
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from vmae_jax import __version__, distributed, rules
from vmae_jax.errors import UserError
from vmae_jax.train.state import TrainState

FOLDER = "checkpoints"
_SAVE_TIMEOUT_S = 600  # also how long a process waits for one whose own part could not be written
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


_log = logging.getLogger(__name__)


class CheckpointError(UserError, ValueError):
    """A checkpoint that does not fit or cannot be read; names the file and what to do."""


def versions() -> dict[str, str]:
    """Versions of this package and of those that decide what a checkpoint means."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"vmae_jax": __version__, **found}


def _context(*, alone: bool = False) -> ocp.Context:
    """Orbax's options; `alone`: for a process that reads by itself and waits for no other."""
    registry = ocp.handlers.local_registry()
    for name in ("data", "meta"):
        registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)
    context = ocp.Context()
    context.checkpointables.registry = registry
    context.asynchronous.timeout_secs = _SAVE_TIMEOUT_S
    if alone:
        me = distributed.coordination_id()
        context.multiprocessing.primary_host = me
        context.multiprocessing.active_processes = {me}
    return context


class Checkpoints:
    """The checkpoints of one workdir. All processes call the same methods in the same order.

    Attributes:
      failed_saves: saves that did not work since this was made.
    """

    def __init__(self, workdir: str, *, keep_last: int, keep_every: int) -> None:
        """Opens or creates `workdir/checkpoints`; removes what a killed save left there.

        Args:
          workdir: folder of the run.
          keep_last: number of newest checkpoints that are kept.
          keep_every: steps whose multiples are kept for good; 0 for none.
        """
        policies = ocp.training.preservation_policies
        keep = [policies.LatestN(keep_last)]
        if keep_every:
            keep.append(policies.EveryNSteps(keep_every))
        self._folder = pathlib.Path(workdir).absolute() / FOLDER
        self._checkpointer = ocp.training.Checkpointer(
            self._folder,
            context=_context(),
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=jax.process_index() == 0,
        )
        self._pending: Callable[[], Any] | None = None
        self._pending_step = 0
        self._failed_steps: set[int] = set()
        self.failed_saves = 0

    @property
    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(c.step for c in self._checkpointer.checkpoints)

    def save(
        self, state: TrainState, *, step: int, data: Mapping[str, Any], config: Mapping[str, Any]
    ) -> None:
        """Starts a save; returns once the arrays are copied, and writes in the background.

        Args:
          state: the state after `step` updates.
          step: number of updates in it; a step already saved is left as it is.
          data: JSON-able position of the data pipeline after the same number of batches.
          config: the resolved config.
        """
        self.wait()
        self._remove_remains()
        if step in self.steps:
            return
        parts = {
            **_array_parts(state),
            "data": dict(data),
            "meta": {"config": dict(config), "versions": versions()},
        }
        self._pending_step = step
        try:
            response = self._checkpointer.save_checkpointables_async(step, parts, force=True)
            self._pending = response.result
        except Exception as error:  # told by `wait`, in which all processes hear of it
            self._pending = functools.partial(_throw, error)

    def wait(self) -> bool:
        """Blocks until the last save is over; whether it is on disk, on all processes.

        One that failed on any of them (a full disk, most often) is reported, its remains are
        removed, and the next save is tried as if it had not been.
        """
        if self._pending is None:
            return True
        pending, self._pending = self._pending, None
        problem = ""
        try:
            pending()
        except Exception as error:  # orbax and tensorstore raise many kinds
            problem = f"{type(error).__name__}: {error!s:.300}"
        if distributed.all_agree(not problem):
            return True
        self.failed_saves += 1
        _log.error(
            "CHECKPOINT OF STEP %d COULD NOT BE SAVED (%s); the one before it stays the newest.",
            *(self._pending_step, problem or "another process says why"),
        )
        self._failed_steps.add(self._pending_step)
        self._remove_remains()
        distributed.all_agree(True)  # nobody looks into the folder before that is done
        self._checkpointer.reload()
        return False

    def close(self) -> None:
        """Waits for the last save and releases the folder."""
        try:
            self.wait()
        finally:
            try:
                self._checkpointer.close()
            except Exception:  # orbax raises the error of a failed save once more
                if not self.failed_saves:
                    raise
            self._remove_remains()

    def _remove_remains(self) -> None:
        """Removes what failed saves have written, which is under names of its own.

        Again and again: threads of a failed save may still be writing when it is reported.
        """
        if jax.process_index() == 0:
            for step in self._failed_steps:
                for path in self._folder.glob(f"{step}.*tmp*"):
                    shutil.rmtree(path, ignore_errors=True)

    def restore_latest(
        self, abstract_state: TrainState
    ) -> tuple[TrainState, dict[str, Any], dict[str, Any]] | None:
        """Restores the newest checkpoint that all processes can read, straight into its layout.

        A checkpoint that one of them cannot read is passed over with a loud warning, and left in
        place under another name so that the run can save that step again.

        Args:
          abstract_state: `jax.ShapeDtypeStruct`s with shardings.

        Returns:
          (state, data, meta), or None where there is no checkpoint.

        Raises:
          CheckpointError: a checkpoint holds other parameters than the config asks for, or none
            of those present can be read.
        """
        steps = distributed.from_first(self.steps)  # others may see a shared folder late
        for step in reversed(steps):
            parts = self._read(step, abstract_state)
            if not distributed.all_agree(parts is not None):
                if parts is not None:
                    _log.error(
                        "CHECKPOINT %s CANNOT BE READ BY ANOTHER PROCESS; falling back to the one "
                        "before.",
                        self._folder / str(step),
                    )
                continue
            if step != steps[-1]:
                self._set_aside([s for s in steps if s > step])
            return _state_of(parts), parts["data"], parts["meta"]
        if steps:
            raise CheckpointError(
                f"none of the checkpoints {steps} in {self._folder} can be read; move the folder "
                "away to start anew, or restore it from a copy"
            )
        return None

    def _read(self, step: int, abstract_state: TrainState) -> dict[str, Any] | None:
        """This process's shards of a checkpoint; None, and the reason in the log, if damaged."""
        path = self._folder / str(step)
        wanted = _array_parts(abstract_state)
        try:
            with _context(alone=True):
                saved = ocp.checkpointables_metadata(path).metadata
                _check_layout(path, saved, wanted)
                known = _known_to(saved["progress"], wanted["progress"])
                wanted = {**wanted, "progress": known, "data": None, "meta": None}
                return ocp.load_checkpointables(path, wanted)
        except CheckpointError:
            raise
        except Exception as error:  # orbax raises many kinds for damaged files
            if "RESOURCE_EXHAUSTED" in str(error):  # that is the memory, not the file
                raise
            _log.error(
                "CHECKPOINT %s CANNOT BE READ (%s: %.300s); falling back to the one before.",
                path, type(error).__name__, error,
            )  # fmt: skip
            return None

    def _set_aside(self, steps: list[int]) -> None:
        """Renames unreadable newer checkpoints to `<step>.unreadable` and opens the folder anew."""
        if jax.process_index() == 0:
            for step in steps:
                path = self._folder / str(step)
                path.rename(path.with_name(f"{step}.unreadable"))
        distributed.all_agree(True)
        self._checkpointer.reload()


def _throw(error: Exception) -> None:
    raise error


def read_params(path: str, *, prefer_ema: bool = True) -> tuple[Any, str, dict[str, Any]]:
    """Reads only the weights of a checkpoint of ours, whatever their names and shapes.

    Args:
      path: a workdir (its newest checkpoint is taken) or one step's folder.
      prefer_ema: take the parameter average where the checkpoint has one.

    Returns:
      (nested dict of numpy arrays, "ema" or "params", {"config": ..., "versions": ...}).

    Raises:
      CheckpointError: nothing there, or it cannot be read.
    """
    folder = checkpoint_folder(path)
    try:
        with _context(alone=True):
            saved = ocp.checkpointables_metadata(folder).metadata
            part = "ema" if prefer_ema and "ema" in saved else "params"
            # numpy leaves ask for numpy arrays, in no layout of devices.
            want = jax.tree.map(
                lambda x: np.empty(x.shape, x.dtype), saved[part], is_leaf=_has_shape
            )
            read = ocp.load_checkpointables(folder, {part: want, "meta": None})
    except Exception as error:  # orbax raises many kinds for damaged files
        raise CheckpointError(
            f"the weights in {folder} cannot be read ({type(error).__name__}: {error!s:.300})"
        ) from error
    return read[part], part, read["meta"]


def saved_config(workdir: str) -> dict[str, Any] | None:
    """The config in the newest checkpoint of a workdir that can be read; None: there is none."""
    folders = pathlib.Path(workdir).absolute().glob(f"{FOLDER}/[0-9]*")
    complete = [path for path in folders if path.name.isdigit() and _is_complete(path)]
    for folder in sorted(complete, key=lambda path: int(path.name), reverse=True):
        try:
            with _context(alone=True):
                return ocp.load_checkpointables(folder, {"meta": None})["meta"]["config"]
        except Exception as error:  # orbax raises many kinds for damaged files
            _log.warning("%s has no facts that can be read (%.300s).", folder, error)
    return None


def checkpoint_folder(path: str) -> pathlib.Path:
    """Resolves a workdir or a step's folder to the folder of one complete checkpoint."""
    given = pathlib.Path(path).absolute()
    for folder in (given / FOLDER, given):
        steps = [p for p in folder.glob("[0-9]*") if p.name.isdigit() and _is_complete(p)]
        if steps:
            return max(steps, key=lambda p: int(p.name))
    if _is_complete(given):
        return given
    raise CheckpointError(
        f"{path} holds no complete checkpoint; give a workdir or <workdir>/checkpoints/<step>"
    )


def _is_complete(path: pathlib.Path) -> bool:
    return path.is_dir() and ocp.is_orbax_checkpoint(path)


# A counter that earlier checkpoints do not have; it begins at 0 there.
_NEW_COUNTER = "decode_failures"


def _array_parts(state: TrainState) -> dict[str, Any]:
    counters = ("step", "skipped", "skipped_in_a_row", _NEW_COUNTER)
    progress = {"opt_state": state.opt_state, **{name: getattr(state, name) for name in counters}}
    parts = {"params": state.params, "progress": progress}
    return parts if state.ema is None else {**parts, "ema": state.ema}


def _known_to(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in wanted.items() if name in saved or name != _NEW_COUNTER}


def _state_of(parts: Mapping[str, Any]) -> TrainState:
    progress = {_NEW_COUNTER: parts["progress"]["step"] * 0, **parts["progress"]}
    return TrainState(params=parts["params"], ema=parts.get("ema"), **progress)


def _check_layout(path: pathlib.Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Compares names and shapes first: orbax reports a mismatch in thousands of words."""
    for part in ("params", "ema"):
        if part not in wanted:
            continue
        if part in saved and saved[part] is None:  # orbax's answer where the tree is damaged
            raise OSError(f"the names and shapes of {part!r} in {path} cannot be read")
        if part not in saved:
            raise CheckpointError(f"{path} holds no {part!r}; it has {sorted(saved)}")
        have, want = _shapes(saved[part]), _shapes(wanted[part])
        problems = [f"{name}: missing" for name in sorted(want.keys() - have.keys())]
        problems += [f"{name}: not in this model" for name in sorted(have.keys() - want.keys())]
        problems += [
            f"{name}: {have[name]} saved, {want[name]} wanted"
            for name in sorted(have.keys() & want.keys())
            if have[name] != want[name]
        ]
        if problems:
            raise CheckpointError(
                f"{path} is of another model than the config describes ({len(problems)} "
                f"differences, e.g. {'; '.join(problems[:4])}); use the config.json of its "
                "workdir, or another workdir"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_has_shape)
    return {rules.path_string(path): tuple(leaf.shape) for path, leaf in leaves}


def _has_shape(leaf: Any) -> bool:
    return hasattr(leaf, "shape")
