"""Heads for some of the classes that a classifier was trained on: K400, K600, K700 out of K710."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from vmae_jax.convert.engine import ConversionError
from vmae_jax.convert.sources import Source


def read_label_map(path: str) -> tuple[int, ...]:
    """Reads a JSON list whose entry c is the row of the trained head for the new class c.

    Raises:
      ConversionError: no such file, or something else than a list of different row numbers.
    """
    try:
        entries = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"the label map {path} cannot be read: {error}") from error
    if not isinstance(entries, list) or not all(type(entry) is int for entry in entries):
        raise ConversionError(f"the label map {path} is no list of whole numbers")
    if not entries:
        raise ConversionError(f"the label map {path} is empty")
    if len(set(entries)) < len(entries):
        twice = next(entry for entry in entries if entries.count(entry) > 1)
        raise ConversionError(f"the label map {path} names row {twice} for more than one class")
    return tuple(entries)


def map_head(source: Source, label_map: Sequence[int]) -> Source:
    """A classifier with the rows of its head that `label_map` names, in its order.

    Raises:
      ConversionError: there is no head, or it has fewer rows.

    Source: VideoMAE V2's released fine-tuning script and its label_710to{400,600,700}.json.
    """
    if "head/bias" not in source.arrays:
        raise ConversionError("the weights have no classifier that a label map could apply to")
    bias, kernel = source.arrays["head/bias"], source.arrays["head/kernel"]
    rows = len(bias)
    if min(label_map) < 0 or max(label_map) >= rows:
        odd = min(label_map) if min(label_map) < 0 else max(label_map)
        raise ConversionError(f"the label map names row {odd} of a head with {rows} classes")
    index = np.asarray(label_map)
    head = {"head/kernel": np.ascontiguousarray(kernel[:, index]), "head/bias": bias[index]}
    note = f"the head is {len(index)} of the source's {rows} rows, by the label map"
    report = dataclasses.replace(source.report, notes=(*source.report.notes, note))
    return dataclasses.replace(source, arrays={**source.arrays, **head}, report=report)
