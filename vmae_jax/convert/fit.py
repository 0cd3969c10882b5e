"""Whether arrays, by our paths, suit a model: what may be left out or begin anew, and why.

The rules are written once, by our paths; where the arrays came from makes no difference.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from vmae_jax.convert.engine import ConversionError, Params, Report, flatten, reason_for
from vmae_jax.convert.positions import resize_positions
from vmae_jax.ops.patches import Grid


@dataclasses.dataclass(frozen=True)
class Policy:
    """What need not agree.

    Attributes:
      dropped: (regular expression on our path, why the model may lack it).
      fresh: (regular expression on our path, why the source may lack it); these keep the values
        that the model begins with.
      replaced: (regular expression on our path, why the source's may have another shape); dropped
        and fresh at once.
    """

    dropped: tuple[tuple[str, str], ...] = ()
    fresh: tuple[tuple[str, str], ...] = ()
    replaced: tuple[tuple[str, str], ...] = ()


EXACT = Policy()
# Training starts. A pretraining network is taken as a whole or not at all: one half trained and
# the other random would be neither a start nor a continuation.
PRETRAINING = Policy(dropped=((r"(fc_norm|head)/.*", "the pretraining network has no classifier"),))
# Source: the released fine-tuning scripts, which keep the blocks and the patch embedding.
CLASSIFIER = Policy(
    dropped=(
        (r"(decoder|encoder_to_decoder)/.*|mask_token", "the classifier has no decoder"),
        (r"encoder/norm/.*", "mean pooling normalises the pooled vector instead"),
        (r"fc_norm/.*", "the classifier normalises its tokens, not what is pooled of them"),
        (r"head/.*", "the model has no head"),
    ),
    fresh=((r"(fc_norm|head|encoder/norm)/.*", "the source has none"),),
    replaced=((r"head/.*", "the number of classes differs"),),
)


def starting_policy(template: Params) -> Policy:
    """How strict to be where training starts from given weights."""
    return PRETRAINING if "decoder" in template else CLASSIFIER


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Arrays for a model.

    Attributes:
      arrays: our path -> float32 array of the model's shape; without those of `report.fresh`.
      report: what became of every name and parameter.
    """

    arrays: dict[str, np.ndarray]
    report: Report


def fit(
    arrays: Mapping[str, np.ndarray],
    report: Report,
    template: Params,
    *,
    policy: Policy = EXACT,
    grid: Grid | None = None,
    source_grid: Grid | None = None,
) -> Fitted:
    """Fits arrays to a model.

    Args:
      arrays, report: from `engine.to_ours` or of our own checkpoint.
      template: the model's nested dict, arrays or `jax.ShapeDtypeStruct`: names and shapes.
      policy: what need not agree.
      grid: tokens of the model's clips; where given, a learned table of positions of another grid
        is interpolated.
      source_grid: tokens of the source's clips; None: as many slots as `grid`, and square.

    Raises:
      ConversionError: every name and shape that disagrees and may not.
    """
    wanted = {path: tuple(leaf.shape) for path, leaf in flatten(template).items()}
    problems, dropped, fresh, notes = [], {}, {}, list(report.notes)
    fitted: dict[str, np.ndarray] = {}
    for path, array in arrays.items():
        if path not in wanted:
            reason = reason_for(path, policy.dropped)
            if reason is None:
                problems.append(f"{path} {array.shape} has no place in the model")
            dropped[path] = reason or ""
        elif array.shape == wanted[path]:
            fitted[path] = array
        elif reason := reason_for(path, policy.replaced):
            reason += f" ({array.shape[-1]} in the source, {wanted[path][-1]} in the model)"
            dropped[path] = fresh[path] = reason
        elif path.endswith("pos_embed") and grid and array.shape[1:] == wanted[path][1:]:
            try:
                origin = source_grid or _square_grid(array.shape[0], slots=grid[0])
                fitted[path] = resize_positions(array, origin, grid)
                notes.append(f"{path} was interpolated from a grid {origin} to {tuple(grid)}")
            except ValueError as error:
                problems.append(f"{path}: {error}")
        else:
            problems.append(f"{path}: {array.shape} in the source, {wanted[path]} in the model")
    if grid and not any(path.endswith("pos_embed") for path in wanted):
        notes.append(f"positions are a fixed sinusoid, which the model computes for {tuple(grid)}")
    for path in wanted.keys() - arrays.keys():
        if reason := reason_for(path, policy.fresh):
            fresh[path] = reason
        else:
            problems.append(f"{path} {wanted[path]} is missing from the source")
    if problems:
        raise ConversionError(
            "the weights do not fit the model:\n  " + "\n  ".join(_summary(sorted(problems)))
        )
    return Fitted(fitted, _updated(report, dropped, fresh, notes))


def _updated(report: Report, dropped, fresh, notes) -> Report:
    """The report with the names of dropped arrays moved to those that are ignored."""
    mapped, ignored = {}, dict(report.ignored)
    for name, paths in report.mapped.items():
        reasons = [dropped.get(path.split("[")[0]) for path in paths]
        if all(reasons):
            ignored[name] = reasons[0]
        else:
            mapped[name] = paths
    return Report(mapped, ignored, dict(sorted(fresh.items())), tuple(notes))


def _square_grid(tokens: int, *, slots: int) -> Grid:
    """The grid that the released scripts take for granted."""
    side = math.isqrt(tokens // slots)
    if slots * side * side != tokens:
        raise ValueError(
            f"{tokens} positions are not {slots} slots of a square picture, and no config beside "
            "the weights tells their grid"
        )
    return slots, side, side


def _summary(problems: list[str], limit: int = 20) -> list[str]:
    more = len(problems) - limit
    return problems if more <= 0 else [*problems[:limit], f"and {more} more"]
