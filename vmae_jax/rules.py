"""Ordered (path regex, value) tables: how sharding, weight decay and data rules are read."""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax

Value = TypeVar("Value")


def match(rules: Sequence[tuple[str, Value]], path: str, *, what: str = "rule") -> Value:
    """Returns the value of the first rule whose regex is found in `path`.

    Args:
      rules: (regex, value) pairs, tried in order with `re.search`.
      path: slash-separated path of a parameter or file.
      what: what the table decides; used in the error.

    Raises:
      ValueError: no rule matches. Nothing gets a value by accident.
    """
    for pattern, value in rules:
        if re.search(pattern, path):
            return value
    patterns = ", ".join(pattern for pattern, _ in rules)
    raise ValueError(f"no {what} matches {path!r}; add one to the table (tried: {patterns})")


def path_string(key_path: tuple[Any, ...]) -> str:
    """Turns a JAX key path into `encoder/blocks/attn/qkv/kernel`."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def map_with_path(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` whose function gets the leaf's path string first."""
    return jax.tree_util.tree_map_with_path(
        lambda key_path, *leaves: fn(path_string(key_path), *leaves), tree, *rest
    )
