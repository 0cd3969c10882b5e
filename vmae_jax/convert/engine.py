"""Moves weights between a foreign flat dict of names and our nested dict, both ways, strictly.

A family's table (see convert/videomae.py) says which name goes where and how the layout changes.
Nothing is silent: every foreign name is mapped, ignored for a stated reason, or an error.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

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


@dataclasses.dataclass(frozen=True)
class Rule:
    """One foreign name, or one per block, and its place in our tree.

    Attributes:
      theirs: foreign name; "{i}" stands for the number of a block.
      ours: path in our tree, "/" between keys; the blocks are stacked on the leading axis there.
      layout: change of layout of one array (of one block).
    """

    theirs: str
    ours: str
    layout: Layout = SAME

    @property
    def stacked(self) -> bool:
        return "{i}" in self.theirs


@dataclasses.dataclass(frozen=True)
class Table:
    """Names of one family of checkpoints.

    Attributes:
      name: of the family, for messages.
      rules: where each foreign name goes.
      ignored: (regular expression on the whole foreign name, reason it has no place here).
      fresh: (regular expression on our path, reason the source may lack it: it keeps its initial
        value).
      prefixes: wrappers' prefixes, stripped from the start of foreign names, repeatedly.
    """

    name: str
    rules: tuple[Rule, ...]
    ignored: tuple[tuple[str, str], ...] = ()
    fresh: tuple[tuple[str, str], ...] = ()
    prefixes: tuple[str, ...] = ("module.", "_orig_mod.")

    def strip(self, name: str) -> str:
        """The foreign name without wrappers' prefixes."""
        while prefix := next((p for p in self.prefixes if name.startswith(p)), None):
            name = name[len(prefix) :]
        return name

    def find(self, name: str) -> tuple[Rule, int | None] | None:
        """The rule for a stripped foreign name and the number of its block (None: not in one)."""
        for rule in self.rules:
            if not rule.stacked:
                if name == rule.theirs:
                    return rule, None
                continue
            head, tail = rule.theirs.split("{i}")
            middle = name[len(head) : len(name) - len(tail)]
            if name.startswith(head) and name.endswith(tail) and re.fullmatch(r"\d+", middle):
                return rule, int(middle)
        return None


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of every name.

    Attributes:
      mapped: foreign name -> our path (with "[i]" for a block).
      ignored: foreign name -> reason.
      fresh: our path -> reason it was not in the source and keeps its initial value.
    """

    mapped: dict[str, str]
    ignored: dict[str, str]
    fresh: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.mapped)} arrays mapped"]
        for title, names in (("ignored", self.ignored), ("kept at initial values", self.fresh)):
            reasons: dict[str, list[str]] = {}
            for name, reason in names.items():
                reasons.setdefault(reason, []).append(name)
            for reason, group in reasons.items():
                lines.append(f"{len(group)} {title} ({reason}): {_listed(group)}")
        return "\n".join(lines)


class ConversionError(UserError, ValueError):
    """A source does not fit the table or the model; the message names every array at fault."""


def import_arrays(source: Arrays, table: Table, template: Params) -> tuple[Params, Report]:
    """Foreign arrays -> our parameters.

    Args:
      source: foreign name -> array, any float dtype.
      table: the family's names.
      template: our parameter tree, arrays or `jax.ShapeDtypeStruct`; fixes structure and shapes.
        Where the source may lack a parameter (`table.fresh`), the template's leaf is returned.

    Returns:
      (params, report): float32 numpy leaves in the structure of `template`.

    Raises:
      ConversionError: names without a rule, two names for one place, missing blocks or parameters,
        or shapes that differ; all problems at once.
    """
    wanted = dict(_flatten(template))
    problems: list[str] = []
    found: dict[str, dict[int | None, tuple[str, np.ndarray]]] = {}
    mapped, ignored, fresh = {}, {}, {}
    for full_name, array in source.items():
        name = table.strip(full_name)
        # A reason to ignore wins over a rule: tables for a part of a checkpoint share the rules.
        if reason := _reason(name, table.ignored):
            ignored[full_name] = reason
        elif match := table.find(name):
            rule, block = match
            place = found.setdefault(rule.ours, {})
            if block in place:
                problems.append(f"{full_name} and {place[block][0]} are the same array")
                continue
            try:
                place[block] = (full_name, np.asarray(rule.layout.to_ours(np.asarray(array))))
            except (ValueError, RuntimeError) as error:  # einops raises the latter
                problems.append(f"{full_name} of shape {np.shape(array)}: {error}")
                continue
            mapped[full_name] = rule.ours if block is None else f"{rule.ours}[{block}]"
        else:
            problems.append(f"{full_name} is unknown to the table '{table.name}'")

    leaves = {}
    for path, leaf in wanted.items():
        if path in found:
            array = _assembled(path, found.pop(path), tuple(leaf.shape), problems)
            leaves[path] = array
        elif reason := _reason(path, table.fresh):
            fresh[path] = reason
            leaves[path] = leaf
        else:
            problems.append(f"{path} {tuple(leaf.shape)} is missing from the source")
    for path, place in found.items():
        names = _listed([name for name, _ in place.values()])
        problems.append(f"the model has no {path}, the source does: {names}")
    if problems:
        raise ConversionError(
            f"the source does not fit the model under the table '{table.name}':\n  "
            + "\n  ".join(problems)
        )
    return _unflatten(leaves), Report(mapped, ignored, fresh)


def export_arrays(params: Params, table: Table) -> dict[str, np.ndarray]:
    """Our parameters (or any tree of their structure, such as gradients) under foreign names.

    Raises:
      ConversionError: a path has no rule in the table.
    """
    rules = {rule.ours: rule for rule in table.rules}
    out: dict[str, np.ndarray] = {}
    unknown = []
    for path, leaf in _flatten(params):
        if path not in rules:
            unknown.append(path)
            continue
        rule, array = rules[path], np.asarray(leaf)
        if not rule.stacked:
            out[rule.theirs] = np.ascontiguousarray(rule.layout.to_theirs(array))
            continue
        for i, block in enumerate(array):
            name = rule.theirs.replace("{i}", str(i))
            out[name] = np.ascontiguousarray(rule.layout.to_theirs(block))
    if unknown:
        raise ConversionError(f"the table '{table.name}' has no name for {_listed(unknown)}")
    return out


def locate(name: str, table: Table) -> tuple[str, int | None]:
    """Our path and the block number (None: not in a block) of one foreign name.

    Raises:
      ConversionError: the table does not know the name.
    """
    match = table.find(table.strip(name))
    if match is None:
        raise ConversionError(f"{name} is unknown to the table '{table.name}'")
    return match[0].ours, match[1]


def _assembled(path, place, shape, problems) -> np.ndarray | None:
    """One leaf from its arrays: stacked over blocks where there are any, checked and float32."""
    if None in place:
        array = place[None][1]
    else:
        missing = sorted(set(range(shape[0])) - set(place))
        surplus = sorted(set(place) - set(range(shape[0])))
        if missing or surplus:
            problems.append(
                f"{path} has {shape[0]} blocks in the model; the source lacks {missing} "
                f"and has {surplus} too many"
            )
            return None
        blocks = [place[i][1] for i in range(shape[0])]
        odd = [place[i][0] for i in range(shape[0]) if blocks[i].shape != shape[1:]]
        if odd:
            problems.append(
                f"{_listed(odd)}: {place[0][1].shape} in our layout where the model has {shape[1:]}"
            )
            return None
        array = np.stack(blocks)
    if array.shape != shape:
        problems.append(
            f"{place[None][0]}: {array.shape} in our layout where the model has {shape}"
        )
        return None
    return np.ascontiguousarray(array, np.float32)


def _reason(name: str, patterns: tuple[tuple[str, str], ...]) -> str | None:
    return next((reason for pattern, reason in patterns if re.fullmatch(pattern, name)), None)


def _listed(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _flatten(tree: Params) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield "/".join(str(key.key) for key in path), leaf


def _unflatten(leaves: Mapping[str, Any]) -> Params:
    tree: Params = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
