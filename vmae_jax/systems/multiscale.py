"""From config fields to multiscale networks, and to their encoder of whole clips."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vmae_jax.config import ConfigError, clip_grid, mvit_spec
from vmae_jax.models import flops
from vmae_jax.models.functional import Functional, functional
from vmae_jax.models.init import SCHEMES
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.mvit import MViT, block_shapes
from vmae_jax.ops.attention import choose_pooled_attention
from vmae_jax.systems.base import Batch, Encoder, Params
from vmae_jax.systems.inputs import normalised_clips


def mvit_options(config: ConfigDict) -> StackOptions:
    """How the blocks of `config.model.encoder` are built and run.

    Raises:
      ConfigError: an attention that such a network cannot use.
    """
    model, part = config.model, config.model.encoder
    try:
        attention = choose_pooled_attention(part.attention)
    except ValueError as error:
        raise ConfigError(f"config.model.encoder.attention: {error}") from error
    scheme = SCHEMES["slowfast"]
    return StackOptions(
        kernel_init=scheme.kernels,
        bias_init=scheme.encoder_bias,
        gelu=model.gelu,
        drop_path=part.drop_path,
        attention=attention,
        dtype=model.dtype,
        remat=part.remat,
        scan=model.layers == "scan",
    )


def mvit_fields(config: ConfigDict) -> dict[str, Any]:
    """What `MViT`, and all that has one, is told of a config beside size and options."""
    model = config.model
    return {
        "grid": clip_grid(config),
        "tubelet": tuple(model.tubelet),
        "channels": model.channels,
        "class_token": model.class_token,
        "positions": model.positions,
    }


def mvit_macs(config: ConfigDict) -> dict[str, int]:
    """Forward multiply-accumulates per clip of the network without a head, by part."""
    return flops.mvit_macs(
        mvit_spec(config),
        clip_grid(config),
        channels=config.model.channels,
        class_tokens=int(config.model.class_token),
    )


def mvit_encoder(
    config: ConfigDict,
    *,
    final_norm: bool,
    pooled: Callable[[Params, Batch], jax.Array] | None = None,
) -> Encoder:
    """The encoder of `config.model.encoder` on all tokens of whole clips.

    Args:
      config: the recipe.
      final_norm: whether the model has a norm after its last block.
      pooled: what the model's own head sees; None: it has no head.
    """
    spec = mvit_spec(config)
    shapes, first = block_shapes(spec, clip_grid(config)), int(config.model.class_token)
    options, fields = mvit_options(config), mvit_fields(config)

    @functools.cache  # building it takes a while, and training does not ask for it
    def network() -> Functional:
        return functional(
            lambda rngs: MViT(spec, options, final_norm=final_norm, rngs=rngs, **fields)
        )

    def tokens(params: Params, batch: Batch, layer: int) -> jax.Array:
        encoded = network().apply(
            params["encoder"],
            normalised_clips(config, batch),
            layer=None if layer == spec.depth else layer,
        )
        return encoded[:, first:].astype(jnp.float32)

    return Encoder(
        depth=spec.depth,
        width=lambda layer: shapes[layer - 1].width_out,
        grid=lambda layer: shapes[layer - 1].grid_out,
        tokens=tokens,
        pooled=pooled or (lambda params, batch: tokens(params, batch, spec.depth).mean(axis=1)),
    )
