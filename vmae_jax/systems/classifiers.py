"""Classifiers on ViTs as pure functions of their parameters: a student, a teacher."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vmae_jax.chips import Chip
from vmae_jax.config import ConfigError, clip_grid, patch_values
from vmae_jax.models import flops
from vmae_jax.models.functional import functional
from vmae_jax.models.vit import Classifier
from vmae_jax.ops.patches import patchify, to_planes
from vmae_jax.ops.preprocess import normalise
from vmae_jax.systems.base import Batch, Encoder, Params
from vmae_jax.systems.inputs import clips
from vmae_jax.systems.stacks import spec_of, stack_options, vit_encoder, vit_fields, vit_tokens


@dataclasses.dataclass(frozen=True)
class ViTClassifier:
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
    pooled: Callable[[Params, jax.Array], jax.Array]
    of_batch: Callable[[Params, Batch], jax.Array]
    macs: Mapping[str, float]
    choices: Mapping[str, str]


def classifier(config: ConfigDict, chip: Chip, group: str = "model") -> ViTClassifier:
    """The classifier that a group of config fields describes.

    Args:
      config: a validated recipe whose number of classes is known.
      chip: what it will run on.
      group: "model", or "teacher" for one that is never trained.

    Raises:
      ConfigError: the number of classes is open.
    """
    classes = config.model.num_classes
    if classes < 2:
        raise ConfigError(
            f"config.model.num_classes={classes}: give at least 2, or a labelled data.manifest "
            "to read it from"
        )
    part, channels = config[group], config.model.channels
    tubelet = tuple(part.tubelet)
    grid, values = clip_grid(config, tubelet), patch_values(config, tubelet)
    tokens = vit_tokens(config, tubelet)
    options = stack_options(config, f"{group}.encoder", tokens=tokens, chip=chip)
    network = functional(
        lambda rngs: Classifier(
            spec_of(part.encoder),
            options,
            values=values,
            num_classes=classes,
            pooling=part.pooling,
            init_scale=config.model.head_scale,
            head_dropout=config.model.head_dropout,
            **vit_fields(config, tubelet),
            rngs=rngs,
        )
    )

    def patches(video: jax.Array) -> jax.Array:
        return patchify(video, tubelet, order="planes")

    def logits(params: Params, video: jax.Array, keys: jax.Array | None) -> jax.Array:
        params = _for_planes(params, channels)
        return network.apply(params, patches(video), grid=grid, keys=keys)

    def normalised(batch: Batch) -> jax.Array:
        return normalise(clips(config, batch), mean=config.data.mean, std=config.data.std)

    def pooled(params: Params, batch: Batch) -> jax.Array:
        params, video = _for_planes(params, channels), normalised(batch)
        features = network.apply(params, patches(video), grid=grid, method="features")
        return features.astype(jnp.float32)

    return ViTClassifier(
        init=network.init,
        logits=logits,
        pooled=pooled,
        of_batch=lambda params, batch: logits(params, normalised(batch), None),
        macs=flops.classifier_macs(
            spec_of(part.encoder),
            tokens=math.prod(grid),
            class_tokens=int(config.model.class_token),
            values=values,
            num_classes=classes,
        ),
        choices={f"{group} attention": options.attention},
    )


def encoder_of(config: ConfigDict, chip: Chip, net: ViTClassifier) -> Encoder:
    """The encoder of the classifier that is trained, for features and probes."""
    return vit_encoder(config, chip, final_norm=config.model.pooling == "first", pooled=net.pooled)


def _for_planes(params: Params, channels: int) -> Params:
    """The parameters for patches in the order of planes; they are kept in that of pixels."""
    reordered = functools.partial(to_planes, channels=channels, axis=0)
    embed = params["encoder"]["patch_embed"]
    embed = embed | {"kernel": reordered(embed["kernel"])}
    return params | {"encoder": params["encoder"] | {"patch_embed": embed}}
