"""Reads golden cases and compares against them. The format: a folder with `meta.json` a case."""

import dataclasses
import fnmatch
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

OPTIM_STAGES = ("schedules and parameter groups", "schedules")


def find_cases(folder: Path) -> list[Path]:
    """Every subfolder is a case, also one that we cannot read: it fails instead of vanishing."""
    if (folder / "meta.json").is_file():
        return [folder]
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")


def tests_of(path: Path) -> list[str]:
    """Parts of a case that are tests of their own: schedules and parameter groups, else [""]."""
    parts = []
    if (path / "schedule.json").is_file():
        parts.append("schedule")
    if (path / "param_groups.json").is_file():
        try:
            stages = list(json.loads((path / "param_groups.json").read_text()))
        except ValueError:  # unreadable: let its test say so, not the collection of all others
            stages = ["pretrain"]
        parts += [f"param_groups_{stage}" for stage in stages]
    return parts or [""]


@dataclasses.dataclass(frozen=True)
class Case:
    """One case; arrays under their published names and layouts."""

    path: Path
    meta: Mapping

    @classmethod
    def read(cls, path: Path) -> "Case":
        meta = path / "meta.json"
        assert meta.is_file(), f"{path} is no golden case: it has no meta.json"
        return cls(path, json.loads(meta.read_text()))

    @property
    def config(self) -> Mapping:
        return self.meta.get("config") or {}

    def arrays(self, kind: str) -> dict[str, np.ndarray]:
        """`kind`: inputs, outputs, grads or weights."""
        path = self.path / f"{kind}.safetensors"
        assert path.is_file(), f"{self.path.name} has no {path.name}"
        return load_file(path)

    def json(self, kind: str):
        return json.loads((self.path / f"{kind}.json").read_text())

    def tolerance(self, group: str, name: str, reference: np.ndarray) -> tuple[float, float]:
        """(rtol, atol) from the case; where it gives none, the format's general rule."""
        given = self.meta.get("tolerances", {}).get(group, {})
        for pattern, tolerance in given.items():
            if name == pattern or fnmatch.fnmatchcase(name, pattern):
                return tolerance["rtol"], tolerance["atol"]
        largest = float(np.max(np.abs(reference))) if reference.size else 0.0
        return (1e-4 if group == "outputs" else 1e-3), 1e-5 * largest


class Comparison:
    """Collects the errors of a case as shares of their tolerance: 1.0 is just within it."""

    def __init__(self, case: Case, part: str = ""):
        self.case = case
        self.label = case.path.name + (f"-{part}" if part else "")
        self.shares: dict[str, float] = {}
        self.problems: list[str] = []

    def arrays(self, group: str, ours: Mapping, reference: Mapping) -> None:
        """Compares every reference array; one that we do not compute is a problem."""
        for name, wanted in reference.items():
            if name not in ours:
                self.problems.append(f"{group}: nothing computes {name!r}")
                continue
            rtol, atol = self.case.tolerance(group, name, wanted)
            self.array(f"{group}:{name}", ours[name], wanted, rtol=rtol, atol=atol)

    def array(self, label: str, ours, wanted, *, rtol: float, atol: float) -> None:
        ours, wanted = np.asarray(ours), np.asarray(wanted)
        if ours.shape != wanted.shape:
            self.problems.append(f"{label}: shape {ours.shape}, reference {wanted.shape}")
            return
        if wanted.dtype == bool:
            self._note(label, np.inf if (ours.astype(bool) != wanted).any() else 0.0, "differs")
            return
        ours, wanted = ours.astype(np.float64), wanted.astype(np.float64)
        error, limit = np.abs(ours - wanted), atol + rtol * np.abs(wanted)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(error == 0, 0.0, error / limit)
        share = np.where(np.isnan(share), np.inf, share)
        worst = float(share.max()) if share.size else 0.0
        self._note(label, worst, f"largest error {error.max() if error.size else 0:.3g}")

    def norms(self, ours: Mapping[str, np.ndarray]) -> None:
        """Compares the norm of every parameter's gradient; null means: no gradient at all."""
        reference = self.case.meta.get("grad_l2_norm_all_params")
        if reference is None:
            return
        if set(reference) != set(ours):
            only = sorted(set(reference) ^ set(ours))
            self.problems.append(f"gradient norms: parameters on one side only: {only}")
        # No tolerance is given for norms: that of gradients, and noise relative to the largest.
        floor = 1e-6 * max((norm for norm in reference.values() if norm is not None), default=0.0)
        for name in sorted(set(reference) & set(ours)):
            norm = float(np.linalg.norm(ours[name].astype(np.float64)))
            if reference[name] is None:
                self._note(f"norm:{name}", np.inf if norm else 0.0, "should have no gradient")
            else:
                self.array(f"norm:{name}", norm, reference[name], rtol=1e-3, atol=floor)

    def _note(self, label: str, share: float, words: str) -> None:
        self.shares[label] = share
        if not share <= 1.0:
            self.problems.append(f"{label}: {share:.3g} x the tolerance, {words}")

    def summary(self) -> str:
        if not self.shares:
            self.problems.append("nothing was compared")
            return f"{self.label}: nothing compared"
        worst = max(self.shares, key=self.shares.__getitem__)
        return f"{self.label}: {self.shares[worst]:.3f} at {worst} ({len(self.shares)} figures)"

    def complaint(self) -> str:
        return f"{self.label} differs from its reference:\n  " + "\n  ".join(self.problems)
