"""From config fields to stacks of blocks, and to the encoder of whole clips, for ViT systems."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vmae_jax.chips import Chip
from vmae_jax.config import ConfigError, clip_grid, patch_values
from vmae_jax.models.functional import functional
from vmae_jax.models.init import SCHEMES
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.vit import ViTEncoder
from vmae_jax.ops.attention import choose_attention
from vmae_jax.ops.patches import Tubelet, to_planes
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
      tokens: of a clip that go through it, a class token among them.
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
    scheme = SCHEMES[model.init]
    return StackOptions(
        key_bias=model.key_bias,
        kernel_init=scheme.kernels,
        bias_init=scheme.encoder_bias if name == "encoder" else 0.0,
        cosine_attention=model.cosine_attention,
        layer_scale=model.layer_scale,
        gelu=model.gelu,
        drop_path=part.drop_path,
        attention=attention,
        dtype=model.dtype,
        remat=part.remat,
        scan=model.layers == "scan",
    )


def vit_fields(config: ConfigDict, tubelet: Tubelet | None = None) -> dict[str, Any]:
    """What `ViTEncoder`, and all that has one, is told of `config.model` beside sizes and options.

    Args:
      config: the recipe.
      tubelet: of a network other than the one that is trained (a teacher).
    """
    model, grid = config.model, clip_grid(config, tubelet)
    if model.positions == "sincos" and model.sincos_grid:
        grid = tuple(model.sincos_grid)
    return {
        "positions": model.positions,
        "grid": grid,
        "class_token": model.class_token,
        "scheme": SCHEMES[model.init],
    }


def vit_tokens(config: ConfigDict, tubelet: Tubelet | None = None) -> int:
    """Tokens of a whole clip, the class token among them; arguments as above."""
    return math.prod(clip_grid(config, tubelet)) + config.model.class_token


def for_planes(params: Params, channels: int) -> Params:
    """Parameters with an `encoder` for patches in the order of planes; kept in that of pixels."""
    return params | {"encoder": encoder_for_planes(params["encoder"], channels)}


def encoder_for_planes(encoder: Params, channels: int) -> Params:
    """The same of the encoder alone, or of anything with a `patch_embed`."""
    kernel = to_planes(encoder["patch_embed"]["kernel"], channels=channels, axis=0)
    return encoder | {"patch_embed": encoder["patch_embed"] | {"kernel": kernel}}


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
    options = stack_options(config, "model.encoder", tokens=vit_tokens(config), chip=chip)
    first = int(config.model.class_token)  # token of a patch
    network = functional(
        lambda rngs: ViTEncoder(
            spec_of(config.model.encoder),
            options,
            values=patch_values(config),
            final_norm=final_norm,
            **vit_fields(config),
            rngs=rngs,
        )
    )

    def tokens(params: Params, batch: Batch, layer: int) -> jax.Array:
        patches = patches_of(config, batch, config.model.tubelet)
        encoded = network.apply(
            params["encoder"], patches, grid=grid, layer=None if layer == depth else layer
        )
        return encoded[:, first:].astype(jnp.float32)

    def attention(params: Params, batch: Batch, layer: int) -> jax.Array:
        patches = patches_of(config, batch, config.model.tubelet)
        weights = network.apply(
            params["encoder"], patches, grid=grid, layer=layer, method="attention"
        )
        if not first:
            return weights
        # What patches take of the class token is left out, and the rest is all there is.
        weights = weights[:, :, 1:, 1:]
        return weights / weights.sum(axis=-1, keepdims=True)

    return Encoder(
        depth=depth,
        width=lambda layer: config.model.encoder.width,
        grid=lambda layer: grid,
        tokens=tokens,
        pooled=pooled or (lambda params, batch: tokens(params, batch, depth).mean(axis=1)),
        attention=attention,
    )
