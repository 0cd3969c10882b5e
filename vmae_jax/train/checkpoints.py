"""Saving and restoring a run with orbax: asynchronous, atomic, resumable on another mesh.

A checkpoint holds five named parts: `params`, `ema` (if kept), `progress` (optimizer state and
counters), `data` (position in the epoch order and the facts that define it) and `meta` (resolved
config and versions). Weights can so be loaded without the rest.
"""

import importlib.metadata
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from vmae_jax import __version__, rules
from vmae_jax.errors import UserError
from vmae_jax.train.state import TrainState

FOLDER = "checkpoints"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


_log = logging.getLogger(__name__)


class CheckpointError(UserError, ValueError):
    """A checkpoint that does not fit or cannot be read; names the file and what to do."""


def versions() -> dict[str, str]:
    """Versions of this package and of those that decide what a checkpoint means."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"vmae_jax": __version__, **found}


def _context() -> ocp.Context:
    registry = ocp.handlers.local_registry()
    for name in ("data", "meta"):
        registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


class Checkpoints:
    """The checkpoints of one workdir."""

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
        self._context = _context()
        self._checkpointer = ocp.training.Checkpointer(
            self._folder,
            context=self._context,
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=jax.process_index() == 0,
        )
        self._pending: Any = None

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
        if step in self.steps:
            return
        parts = {
            **_array_parts(state),
            "data": dict(data),
            "meta": {"config": dict(config), "versions": versions()},
        }
        self._pending = self._checkpointer.save_checkpointables_async(step, parts, force=True)

    def wait(self) -> None:
        """Blocks until the last save is on disk; raises what went wrong with it."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Waits for the last save and releases the folder."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def restore_latest(
        self, abstract_state: TrainState
    ) -> tuple[TrainState, dict[str, Any], dict[str, Any]] | None:
        """Restores the newest readable checkpoint straight into its target layout.

        A checkpoint that cannot be read is passed over with a loud warning, and left in place
        under another name so that the run can save that step again.

        Args:
          abstract_state: `jax.ShapeDtypeStruct`s with shardings.

        Returns:
          (state, data, meta), or None where there is no checkpoint.

        Raises:
          CheckpointError: a checkpoint holds other parameters than the config asks for, or none
            of those present can be read.
        """
        steps = self.steps
        for step in reversed(steps):
            path = self._folder / str(step)
            try:
                _check_layout(path, _array_parts(abstract_state), self._context)
                parts = self._checkpointer.load_checkpointables(
                    step, {**_array_parts(abstract_state), "data": None, "meta": None}
                )
            except CheckpointError:
                raise
            except Exception as error:  # orbax raises many kinds for damaged files
                if "RESOURCE_EXHAUSTED" in str(error):  # that is the memory, not the file
                    raise
                _log.error(
                    "CHECKPOINT %s CANNOT BE READ (%s: %.300s); falling back to the one before.",
                    path, type(error).__name__, error,
                )  # fmt: skip
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

    def _set_aside(self, steps: list[int]) -> None:
        """Renames unreadable newer checkpoints to `<step>.unreadable` and opens the folder anew."""
        if jax.process_index() == 0:
            for step in steps:
                path = self._folder / str(step)
                path.rename(path.with_name(f"{step}.unreadable"))
        self._checkpointer.reload()


def load_params(path: str, abstract_params: Any, *, prefer_ema: bool = False) -> Any:
    """Loads only the weights of a checkpoint of ours, in the given layout.

    Args:
      path: a workdir (its newest checkpoint is taken) or one step's folder.
      abstract_params: nested dict of `jax.ShapeDtypeStruct`, with shardings if there is a mesh.
      prefer_ema: take the parameter average where the checkpoint has one.

    Raises:
      CheckpointError: nothing there, or other names or shapes than asked for.
    """
    folder = checkpoint_folder(path)
    context = _context()
    with context:
        saved = ocp.checkpointables_metadata(folder).metadata
        part = "ema" if prefer_ema and "ema" in saved else "params"
        _check_layout(folder, {part: abstract_params}, context)
        return ocp.load_checkpointables(folder, {part: abstract_params})[part]


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


def _array_parts(state: TrainState) -> dict[str, Any]:
    counters = {
        "step": state.step,
        "skipped": state.skipped,
        "skipped_in_a_row": state.skipped_in_a_row,
    }
    parts = {"params": state.params, "progress": {"opt_state": state.opt_state, **counters}}
    return parts if state.ema is None else {**parts, "ema": state.ema}


def _state_of(parts: Mapping[str, Any]) -> TrainState:
    return TrainState(params=parts["params"], ema=parts.get("ema"), **parts["progress"])


def _check_layout(path: pathlib.Path, wanted: Mapping[str, Any], context: ocp.Context) -> None:
    """Compares names and shapes first: orbax reports a mismatch in thousands of words."""
    with context:
        saved = ocp.checkpointables_metadata(path).metadata
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
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {rules.path_string(path): tuple(leaf.shape) for path, leaf in leaves}
