"""From config fields to stacks of blocks, and to the encoder of whole clips, for ViT systems."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vmae_jax.chips import Chip
from vmae_jax.config import ConfigError, clip_grid, patch_values
from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.vit import ViTEncoder
from vmae_jax.ops.attention import choose_attention
from vmae_jax.systems.base import Batch, Encoder, Params
from vmae_jax.systems.inputs import patches_of
from vmae_jax.variants import StackSpec


def spec_of(part: ConfigDict) -> StackSpec:
    """The size of a stack."""
    return StackSpec(part.width, part.depth, part.heads, part.mlp_ratio)


def stack_options(config: ConfigDict, path: str, *, tokens: int, chip: Chip) -> StackOptions:
    """How the blocks of one stack are built and run on a chip.

    Args:
      config: the recipe; `config.model` says what all stacks have in common.
      path: of the stack's fields, e.g. "model.encoder".
      tokens: of a clip that go through it.
      chip: what "auto" is decided for.

    Raises:
      ConfigError: an attention that this chip or shape cannot use.
    """
    group, name = path.split(".")
    model, part = config.model, config[group][name]
    try:
        attention = choose_attention(
            part.attention,
            chip=chip,
            dtype=model.dtype,
            tokens=tokens,
            heads=part.heads,
            head_dim=part.width // part.heads,
        )
    except ValueError as error:
        raise ConfigError(f"config.{path}.attention: {error}") from error
    return StackOptions(
        cosine_attention=model.cosine_attention,
        layer_scale=model.layer_scale,
        gelu=model.gelu,
        drop_path=part.drop_path,
        attention=attention,
        dtype=model.dtype,
        remat=part.remat,
        scan=model.layers == "scan",
    )


def vit_encoder(
    config: ConfigDict,
    chip: Chip,
    *,
    final_norm: bool,
    pooled: Callable[[Params, Batch], jax.Array] | None = None,
) -> Encoder:
    """The encoder of `config.model.encoder` on all tokens of whole clips.

    Args:
      config: the recipe.
      chip: what it will run on.
      final_norm: whether the model has a norm after its last block.
      pooled: what the model's own head sees; None: it has no head.
    """
    depth, grid = config.model.encoder.depth, clip_grid(config)
    options = stack_options(config, "model.encoder", tokens=math.prod(grid), chip=chip)
    network = functional(
        lambda rngs: ViTEncoder(
            spec_of(config.model.encoder),
            options,
            values=patch_values(config),
            final_norm=final_norm,
            rngs=rngs,
        )
    )

    def tokens(params: Params, batch: Batch, layer: int) -> jax.Array:
        patches = patches_of(config, batch, config.model.tubelet)
        encoded = network.apply(
            params["encoder"], patches, grid=grid, layer=None if layer == depth else layer
        )
        return encoded.astype(jnp.float32)

    def attention(params: Params, batch: Batch, layer: int) -> jax.Array:
        patches = patches_of(config, batch, config.model.tubelet)
        return network.apply(params["encoder"], patches, grid=grid, layer=layer, method="attention")

    return Encoder(
        depth=depth,
        width=lambda layer: config.model.encoder.width,
        grid=lambda layer: grid,
        tokens=tokens,
        pooled=pooled or (lambda params, batch: tokens(params, batch, depth).mean(axis=1)),
        attention=attention,
    )
