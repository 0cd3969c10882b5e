"""Masked feature prediction: an encoder over all tokens, hidden ones replaced, and a linear head.

Knows neither masks nor features: clips and hidden tokens come in, predictions go out.
"""

from typing import Any

import jax
from flax import nnx

from vmae_jax.models import init
from vmae_jax.models.layers import LayerNorm, Linear, StackOptions


class FeatureHead(nnx.Module):
    """A norm and a linear layer: all that MaskFeat has in the place of a decoder."""

    def __init__(self, width: int, values: int, options: StackOptions, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(width, eps=options.eps, dtype=options.dtype)
        self.proj = Linear(
            width, values, kernel_init=init.normal_002, dtype=options.dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, N, D] -> [B, N, values]."""
        return self.proj(self.norm(x))


class MaskedFeatures(nnx.Module):
    """The network of MaskFeat.

    Args:
      encoder: has no norm after its last block, and called with `hidden`, `mask_token` and `keys`
        puts the mask token in the place of hidden tokens of its stem.
      class_token: whether it puts a class token in front of the others.
      stem_width, width: of its tokens at the stem and after its last block.
      values: numbers predicted for a token.
      options: of the head, eps and dtype.

    Source: MaskFeat (arXiv:2112.09133) and its released model.
    """

    def __init__(
        self,
        encoder: nnx.Module,
        *,
        class_token: bool,
        stem_width: int,
        width: int,
        values: int,
        options: StackOptions,
        rngs: nnx.Rngs,
    ):
        self.encoder = encoder
        self.mask_token = nnx.Param(init.normal_002(rngs.params(), (stem_width,)))
        self.head = FeatureHead(width, values, options, rngs=rngs)
        self.class_tokens = int(class_token)

    def __call__(
        self,
        clips: jax.Array,
        hidden: jax.Array,
        *,
        keys: jax.Array | None = None,
        **of_encoder: Any,
    ) -> jax.Array:
        """Predicts the features of all tokens, visible ones too: the head costs next to nothing.

        Args:
          clips: what the encoder takes.
          hidden: bool [B, N0] over the tokens of its stem, in raster order.
          keys: typed PRNG keys [B] for stochastic depth; None: evaluation mode.
          of_encoder: what else the encoder's call wants, such as the grid of a ViT.

        Returns:
          [B, N, values] in the compute dtype, for the tokens that leave the encoder.
        """
        with jax.named_scope("encoder"):
            tokens = self.encoder(
                clips, hidden=hidden, mask_token=self.mask_token[...], keys=keys, **of_encoder
            )
        with jax.named_scope("head"):
            return self.head(tokens[:, self.class_tokens :])
