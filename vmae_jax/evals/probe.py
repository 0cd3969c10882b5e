"""How good a frozen encoder is: nearest neighbours, a linear and an attentive classifier.

All learn from the features of one set and are asked about another. Of several numbers of neighbours
or learning rates the best is what is reported first: like all published probes, these figures
choose on the set that they are measured on. A video that cannot be read counts as wrong.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vmae_jax.data.pipeline import PipelineOptions
from vmae_jax.data.source import Source
from vmae_jax.evals.features import (
    MAX_GIB,
    Features,
    check_room,
    make_extract,
    read_features,
)
from vmae_jax.evals.heads import (
    Head,
    HeadRecipe,
    copied,
    correct_at,
    find_correct,
    train_heads,
)
from vmae_jax.evals.multiview import classes_named
from vmae_jax.evals.passes import EvaluationError, open_pass
from vmae_jax.systems.base import Params, System

PROBES = ("knn", "linear", "attentive")
_NEIGHBOURS = (1, 5, 10, 20, 50)
_TEMPERATURE = 0.07
_QUERIES_AT_ONCE = 256
_EPS = 1e-6

# Setting of a probe, in words -> {"top1": ..., "top5": ..., "top1 GROUP": ...}, shares of 1.
Scores = dict[str, dict[str, float]]
# Name -> numbers of the classes whose videos are also counted apart.
Groups = Mapping[str, Sequence[int]]


def kinds_of(probes: Sequence[str]) -> tuple[str, ...]:
    """The kinds of features that probes need; see `features.KINDS`."""
    pooled = ("pooled",) if set(probes) & {"knn", "linear"} else ()
    return pooled + (("tokens",) if "attentive" in probes else ())


def probe(
    probes: Sequence[str],
    train: Features,
    val: Features,
    *,
    classes: int,
    groups: Groups | None = None,
    seed: int = 0,
) -> dict[str, Scores]:
    """Runs probes on features; all processes call it together.

    Args:
      probes: some of `PROBES`.
      train: what they learn from.
      val: what they are asked about.
      classes: K.
      groups: classes whose videos are also counted apart; all stay possible answers.
      seed: of what heads begin with.
    """
    run = {"knn": _knn, "linear": _linear, "attentive": _attentive}
    return {
        name: {
            setting: _shares(correct, val, groups or {})
            for setting, correct in run[name](train, val, classes, seed).items()
        }
        for name in probes
    }


def make_probe(
    system: System,
    probes: Sequence[str],
    train: PipelineOptions,
    val: PipelineOptions,
    *,
    groups: Sequence[str] = (),
    clips: int = 0,
    max_gib: float = MAX_GIB,
    seed: int = 0,
) -> Callable[[Params], dict[str, Scores]]:
    """Returns `params -> scores` of a system's frozen encoder, for any number of calls.

    Args:
      system: whose encoder it is.
      probes: some of `PROBES`.
      train: what they learn from.
      val: what they are asked about, one clip a video.
      groups: regular expressions on names of classes; see `probe`.
      clips: of a batch; see `passes.open_pass`.
      max_gib: memory on each host that the features of a set may take.
      seed: of what heads begin with, and of random crops.

    Raises:
      EvaluationError: sets that cannot be used, or that are too large.
    """
    sets = train.open_source(), val.open_source()
    classes, kinds = check_sets(*sets), kinds_of(probes)
    members = {pattern: classes_named(pattern, sets[1].class_names) for pattern in groups}
    for part, options in zip(sets, (train, val), strict=True):
        check_room(system, kinds, clips=len(part) * options.clips, max_gib=max_gib)
    extract = make_extract(system, kinds)

    def read(options: PipelineOptions, params: Params) -> Features:
        with open_pass(options, clips=clips, seed=seed) as pipeline:
            return read_features(extract, params, pipeline)

    def run(params: Params) -> dict[str, Scores]:
        known, asked = read(train, params), read(val, params)
        return probe(probes, known, asked, classes=classes, groups=members, seed=seed)

    return run


def check_sets(train: Source, val: Source) -> int:
    """K, the number of classes that two sets share.

    Raises:
      EvaluationError: one has no labels, or their classes differ.
    """
    for part in (train, val):
        if not part.num_classes:
            raise EvaluationError(
                f"the set of {part.name(0)} has no labels; a probe needs labelled videos"
            )
    if train.class_names and val.class_names and train.class_names != val.class_names:
        raise EvaluationError(
            f"the sets of {train.name(0)} and {val.name(0)} have different classes.txt; number "
            "their labels alike"
        )
    return max(train.num_classes, val.num_classes)


def summary(scores: Mapping[str, Scores]) -> dict[str, float]:
    """The best setting's figures of each probe: {"linear_top1": ..., "linear_top5": ..., ...}."""
    found = {}
    for name, settings in scores.items():
        best = max(settings.values(), key=lambda figures: (figures["top1"], figures["top5"]))
        found |= {f"{name}_{figure}": value for figure, value in best.items()}
    return found


# Features and labels.
_Kept = tuple[np.ndarray, np.ndarray]
# Setting -> bool [2, n]; see `heads.correct_at`.
_Correct = dict[str, np.ndarray]


def _shares(correct: np.ndarray, val: Features, groups: Groups) -> dict[str, float]:
    first, five = correct
    videos = len(val.labels) + len(val.missing)
    shares = {"top1": float(first.sum() / videos), "top5": float(five.sum() / videos)}
    for name, members in groups.items():
        inside = np.isin(val.labels, members)
        within = inside.sum() + np.isin(val.missing, members).sum()
        shares[f"top1 {name}"] = float((first & inside).sum() / within)
    return shares


def _knn(train: Features, val: Features, classes: int, seed: int) -> _Correct:
    """Votes of the nearest by cosine, weighted by exp(cosine / temperature).

    Source: temperature and weights as in instance discrimination (arXiv:1805.01978) and DINO.
    """
    known, asked = (_unit(part.pooled) for part in (train, val))
    numbers = tuple(k for k in _NEIGHBOURS if k <= len(known)) or (len(known),)
    known, labels = copied(known), copied(train.labels)
    found = []
    for begin in range(0, len(asked), _QUERIES_AT_ONCE):
        part = slice(begin, begin + _QUERIES_AT_ONCE)
        queries, answers = (copied(x[part]) for x in (asked, val.labels))
        found.append(np.asarray(_votes(known, labels, queries, answers, numbers, classes)))
    correct = np.concatenate(found, axis=-1)
    return {f"k={k}": each for k, each in zip(numbers, correct, strict=True)}


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), _EPS)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _votes(known, labels, queries, answers, numbers, classes):
    similar = jnp.matmul(queries, known.T, precision="highest")
    similar, nearest = jax.lax.top_k(similar, max(numbers))
    weights = jnp.exp((similar - similar[:, :1]) / _TEMPERATURE)
    voted = jax.nn.one_hot(labels[nearest], classes) * weights[..., None]
    tallies = [voted[:, :k].sum(axis=1) for k in numbers]
    return jnp.stack([correct_at(tally, answers) for tally in tallies])


def _linear(train: Features, val: Features, classes: int, seed: int) -> _Correct:
    """Batch norm without parameters before a linear layer, SGD with momentum.

    The features do not change, so the norm's statistics are those of the whole training set, which
    running averages would only come near.

    Source: VideoMAE's probe (reference: videomae.md, 5.5) with the norm of MAE's
    (arXiv:2111.06377).
    """
    mean = train.pooled.mean(axis=0, dtype=np.float64)
    std = np.sqrt(train.pooled.var(axis=0, dtype=np.float64) + _EPS)
    known, asked = (((part.pooled - mean) / std).astype(np.float32) for part in (train, val))
    return _heads(_LINEAR, (known, train.labels), (asked, val.labels), classes, seed)


def _attentive(train: Features, val: Features, classes: int, seed: int) -> _Correct:
    """Learned queries look over all tokens, and a linear layer at what they see; AdamW."""
    known, asked = (train.tokens, train.labels), (val.tokens, val.labels)
    return _heads(_ATTENTIVE, known, asked, classes, seed)


def _heads(recipe: HeadRecipe, known: _Kept, asked: _Kept, classes: int, seed: int) -> _Correct:
    heads = train_heads(recipe, *known, classes=classes, seed=seed)
    correct = find_correct(recipe, heads, *asked)
    return {f"lr={rate:g}": each for rate, each in zip(recipe.rates, correct, strict=True)}


def _init_linear(key: jax.Array, shape: tuple[int, ...], classes: int) -> Head:
    kernel = 0.01 * jax.random.normal(key, (shape[-1], classes))
    return {"kernel": kernel, "bias": jnp.zeros(classes)}


def _linear_logits(head: Head, x: jax.Array) -> jax.Array:
    return x @ head["kernel"] + head["bias"]


def _init_attentive(key: jax.Array, shape: tuple[int, ...], classes: int) -> Head:
    width = shape[-1]
    heads = max(1, width // 64)
    keys = jax.random.split(key, 3)
    return {
        "query": jax.random.normal(keys[0], (heads, width)) * width**-0.5,
        "value": jax.random.normal(keys[1], (heads, width, width // heads)) * width**-0.5,
        "out": _init_linear(keys[2], (width // heads * heads,), classes),
    }


def _attentive_logits(head: Head, tokens: jax.Array) -> jax.Array:
    """Cross-attention of one learned query; its product with the key projection is one vector a
    head, so no keys are computed, and values only of what was pooled."""
    tokens = _normed(tokens)
    scores = jnp.einsum("bnd,hd->bhn", tokens, head["query"])
    pooled = jnp.einsum("bhn,bnd->bhd", jax.nn.softmax(scores, axis=-1), tokens)
    seen = jnp.einsum("bhd,hde->bhe", pooled, head["value"]).reshape(len(tokens), -1)
    return _linear_logits(head["out"], _normed(seen))


def _normed(x: jax.Array) -> jax.Array:
    """A layer norm without parameters."""
    x = x - x.mean(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + _EPS)


_LINEAR = HeadRecipe(
    init=_init_linear,
    logits=_linear_logits,
    rates=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    direction=optax.trace(decay=0.9),
    epochs=100,
    batch=1024,
)
_ATTENTIVE = HeadRecipe(
    init=_init_attentive,
    logits=_attentive_logits,
    rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    direction=optax.chain(optax.scale_by_adam(b2=0.95), optax.add_decayed_weights(0.01)),
    epochs=20,
    batch=64,
)
