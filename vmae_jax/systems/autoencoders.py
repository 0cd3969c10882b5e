"""Masked autoencoders on ViTs as pure functions of their parameters, and pictures of them."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vmae_jax.chips import Chip
from vmae_jax.config import TokenCounts, token_counts
from vmae_jax.models import flops
from vmae_jax.models.functional import Functional, functional
from vmae_jax.models.mae import MaskedAutoencoder
from vmae_jax.ops.patches import Order, Tubelet, to_planes, unpatchify
from vmae_jax.ops.tokens import scatter
from vmae_jax.systems.base import Params
from vmae_jax.systems.stacks import for_planes, spec_of, stack_options, vit_fields


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """A masked autoencoder.

    Attributes:
      network: `MaskedAutoencoder` with parameters for patches in the order of pixels.
      counts: tokens of its parts.
      macs: forward multiply-accumulates per clip, by part.
      choices: what "auto" fields came to.
      channels: of the videos.
    """

    network: Functional
    counts: TokenCounts
    macs: Mapping[str, float]
    choices: Mapping[str, str]
    channels: int

    def predict(
        self,
        params: Params,
        visible: jax.Array,
        visible_idx: jax.Array,
        target_idx: jax.Array,
        *,
        keys: jax.Array | None = None,
        order: Order = "pixels",
    ) -> jax.Array:
        """Predictions [B, M, target values] from normalised visible patches [B, V, P].

        Args:
          visible_idx, target_idx: int32 [B, V] and [B, M], positions of both.
          keys: typed PRNG keys [B] for stochastic depth; None: evaluation mode.
          order: of the values of patches that come and go.
        """
        if order == "planes":
            params = _for_planes(params, self.channels)
        return self.network.apply(
            params, visible, visible_idx, target_idx, grid=self.counts.grid, keys=keys
        )


def autoencoder(
    config: ConfigDict,
    chip: Chip,
    *,
    target_values: int | None = None,
    decoder_positions: str = "sincos",
    decoder_class_token: str = "none",
    to_decoder_bias: bool = False,
    mask_tokens: str = "decoder",
) -> Autoencoder:
    """The autoencoder that `config.model` and `config.masking` describe.

    Args:
      config: a validated recipe.
      chip: what it will run on.
      target_values: numbers predicted for a token; None: those of a patch.
      decoder_positions, decoder_class_token, to_decoder_bias, mask_tokens: see `MaskedAutoencoder`.
    """
    model, counts = config.model, token_counts(config)
    class_tokens, decoder_class_tokens = int(model.class_token), int(decoder_class_token != "none")
    masks_in_encoder = mask_tokens == "encoder"
    encoded = counts.visible + counts.targets if masks_in_encoder else counts.visible
    tokens = {
        "encoder": encoded + class_tokens,
        "decoder": counts.visible + counts.targets + decoder_class_tokens,
    }
    options = {
        name: stack_options(config, f"model.{name}", tokens=number, chip=chip)
        for name, number in tokens.items()
    }
    network = functional(
        lambda rngs: MaskedAutoencoder(
            spec_of(model.encoder),
            spec_of(model.decoder),
            values=counts.patch_values,
            target_values=target_values,
            encoder_options=options["encoder"],
            decoder_options=options["decoder"],
            decoder_positions=decoder_positions,
            decoder_class_token=decoder_class_token,
            to_decoder_bias=to_decoder_bias,
            mask_tokens=mask_tokens,
            **vit_fields(config),
            rngs=rngs,
        )
    )
    macs = flops.mae_macs(
        spec_of(model.encoder),
        spec_of(model.decoder),
        visible=counts.visible,
        targets=counts.targets,
        values=counts.patch_values,
        target_values=target_values,
        class_tokens=class_tokens,
        decoder_class_tokens=decoder_class_tokens,
        masks_in_encoder=masks_in_encoder,
    )
    choices = {f"{stack} attention": one.attention for stack, one in options.items()}
    return Autoencoder(network, counts, macs, choices, model.channels)


def painter(
    original: jax.Array, target_idx: jax.Array, *, net: Autoencoder, tubelet: Tubelet
) -> Callable[[jax.Array], jax.Array]:
    """How to show clips with some of their patches replaced.

    Args:
      original: all patches [B, N, P] in [0, 1], in the order of pixels.
      target_idx: int32 [B, M], which are replaced.
      net: what predicted them.
      tubelet: of a patch as it is shown.

    Returns:
      patches [B, M, P] -> videos [B, T, H, W, C], float32 in [0, 1].
    """
    tokens = original.shape[1]
    replaced = scatter(jnp.ones(target_idx.shape, bool), target_idx, tokens)[..., None]

    def paint(patches: jax.Array) -> jax.Array:
        shown = jnp.where(replaced, scatter(patches, target_idx, tokens), original)
        return jnp.clip(unpatchify(shown, net.counts.grid, tubelet, net.channels), 0.0, 1.0)

    return paint


def _for_planes(params: Params, channels: int) -> Params:
    """The parameters for patches in the order of planes; they are kept in that of pixels."""
    decoder = params["decoder"]
    head = jax.tree.map(functools.partial(to_planes, channels=channels), decoder["head"])
    return for_planes(params, channels) | {"decoder": decoder | {"head": head}}
