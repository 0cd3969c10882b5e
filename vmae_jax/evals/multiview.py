"""Multi-view testing of classifiers: probabilities averaged over the views of a video.

The same function serves validation with a single view. What is counted is every video of the set:
one that cannot be read counts as wrong and is named.

Source: released tests of VideoMAE and V2 (reference: videomae.md, 5.3).
"""

import csv
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from vmae_jax.data.pipeline import ClipPipeline
from vmae_jax.data.source import Source
from vmae_jax.evals.passes import EvaluationError, Forward, Pass, make_forward
from vmae_jax.systems.base import Params, System

_TOP = 5


@dataclasses.dataclass(frozen=True)
class Result:
    """What a classifier says of the videos of a set.

    Attributes:
      names: of the videos, as listed.
      labels: int32 [N], -1 where unknown.
      probabilities: float32 [N, K], mean over the views; zeros where there was no video.
      failures: place of a video that could not be used -> reason.
      class_names: of the classes; () if nobody knows them.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    failures: Mapping[int, str]
    class_names: tuple[str, ...] = ()

    @property
    def predictions(self) -> np.ndarray:
        """int64 [N], the most probable class; -1 where there was no video."""
        found = self.probabilities.argmax(axis=1)
        found[list(self.failures)] = -1
        return found

    def top(self, k: int) -> np.ndarray:
        """int64 [N, k], the k most probable classes, best first; of equals the first."""
        return np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]

    def correct(self, k: int = 1) -> np.ndarray:
        """bool [N], whether the label is among the k most probable classes."""
        found = (self.top(k) == self.labels[:, None]).any(axis=1)
        found[list(self.failures)] = False
        return found

    def class_accuracies(self) -> dict[int, float]:
        """Share of each class's videos that are classified as such, of classes with videos."""
        right = self.correct()
        present = np.unique(self.labels[self.labels >= 0])
        return {int(c): float(right[self.labels == c].mean()) for c in present}

    def metrics(self) -> dict[str, float]:
        """Shares of 1: "top1", "top5" (of fewer classes: all), "class_mean" (over classes).

        Raises:
          EvaluationError: a video without a label.
        """
        bare = [i for i in np.flatnonzero(self.labels < 0) if i not in self.failures]
        if bare:
            raise EvaluationError(
                f"{len(bare)} videos have no label, {self.names[bare[0]]} for one; give each line "
                "of the list one"
            )
        return {
            "top1": float(self.correct().mean()),
            "top5": float(self.correct(_TOP).mean()),
            "class_mean": float(np.mean(list(self.class_accuracies().values()))),
        }

    def group(self, pattern: str) -> dict[str, float]:
        """ "top1" and number of "videos" whose class's name a regular expression is found in.

        All classes stay possible answers.

        Raises:
          EvaluationError: no pattern, no names, or no video of such a class.
        """
        chosen = classes_named(pattern, self.class_names)
        inside = np.isin(self.labels, chosen)
        if not inside.any():
            raise EvaluationError(f"no video is of a class of the group {pattern!r}")
        return {"top1": float(self.correct()[inside].mean()), "videos": int(inside.sum())}

    def confusion(self) -> np.ndarray:
        """int64 [K, K], number of videos by label (rows) and prediction; failures are left out."""
        classes = self.probabilities.shape[1]
        counted = (self.labels >= 0) & (self.predictions >= 0)
        places = self.labels[counted] * classes + self.predictions[counted]
        return np.bincount(places, minlength=classes**2).reshape(classes, classes)

    def name_of(self, label: int) -> str:
        """Name of a class, else its number; "" for none."""
        if label < 0:
            return ""
        return self.class_names[label] if self.class_names else str(label)

    def as_csv(self) -> str:
        """A line per video: path, label, prediction, probability, the first five, failure."""
        file = io.StringIO()
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "label", "prediction", "probability", "top5", "failure"])
        best, predicted = self.top(_TOP), self.predictions
        for i, name in enumerate(self.names):
            shares, reason = self.probabilities[i], self.failures.get(i, "")
            listed = [f"{self.name_of(c)}:{shares[c]:.4f}" for c in best[i]]
            said = ["", "", ""]
            if not reason:
                said = [self.name_of(predicted[i]), f"{shares.max():.6f}", "; ".join(listed)]
            table.writerow([name, self.name_of(int(self.labels[i])), *said, reason])
        return file.getvalue()


def classes_named(pattern: str, class_names: Sequence[str]) -> list[int]:
    """Numbers of the classes in whose names a regular expression is found.

    Raises:
      EvaluationError: it is none, or is found in no name.
    """
    try:
        chosen = [c for c, name in enumerate(class_names) if re.search(pattern, name)]
    except re.error as error:
        raise EvaluationError(f"the group {pattern!r} is no regular expression: {error}") from error
    if not chosen:
        names = ", ".join(class_names[:5]) or "none are known; write classes.txt"
        raise EvaluationError(f"the group {pattern!r} fits no class; names of classes: {names}")
    return chosen


def make_classify(system: System) -> Forward:
    """The compiled part of `evaluate`, to be used for any number of passes.

    Raises:
      EvaluationError: the system classifies nothing.
    """
    logits = system.logits
    if logits is None:
        raise EvaluationError(
            f"a model of the system {system.name!r} has no classes to test; fine-tune it first, or "
            "look at its features with tools/probe"
        )
    return make_forward(
        system,
        lambda params, batch: {"probabilities": jax.nn.softmax(logits(params, batch), axis=-1)},
    )


def evaluate(
    system: System,
    params: Params,
    pipeline: ClipPipeline,
    *,
    classify: Forward | None = None,
    class_names: Sequence[str] = (),
) -> Result:
    """Classifies every video of a pass, all of its views averaged.

    Args:
      system: a classifier.
      params: its parameters, on the devices of the mesh that is set, if one is.
      pipeline: a single pass; see `passes.open_pass`. It is not closed.
      classify: of `make_classify`, where there is more than one pass.
      class_names: the model's; (): those of the set.

    Raises:
      EvaluationError: no classifier, no video that can be read, or classes that are not the set's.
      PipelineError: the pass cannot go on.
    """
    classify = classify or make_classify(system)
    source, reading = pipeline.source, Pass(pipeline)
    labels = np.array([source.label(i) for i in range(len(source))], np.int32)
    probabilities = None
    for number, rows in enumerate(reading.rows(classify, params)):
        shares = rows["probabilities"]
        shares = shares.reshape(pipeline.batch_videos, -1, shares.shape[-1]).mean(axis=1)
        if probabilities is None:
            names = _classes(tuple(class_names), source, shares.shape[-1])
            probabilities = np.zeros((len(source), shares.shape[-1]), np.float32)
        first = rows["index"].reshape(len(shares), -1)[:, 0]
        present = first >= 0
        places = number * pipeline.batch_videos + np.flatnonzero(present)
        probabilities[places] = shares[present]
        labels[places] = rows["label"].reshape(len(shares), -1)[present, 0]
    if len(reading.failures) == len(source):
        record, reason = next(iter(reading.failures.items()))
        raise EvaluationError(
            f"none of the {len(source)} videos can be read; the first is {source.name(record)}: "
            f"{reason}"
        )
    return Result(
        names=tuple(source.name(i) for i in range(len(source))),
        labels=labels,
        probabilities=probabilities,
        failures=reading.failures,
        class_names=names,
    )


def _classes(models: tuple[str, ...], source: Source, classes: int) -> tuple[str, ...]:
    """Names of the classes, of which model and set must not have different ones."""
    if source.num_classes > classes:
        raise EvaluationError(
            f"the set has {source.num_classes} classes, but the model {classes}; is this the list "
            "of another set?"
        )
    if not models:
        return source.class_names if len(source.class_names) == classes else ()
    for label, (ours, theirs) in enumerate(zip(models, source.class_names, strict=False)):
        if ours != theirs:
            raise EvaluationError(
                f"class {label} is {ours!r} for the model and {theirs!r} in classes.txt beside the "
                "list; number the labels as those that the model learned from"
            )
    return models
