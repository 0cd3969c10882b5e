"""Whether arrays, by our paths, suit a model: what may be left out or begin anew, and why.

The rules are written once, by our paths; where the arrays came from makes no difference.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from vmae_jax.convert.engine import (
    ConversionError,
    Params,
    Report,
    flatten,
    reason_for,
    regrouped,
)
from vmae_jax.ops.patches import Grid
from vmae_jax.ops.pos_embed import resize_positions
from vmae_jax.ops.relative import linear_weights


@dataclasses.dataclass(frozen=True)
class Policy:
    """What need not agree.

    Attributes:
      dropped: (regular expression on our path, why the model may lack it).
      fresh: (regular expression on our path, why the source may lack it); these keep the values
        that the model begins with.
      replaced: (regular expression on our path, why the source's may have another shape); dropped
        and fresh at once.
      moved: (start of our path in the source, that in the model); what lies there goes on in
        another place, if the model has that and not the first, and the source not the second.
    """

    dropped: tuple[tuple[str, str], ...] = ()
    fresh: tuple[tuple[str, str], ...] = ()
    replaced: tuple[tuple[str, str], ...] = ()
    moved: tuple[tuple[str, str], ...] = ()


EXACT = Policy()
# Training starts. A pretraining network is taken as a whole or not at all: one half trained and
# the other random would be neither a start nor a continuation.
PRETRAINING = Policy(dropped=((r"(fc_norm|head)/.*", "the pretraining network has no classifier"),))
# Source: the released fine-tuning scripts, which keep the blocks and the patch embedding.
CLASSIFIER = Policy(
    dropped=(
        (r"(decoder|encoder_to_decoder)/.*|mask_token", "the classifier has no decoder"),
        (r"align/.*", "the classifier is not aligned with a teacher"),
        (r"head/(norm|proj)/.*", "a classifier predicts no features of patches"),
        (r"encoder/norm/.*", "mean pooling normalises the pooled vector instead"),
        (r"fc_norm/.*", "the classifier normalises its tokens, not what is pooled of them"),
        (r"head/.*", "the model has no head"),
    ),
    fresh=((r"(fc_norm|head|encoder/norm)/.*", "the source has none"),),
    replaced=((r"head/.*", "the number of classes differs"),),
)


# MAE-ST's go on with the norm of the encoder, on what is pooled.
CLASSIFIER_WITH_NORM = dataclasses.replace(CLASSIFIER, moved=(("encoder/norm/", "fc_norm/"),))


def starting_policy(template: Params) -> Policy:
    """How strict to be where training starts from given weights."""
    if not {"mask_token", "align"}.isdisjoint(template):
        return PRETRAINING
    marks = {"encoder/cls_token", "encoder/blocks/attn/k_bias"}
    return CLASSIFIER if marks.isdisjoint(flatten(template)) else CLASSIFIER_WITH_NORM


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
      source_grid: tokens of the source's clips; None: square, and as many slots as separable tables
        of the source tell, else as many as `grid`.

    Raises:
      ConversionError: every name and shape that disagrees and may not.
    """
    wanted = {path: tuple(leaf.shape) for path, leaf in flatten(template).items()}
    problems, dropped, fresh, notes = [], {}, {}, list(report.notes)
    fitted: dict[str, np.ndarray] = {}
    arrays, report = _moved(regrouped(arrays, wanted), report, policy, wanted)
    source_grid = source_grid or _separable_grid(arrays)
    for path, array in arrays.items():
        if path not in wanted:
            reason = reason_for(path, policy.dropped)
            if reason is None:
                kept = "; config.model.positions='frozen' would keep it"
                hint = kept if path == "encoder/pos_embed" else ""
                problems.append(f"{path} {array.shape} has no place in the model{hint}")
            dropped[path] = reason or ""
        elif array.shape == wanted[path]:
            fitted[path] = array
        elif reason := reason_for(path, policy.replaced):
            reason += f" ({array.shape[-1]} in the source, {wanted[path][-1]} in the model)"
            dropped[path] = fresh[path] = reason
        elif _RELATIVE.search(path) and _but_for_rows(array.shape, wanted[path]):
            rows = array.shape[1], wanted[path][1]
            fitted[path] = np.einsum("wr,brc->bwc", linear_weights(*rows), array)
            notes.append(f"{path} was resampled from {rows[0]} to {rows[1]} distances")
        elif "pos_embed" in path and grid and array.shape[1:] == wanted[path][1:]:
            try:
                fitted[path], note = _resized(path, array, wanted[path][0], grid, source_grid)
                notes.append(note)
            except ValueError as error:
                problems.append(f"{path}: {error}")
        else:
            problems.append(f"{path}: {array.shape} in the source, {wanted[path]} in the model")
    if grid and not any("pos_embed" in path or _RELATIVE.search(path) for path in wanted):
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


def _moved(
    arrays: Mapping[str, np.ndarray], report: Report, policy: Policy, wanted: Mapping[str, object]
) -> tuple[Mapping[str, np.ndarray], Report]:
    """Arrays and report with the paths that the policy moves."""
    paths = {}
    for path in arrays:
        for start, end in policy.moved:
            new = end + path.removeprefix(start)
            if path.startswith(start) and path not in wanted and new in wanted:
                paths[path] = path if new in arrays else new
    mapped = {
        name: tuple(paths.get(place, place) for place in places)
        for name, places in report.mapped.items()
    }
    moved = {paths.get(path, path): array for path, array in arrays.items()}
    return moved, dataclasses.replace(report, mapped=mapped)


def _resized(
    path: str, table: np.ndarray, rows: int, grid: Grid, source_grid: Grid | None
) -> tuple[np.ndarray, str]:
    """A table of positions of another grid, with `rows` rows, and what became of it in words.

    Raises:
      ValueError: it is no table of such a grid.
    """
    if path.endswith("pos_embed_spatial"):
        grid = (1, *grid[1:])
        origin = (1, *source_grid[1:]) if source_grid else _square_grid(len(table), slots=1)
    elif path.endswith("pos_embed_temporal"):
        grid, origin = (grid[0], 1, 1), (len(table), 1, 1)
    else:
        class_rows = rows - math.prod(grid)
        origin = source_grid or _square_grid(len(table) - class_rows, slots=grid[0])
        note = f"{path} was interpolated from a grid {origin} to {tuple(grid)}"
        places = resize_positions(table[class_rows:], origin, grid)
        return np.concatenate([table[:class_rows], places]), note
    note = f"{path} was interpolated from a grid {origin} to {tuple(grid)}"
    return resize_positions(table, origin, grid), note


def _separable_grid(arrays: Mapping[str, np.ndarray]) -> Grid | None:
    """The grid of separable tables of square pictures; None where there are none."""
    slots, places = (arrays.get(f"encoder/pos_embed_{kind}") for kind in ("temporal", "spatial"))
    if slots is None or places is None or math.isqrt(len(places)) ** 2 != len(places):
        return None
    return len(slots), math.isqrt(len(places)), math.isqrt(len(places))


# Tables of relative positions of a stack of blocks, [blocks, rows, head_dim].
_RELATIVE = re.compile(r"/rel_pos_[thw]$")


def _but_for_rows(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return (found[0], *found[2:]) == (wanted[0], *wanted[2:])


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
