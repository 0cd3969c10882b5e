"""Moves arrays between a foreign flat dict of names and our paths, both ways, strictly.

A family's table (see convert/videomae.py) says which name goes where and how the layout changes.
Nothing is silent: every foreign name is mapped, ignored for a stated reason, or an error. Whether
the arrays suit a model is asked afterwards, by our paths alone (convert/fit.py).
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from einops import rearrange

from vmae_jax import rules
from vmae_jax.errors import UserError

Params = dict[str, Any]
Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A change of array layout and its inverse."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda x: x, lambda x: x)
# PyTorch keeps linear weights as (out, in).
TRANSPOSED = Layout(lambda x: x.T, lambda x: x.T)
# A token, and a table of positions, with axes to broadcast along.
TOKEN = Layout(lambda x: rearrange(x, "1 1 d -> d"), lambda x: rearrange(x, "d -> 1 1 d"))
POSITIONS = Layout(lambda x: rearrange(x, "1 n d -> n d"), lambda x: rearrange(x, "n d -> 1 n d"))
# In place of one of our paths: these numbers have no place here, so they must be zero.
ZERO = None


@dataclasses.dataclass(frozen=True)
class Rule:
    """A foreign name, or one per block, and its place in our tree.

    Attributes:
      theirs: foreign name; "{i}" stands for the number of a block. Several names: parts of one
        array, joined along their first axis.
      ours: path in our tree, "/" between keys; the blocks are stacked on the leading axis there.
        With "{i}", the number of the first of the blocks that are stacked there: each then comes as
        a stack of its own, which `fit` joins as the model has them.
        Several: the (joined) array is cut evenly along its first axis, and `ZERO` stands for a
        piece that must be zero.
      layout: change of layout of one (joined or cut) array of one block.
    """

    theirs: str | tuple[str, ...]
    ours: str | tuple[str | None, ...]
    layout: Layout = SAME

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    @property
    def places(self) -> tuple[str | None, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    @property
    def stacked(self) -> bool:
        return "{i}" in self.parts[0]

    @property
    def grouped(self) -> bool:
        return isinstance(self.ours, str) and "{i}" in self.ours


def norm_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Of a PyTorch norm."""
    return Rule(f"{theirs}.weight", f"{ours}/scale"), Rule(f"{theirs}.bias", f"{ours}/bias")


def linear_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Of a PyTorch linear layer."""
    return (
        Rule(f"{theirs}.weight", f"{ours}/kernel", TRANSPOSED),
        Rule(f"{theirs}.bias", f"{ours}/bias"),
    )


@dataclasses.dataclass(frozen=True)
class Table:
    """Names of one family of checkpoints.

    Attributes:
      name: of the family, for messages.
      rules: where each foreign name goes. Of several spellings of one array, the first is written.
      ignored: (regular expression on the whole foreign name, reason it has no place here).
      prefixes: wrappers' prefixes, stripped from the start of foreign names, repeatedly.
    """

    name: str
    rules: tuple[Rule, ...]
    ignored: tuple[tuple[str, str], ...] = ()
    prefixes: tuple[str, ...] = ("module.", "_orig_mod.")

    def strip(self, name: str) -> str:
        """The foreign name without wrappers' prefixes."""
        while prefix := next((p for p in self.prefixes if name.startswith(p)), None):
            name = name[len(prefix) :]
        return name

    def find(self, name: str) -> tuple[Rule, int, int | None] | None:
        """The rule of a stripped foreign name, its part in it, its block (None: in none)."""
        if name in self._by_name:
            return *self._by_name[name], None
        for number in re.finditer(r"(?<=\.)\d+(?=\.)", name):
            pattern = f"{name[: number.start()]}{{i}}{name[number.end() :]}"
            if pattern in self._by_name:
                return *self._by_name[pattern], int(number[0])
        return None

    @functools.cached_property
    def _by_name(self) -> dict[str, tuple[Rule, int]]:
        return {name: (rule, part) for rule in self.rules for part, name in enumerate(rule.parts)}


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of every name.

    Attributes:
      mapped: foreign name -> our paths (with "[i]" for a block).
      ignored: foreign name -> reason.
      fresh: our path -> reason it was not in the source and keeps its initial value.
      notes: what else a reader should know.
    """

    mapped: Mapping[str, tuple[str, ...]]
    ignored: Mapping[str, str]
    fresh: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(self.mapped)} arrays mapped"]
        for title, names in (("ignored", self.ignored), ("kept at initial values", self.fresh)):
            reasons: dict[str, list[str]] = {}
            for name, reason in names.items():
                reasons.setdefault(reason, []).append(name)
            for reason, group in reasons.items():
                lines.append(f"{len(group)} {title} ({reason}): {listed(group)}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def details(self) -> str:
        """One line for every name."""
        lines = [f"{name} -> {' + '.join(paths)}" for name, paths in self.mapped.items()]
        lines += [f"{name} ignored: {reason}" for name, reason in self.ignored.items()]
        lines += [f"{path} is new: {reason}" for path, reason in self.fresh.items()]
        return "\n".join(lines)


class ConversionError(UserError, ValueError):
    """A source does not fit the table or the model; the message names every array at fault."""


def to_ours(source: Arrays, table: Table) -> tuple[dict[str, np.ndarray], Report]:
    """Foreign arrays -> arrays by our paths.

    Args:
      source: foreign name -> array, any float dtype.
      table: the family's names.

    Returns:
      (arrays, report): float32, the blocks of a stack on the leading axis.

    Raises:
      ConversionError: names without a rule, two names for one place, missing parts or blocks,
        blocks of different shapes; all problems at once.
    """
    problems: list[str] = []
    groups, ignored = _matched(source, table, problems)
    mapped: dict[str, tuple[str, ...]] = {}
    stacks: dict[str, dict[int | None, tuple[str, np.ndarray]]] = {}
    for (rule, block), parts in groups.items():
        names = ", ".join(parts.values())
        if len(parts) < len(rule.parts):
            absent = [p for i, p in enumerate(rule.parts) if i not in parts]
            problems.append(f"{names} came without {listed(absent)}".replace("{i}", str(block)))
            continue
        try:
            pieces = _pieces([source[parts[i]] for i in range(len(parts))], rule)
        except (ValueError, RuntimeError) as error:  # einops raises the latter
            problems.append(f"{names} of shape {np.shape(source[parts[0]])}: {error}")
            continue
        labels = tuple(p if block is None else f"{p}[{block}]" for p in pieces)
        if rule.grouped:
            labels = tuple(label.replace("/{i}/", "/") for label in labels)
            pieces = {p.replace("{i}", f"{block:02}"): a[None] for p, a in pieces.items()}
            block = None
        mapped |= dict.fromkeys(parts.values(), labels or ("zero, as it must be",))
        for path, array in pieces.items():
            stack = stacks.setdefault(path, {})
            if block in stack:
                problems.append(f"{names} and {stack[block][0]} are the same array")
            stack.setdefault(block, (names, array))

    arrays = {path: _stacked(path, stack, problems) for path, stack in stacks.items()}
    if problems:
        raise ConversionError(
            f"the source does not fit the table '{table.name}':\n  " + "\n  ".join(problems)
        )
    return arrays, Report(mapped, ignored)


def to_theirs(params: Params, table: Table) -> dict[str, np.ndarray]:
    """Our parameters (or any tree of their structure, such as gradients) under foreign names.

    Raises:
      ConversionError: a path has no rule in the table.
    """
    by_path = {
        ours: (rule, place)
        for rule in reversed(table.rules)
        for place, ours in enumerate(rule.places)
    }
    pieces: dict[tuple[Rule, int | None], dict[int, np.ndarray]] = {}
    unknown = []
    for path, leaf in flatten(params).items():
        first, pattern = 0, path
        if number := _GROUP.search(path):
            first, pattern = int(number[0]), f"{path[: number.start()]}{{i}}{path[number.end() :]}"
        if pattern not in by_path:
            unknown.append(path)
            continue
        (rule, place), array = by_path[pattern], np.asarray(leaf)
        for block, piece in enumerate(array, first) if rule.stacked else [(None, array)]:
            pieces.setdefault((rule, block), {})[place] = rule.layout.to_theirs(piece)
    out: dict[str, np.ndarray] = {}
    for (rule, block), found in pieces.items():
        if len(found) < len(rule.places):
            unknown.append(f"{', '.join(rule.places[place] for place in found)} alone")
            continue
        joined = [found[place] for place in range(len(found))]
        joined = joined[0] if len(joined) == 1 else np.concatenate(joined)
        for name, part in zip(rule.parts, _cut(joined, len(rule.parts)), strict=True):
            out[name.replace("{i}", str(block))] = np.ascontiguousarray(part)
    if unknown:
        raise ConversionError(f"the table '{table.name}' has no name for {listed(unknown)}")
    return out


# The number of the first of a group of blocks, in a path of ours.
_GROUP = re.compile(r"(?<=blocks/)\d+(?=/)")


def regrouped(
    arrays: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Arrays whose blocks are stacked in the groups in which a model has them.

    Args:
      arrays: our path -> array.
      wanted: our path -> shape, of the model.

    Returns:
      our path -> array; blocks that do not make up a group of the model as they came.
    """
    rows: dict[tuple[str, int], np.ndarray] = {}
    origin: dict[tuple[str, int], str] = {}
    for path, array in arrays.items():
        if number := _GROUP.search(path):
            for block, row in enumerate(array, int(number[0])):
                key = _GROUP.sub("", path), block
                rows[key], origin[key] = row, path
    joined, used = {}, set()
    for path, shape in wanted.items():
        if not (number := _GROUP.search(path)):
            continue
        keys = [(_GROUP.sub("", path), int(number[0]) + i) for i in range(shape[0])]
        group = [rows[key] for key in keys if key in rows]
        if len(group) == len(keys) and len({row.shape for row in group}) == 1:
            joined[path] = group[0][None] if len(group) == 1 else np.stack(group)
            used.update(origin[key] for key in keys)
    return {path: array for path, array in arrays.items() if path not in used} | joined


def blocks_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[int, dict[str, tuple[int, ...]]]:
    """Shapes of the parameters of each block of an encoder whose blocks are stacked in groups.

    Args:
      shapes: our path -> shape.

    Returns:
      number of the block -> path inside it -> shape there.
    """
    blocks: dict[int, dict[str, tuple[int, ...]]] = {}
    for path, (count, *shape) in ((p, s) for p, s in shapes.items() if _GROUP.search(p)):
        _, _, rest = path.partition("blocks/")
        first, _, inside = rest.partition("/")
        for number in range(int(first), int(first) + count):
            blocks.setdefault(number, {})[inside] = tuple(shape)
    return blocks


def locate(name: str, table: Table) -> tuple[str, int | None]:
    """Our path and the block number (None: not in a block) of one foreign name.

    Raises:
      ConversionError: the table does not know the name, or it has no single place.
    """
    found = table.find(table.strip(name))
    if found is None or not isinstance(found[0].ours, str):
        raise ConversionError(f"{name} has no place of its own under the table '{table.name}'")
    return found[0].ours, found[2]


def flatten(tree: Params) -> dict[str, Any]:
    """Nested dict -> leaves by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {rules.path_string(path): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Any]) -> Params:
    """Leaves by path -> nested dict."""
    tree: Params = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def reason_for(name: str, patterns: Iterable[tuple[str, str]]) -> str | None:
    """The reason of the first regular expression that the whole name matches."""
    return next((reason for pattern, reason in patterns if re.fullmatch(pattern, name)), None)


def listed(names: list[str], limit: int = 8) -> str:
    """Names for a message, not more than a reader takes in."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _matched(
    source: Arrays, table: Table, problems: list[str]
) -> tuple[dict[tuple[Rule, int | None], dict[int, str]], dict[str, str]]:
    """Names by rule, block and part; and those that are ignored, with the reason."""
    groups: dict[tuple[Rule, int | None], dict[int, str]] = {}
    ignored: dict[str, str] = {}
    for full_name in source:
        name = table.strip(full_name)
        if reason := reason_for(name, table.ignored):
            ignored[full_name] = reason
        elif found := table.find(name):
            rule, part, block = found
            parts = groups.setdefault((rule, block), {})
            if part in parts:
                problems.append(f"{full_name} and {parts[part]} are the same array")
            parts.setdefault(part, full_name)
        else:
            problems.append(f"{full_name} is unknown to the table '{table.name}'")
    return groups, ignored


def _pieces(parts: list[np.ndarray], rule: Rule) -> dict[str, np.ndarray]:
    """The arrays of one rule and block, by our paths and in our layout."""
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
    pieces = {}
    for path, piece in zip(rule.places, _cut(joined, len(rule.places)), strict=True):
        if path is not ZERO:
            pieces[path] = np.asarray(rule.layout.to_ours(piece))
        elif np.any(piece):
            raise ValueError("a bias of the keys that is not zero; the model has none")
    return pieces


def _cut(array: np.ndarray, count: int) -> list[np.ndarray]:
    return [array] if count == 1 else np.split(array, count)


def _stacked(path, stack, problems) -> np.ndarray | None:
    """One array from those of its blocks, contiguous float32."""
    if None in stack:
        return np.ascontiguousarray(stack[None][1], np.float32)
    depth = max(stack) + 1
    if missing := sorted(set(range(depth)) - set(stack)):
        problems.append(f"{path}: blocks {missing} of {depth} are missing")
        return None
    blocks = [stack[i][1] for i in range(depth)]
    odd = [stack[i][0] for i in range(depth) if blocks[i].shape != blocks[0].shape]
    if odd:
        problems.append(f"{listed(odd)}: of another shape than block 0, {blocks[0].shape}")
        return None
    return np.ascontiguousarray(np.stack(blocks), np.float32)
