"""Masked autoencoder on videos: an encoder on the visible tokens, a decoder on the targets.

Knows neither masks nor pixels: index arrays and patch vectors come in, predictions go out.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from vmae_jax.models import init
from vmae_jax.models.layers import LayerNorm, Linear, StackOptions
from vmae_jax.models.stack import build_stack, run_stack
from vmae_jax.models.vit import ViTEncoder, add_positions, stream
from vmae_jax.ops.patches import Grid
from vmae_jax.ops.pos_embed import sincos_table
from vmae_jax.variants import StackSpec


class Decoder(nnx.Module):
    """Blocks over [visible; targets]; norm and head on the targets alone.

    Args:
      norm_eps: epsilon of the norm before the head; None: that of the blocks. transformers' port
        has its own.
    """

    def __init__(
        self,
        spec: StackSpec,
        options: StackOptions,
        *,
        values: int,
        norm_eps: float | None = None,
        rngs: nnx.Rngs,
    ):
        self.blocks = build_stack(spec, options, rngs=rngs)
        norm_eps = options.eps if norm_eps is None else norm_eps
        self.norm = LayerNorm(spec.width, eps=norm_eps, dtype=options.dtype)
        self.head = Linear(
            spec.width,
            values,
            kernel_init=init.KERNEL_INITS[options.kernel_init],
            dtype=options.dtype,
            rngs=rngs,
        )
        self.options = options

    def __call__(
        self, x: jax.Array, num_targets: int, *, keys: jax.Array | None = None
    ) -> jax.Array:
        """x [B, V + M, Dd] -> [B, M, values] for the last `num_targets` tokens."""
        x = run_stack(self.blocks, x, self.options, keys=keys)
        return self.head(self.norm(x[:, x.shape[1] - num_targets :]))


class MaskedAutoencoder(nnx.Module):
    """The network of VideoMAE and VideoMAE V2 (they differ in the targets they ask for).

    Args:
      encoder, decoder: sizes of the two stacks.
      values: P, the numbers in an input patch.
      target_values: numbers predicted for a token; None: P.
      encoder_options, decoder_options: how their blocks are built and run; the decoder's default
        to the encoder's.
      decoder_norm_eps: see `Decoder`.

    Source: VideoMAE (arXiv:2203.12602), VideoMAE V2 (arXiv:2303.16727) and their released models.
    """

    def __init__(
        self,
        encoder: StackSpec,
        decoder: StackSpec,
        *,
        values: int,
        target_values: int | None = None,
        encoder_options: StackOptions,
        decoder_options: StackOptions | None = None,
        decoder_norm_eps: float | None = None,
        rngs: nnx.Rngs,
    ):
        decoder_options = decoder_options or encoder_options
        self.encoder = ViTEncoder(encoder, encoder_options, values=values, rngs=rngs)
        # Released code never applies its own initialiser here: PyTorch's default remains.
        self.encoder_to_decoder = Linear(
            encoder.width,
            decoder.width,
            kernel_init=functools.partial(init.torch_uniform, fan_in=encoder.width),
            bias_init=None,
            dtype=decoder_options.dtype,
            rngs=rngs,
        )
        self.mask_token = nnx.Param(init.mask_token(rngs.params(), (decoder.width,)))
        target_values = values if target_values is None else target_values
        self.decoder = Decoder(
            decoder, decoder_options, values=target_values, norm_eps=decoder_norm_eps, rngs=rngs
        )
        self.decoder_width = decoder.width

    def __call__(
        self,
        patches: jax.Array,
        visible_idx: jax.Array,
        target_idx: jax.Array,
        *,
        grid: Grid,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        """Predicts the target tokens from the visible ones.

        Args:
          patches: normalised patch vectors of the visible tokens, [B, V, P].
          visible_idx: int32 [B, V], their positions.
          target_idx: int32 [B, M], positions to predict; may overlap with the visible ones.
          grid: tokens along (time, height, width) of the whole clip; static.
          keys: typed PRNG keys [B] for stochastic depth; None: evaluation mode.

        Returns:
          [B, M, target_values] in the compute dtype, in the order of `target_idx`.
        """
        latent = self.encode(patches, visible_idx, grid=grid, keys=stream(keys, 0))
        return self.decode(latent, visible_idx, target_idx, grid=grid, keys=stream(keys, 1))

    @jax.named_scope("encoder")
    def encode(
        self,
        patches: jax.Array,
        visible_idx: jax.Array | None,
        *,
        grid: Grid,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        """Latent [B, V, D] of the visible tokens, after the final norm."""
        return self.encoder(patches, visible_idx, grid=grid, keys=keys)

    def decoder_input(
        self, latent: jax.Array, visible_idx: jax.Array, target_idx: jax.Array, *, grid: Grid
    ) -> jax.Array:
        """[visible; mask tokens] with positions added, [B, V + M, Dd]; never un-shuffled."""
        visible = self.encoder_to_decoder(latent)
        batch, num_targets = target_idx.shape
        mask_token = self.mask_token[...].astype(visible.dtype)
        masked = jnp.broadcast_to(mask_token, (batch, num_targets, self.decoder_width))
        table = sincos_table(grid[0] * grid[1] * grid[2], self.decoder_width)
        tokens = jnp.concatenate([visible, masked], axis=1)
        return add_positions(tokens, table, jnp.concatenate([visible_idx, target_idx], axis=1))

    @jax.named_scope("decoder")
    def decode(
        self,
        latent: jax.Array,
        visible_idx: jax.Array,
        target_idx: jax.Array,
        *,
        grid: Grid,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        """Predictions [B, M, target_values] from the latent [B, V, D]."""
        x = self.decoder_input(latent, visible_idx, target_idx, grid=grid)
        return self.decoder(x, target_idx.shape[1], keys=keys)
