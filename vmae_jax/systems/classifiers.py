"""Classifiers as pure functions of their parameters: a student, a teacher."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vmae_jax.chips import Chip
from vmae_jax.config import ConfigError, clip_grid, mvit_spec, patch_values
from vmae_jax.models import flops
from vmae_jax.models.functional import functional
from vmae_jax.models.mvit import MViTClassifier
from vmae_jax.models.vit import Classifier
from vmae_jax.ops.patches import patchify
from vmae_jax.systems.base import Batch, Encoder, Params
from vmae_jax.systems.inputs import normalised_clips
from vmae_jax.systems.multiscale import mvit_encoder, mvit_fields, mvit_macs, mvit_options
from vmae_jax.systems.stacks import (
    for_planes,
    spec_of,
    stack_options,
    vit_encoder,
    vit_fields,
    vit_tokens,
)


@dataclasses.dataclass(frozen=True)
class ClipClassifier:
    """A classifier.

    Attributes:
      init: `key -> params`.
      logits: `(params, video, keys) -> float32 [B, K]` of normalised clips `[B, T, H, W, C]`; keys
        [B] switch dropout and stochastic depth on, None is evaluation mode.
      pooled: `(params, batch) -> float32 [B, D]`, what the head sees of clips as they come.
      of_batch: `(params, batch) -> float32 [B, K]` of clips as they come, in evaluation mode.
      macs: forward multiply-accumulates per clip, by part.
      choices: what "auto" fields came to.
    """

    init: Callable[[jax.Array], Params]
    logits: Callable[[Params, jax.Array, jax.Array | None], jax.Array]
    pooled: Callable[[Params, Batch], jax.Array]
    of_batch: Callable[[Params, Batch], jax.Array]
    macs: Mapping[str, float]
    choices: Mapping[str, str]


def classifier(
    config: ConfigDict, chip: Chip, group: str = "model", *, headless: bool = False
) -> ClipClassifier:
    """The classifier that a group of config fields describes.

    Args:
      config: a validated recipe whose number of classes is known.
      chip: what it will run on.
      group: "model", or "teacher" for one that is never trained.
      headless: whether 0 classes are accepted: there is no head then, and `logits` are what it
        would see.

    Raises:
      ConfigError: the number of classes is open.
    """
    if not (headless and config.model.num_classes == 0):
        check_classes(config)
    net = _NETWORKS[_architecture(config, group)](config, chip, group)

    def pooled(params: Params, batch: Batch) -> jax.Array:
        video = normalised_clips(config, batch)
        return net.apply(params, video, method="features").astype(jnp.float32)

    return ClipClassifier(
        init=net.init,
        logits=lambda params, video, keys: net.apply(params, video, keys=keys),
        pooled=pooled,
        of_batch=lambda params, batch: net.apply(params, normalised_clips(config, batch)),
        macs=net.macs,
        choices={f"{group} attention": net.attention},
    )


def check_classes(config: ConfigDict) -> None:
    """Raises ConfigError if the number of classes is open."""
    if config.model.num_classes < 2:
        raise ConfigError(
            f"config.model.num_classes={config.model.num_classes}: give at least 2, or a labelled "
            "data.manifest to read it from"
        )


def encoder_of(config: ConfigDict, chip: Chip, net: ClipClassifier) -> Encoder:
    """The encoder of the classifier that is trained, for features and probes."""
    norms = {"final_norm": config.model.pooling != "mean", "pooled": net.pooled}
    if _architecture(config, "model") == "mvit":
        return mvit_encoder(config, **norms)
    return vit_encoder(config, chip, **norms)


def _architecture(config: ConfigDict, group: str) -> str:
    return config[group].get("architecture", "vit")  # teachers have no choice


@dataclasses.dataclass(frozen=True)
class _Network:
    """What kinds of networks differ in.

    Attributes:
      init: `key -> params`.
      apply: `(params, video, keys=None, method="__call__")`, of normalised clips [B, T, H, W, C].
      macs: forward multiply-accumulates per clip, by part.
      attention: the implementation that was chosen.
    """

    init: Callable[[jax.Array], Params]
    apply: Callable[..., jax.Array]
    macs: dict[str, int]
    attention: str


def _vit(config: ConfigDict, chip: Chip, group: str) -> _Network:
    part, channels = config[group], config.model.channels
    spec, tubelet = spec_of(part.encoder), tuple(part.tubelet)
    grid, values = clip_grid(config, tubelet), patch_values(config, tubelet)
    options = stack_options(
        config, f"{group}.encoder", tokens=vit_tokens(config, tubelet), chip=chip
    )
    network = functional(
        lambda rngs: Classifier(
            spec,
            options,
            values=values,
            rngs=rngs,
            **_head_fields(config, group),
            **vit_fields(config, tubelet),
        )
    )

    def apply(params: Params, video: jax.Array, **call: Any) -> jax.Array:
        patches = patchify(video, tubelet, order="planes")
        return network.apply(for_planes(params, channels), patches, grid=grid, **call)

    macs = flops.classifier_macs(
        spec,
        tokens=math.prod(grid),
        class_tokens=int(config.model.class_token),
        values=values,
        num_classes=config.model.num_classes,
    )
    return _Network(network.init, apply, macs, options.attention)


def _mvit(config: ConfigDict, chip: Chip, group: str) -> _Network:
    spec, options = mvit_spec(config), mvit_options(config)
    network = functional(
        lambda rngs: MViTClassifier(
            spec, options, rngs=rngs, **_head_fields(config, group), **mvit_fields(config)
        )
    )
    head = network.shapes.get("head")
    macs = mvit_macs(config) | {"head": head["kernel"].size if head else 0}
    return _Network(network.init, network.apply, macs, options.attention)


_NETWORKS = {"vit": _vit, "mvit": _mvit}


def _head_fields(config: ConfigDict, group: str) -> dict[str, Any]:
    return {
        "num_classes": config.model.num_classes,
        "pooling": config[group].pooling,
        "init_scale": config.model.head_scale,
        "head_dropout": config.model.head_dropout,
    }
