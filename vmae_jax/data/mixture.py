"""A mixture of sources: a TOML file that says of which, how much of each, and how sampled.

    [kinetics]                        # one table a part; its name leads the names of its videos
    manifest = "k710/train.csv"       # anything that config.data.manifest takes but a mixture
    root = "k710/videos"              # of a list; default: the list's own folder

    [ssv2]
    manifest = "ssv2/train.txt"
    weight = 0.5                      # passes per epoch: half of it, the other half in the next
    stride = 2                        # these two in place of the config's
    sampling = "dense"

Paths are relative to `config.data.root` or, without one, to the folder of the TOML file.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
import json
import logging
import math
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

from vmae_jax.data import storage
from vmae_jax.data.manifest import STYLES, ManifestError
from vmae_jax.data.order import Share
from vmae_jax.data.public_sets import PREFIX
from vmae_jax.data.sampling import SAMPLINGS
from vmae_jax.data.source import Source
from vmae_jax.data.stored import StoredVideo
from vmae_jax.data.video import Limits

_log = logging.getLogger(__name__)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_templates(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(v, str) for v in pair)
        for pair in value
    )


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


# field -> (whether a value is good, what a good one is)
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "manifest": (_is_text, "a path"),
    "root": (_is_text, "a folder or bucket"),
    "weight": (_is_number, "a positive number: passes over the part in an epoch"),
    "stride": (lambda v: type(v) is int and v > 0, "a positive integer"),
    "sampling": (lambda v: v in SAMPLINGS, f"one of {', '.join(SAMPLINGS)}"),
    "style": (lambda v: v in ("auto", *STYLES), f"one of {', '.join(('auto', *STYLES))}"),
    "frame_templates": (_is_templates, "a list of [path regex, file name] pairs"),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """A source in a mixture, how much of it an epoch takes, and pipeline options of its own."""

    name: str
    source: Source
    draws: int
    overrides: Mapping[str, Any]


class Mixture(Source):
    """Several sources, one after another in number, drawn from by weight."""

    style = "mixture"

    def __init__(self, parts: tuple[Part, ...]):
        self.parts = parts
        self._stops = list(itertools.accumulate(len(part.source) for part in parts))
        facts = [[part.source.sha256, part.draws, dict(part.overrides)] for part in parts]
        text = json.dumps(facts, sort_keys=True)
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()
        labelled = [part.source for part in parts if part.source.num_classes]
        self._has_labels = len(labelled) == 1 or (
            len({source.class_names for source in labelled}) == 1 and bool(labelled[0].class_names)
        )
        if labelled and not self._has_labels:
            _log.warning(
                "The parts of the mixture do not share one classes.txt; its labels are left out."
            )
        self.class_names = labelled[0].class_names if self._has_labels else ()
        self.num_classes = labelled[0].num_classes if self._has_labels else 0

    def __len__(self) -> int:
        return self._stops[-1]

    def name(self, i: int) -> str:
        """`part/name in the part`."""
        part, place = self._place(i)
        return f"{part.name}/{part.source.name(place)}"

    def where(self, i: int) -> str:
        """See `Source`."""
        part, place = self._place(i)
        return part.source.where(place)

    def label(self, i: int) -> int:
        """See `Source`."""
        part, place = self._place(i)
        return part.source.label(place) if self._has_labels else -1

    def fetch(self, i: int, limits: Limits) -> StoredVideo:
        """See `Source`."""
        part, place = self._place(i)
        stored = part.source.fetch(place, limits)
        return stored if self._has_labels else dataclasses.replace(stored, label=-1)

    @property
    def shares(self) -> tuple[Share, ...]:
        """See `Source`."""
        return tuple(Share(len(part.source), part.draws) for part in self.parts)

    def overrides(self, i: int) -> Mapping[str, Any]:
        """See `Source`."""
        return self._place(i)[0].overrides

    def _place(self, i: int) -> tuple[Part, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"Video {i} of a mixture of {len(self)}.")
        number = bisect.bisect_right(self._stops, i)
        part = self.parts[number]
        return part, i - self._stops[number] + len(part.source)


def read_mixture(path: str, *, root: str, open_part: Callable[..., Source]) -> Mixture:
    """Reads and checks the TOML file of a mixture, and opens its parts.

    Args:
      path: the file.
      root: folder or bucket that its paths are relative to.
      open_part: `open_source`, with what is common to all parts filled in.

    Raises:
      ManifestError: the file, a field or a part is unusable.
    """
    try:
        tables = tomllib.loads(storage.read(path).decode("utf-8"))
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror or error}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: not a TOML file: {error}.") from None
    if not tables:
        raise ManifestError(f"{path}: names no parts; write a table like [kinetics] for each.")
    for name, fields in tables.items():
        _check(path, name, fields)
    return Mixture(
        tuple(
            _open(path, name, fields, root=root, open_part=open_part)
            for name, fields in tables.items()
        )
    )


def _check(path: str, name: str, fields: Any) -> None:
    if not isinstance(fields, dict):
        raise ManifestError(
            f"{path}: {name!r} stands outside of a table; write a table like [kinetics] for each "
            "part and the fields below it."
        )
    for field, value in fields.items():
        if field not in _FIELDS:
            raise ManifestError(
                f"{path}, part {name}: unknown field {field!r}; the fields are "
                f"{', '.join(_FIELDS)}."
            )
        good, expected = _FIELDS[field]
        if not good(value):
            raise ManifestError(f"{path}, part {name}: {field} must be {expected}, got {value!r}.")
    if "manifest" not in fields:
        raise ManifestError(f"{path}, part {name}: the field manifest is missing.")
    if fields["manifest"].endswith(".toml"):
        raise ManifestError(f"{path}, part {name}: a mixture cannot be a part of a mixture.")


def _open(
    path: str, name: str, fields: dict[str, Any], *, root: str, open_part: Callable[..., Source]
) -> Part:
    manifest = fields["manifest"]
    if not manifest.startswith(PREFIX):
        manifest = storage.join(root, manifest)
    options = {k: fields[k] for k in ("style",) if k in fields}
    if "root" in fields:
        options["root"] = storage.join(root, fields["root"])
    if "frame_templates" in fields:
        options["templates"] = tuple(map(tuple, fields["frame_templates"]))
    try:
        source = open_part(manifest, **options)
    except ManifestError as error:
        raise ManifestError(f"{path}, part {name}: {error}") from error
    draws = round(fields.get("weight", 1) * len(source))
    if not draws:
        raise ManifestError(
            f"{path}, part {name}: weight {fields['weight']} takes none of its {len(source)} "
            "videos; raise it, or leave the part out."
        )
    overrides = {k: fields[k] for k in ("stride", "sampling") if k in fields}
    if "stride" in overrides:
        overrides["stride_overrides"] = ()  # what a part says comes first
    return Part(name, source, draws, overrides)
