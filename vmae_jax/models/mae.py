"""Masked autoencoder on videos: an encoder on the visible tokens, a decoder on the targets.

Knows neither masks nor pixels: index arrays and patch vectors come in, predictions go out.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from vmae_jax.models import init
from vmae_jax.models.layers import LayerNorm, Linear, StackOptions
from vmae_jax.models.positions import Placed
from vmae_jax.models.stack import build_stack, run_stack
from vmae_jax.models.vit import ViTEncoder, with_mask_tokens
from vmae_jax.ops.keys import stream
from vmae_jax.ops.patches import Grid
from vmae_jax.variants import DECODER_CLASS_TOKENS, MASK_TOKENS, StackSpec


class Decoder(Placed):
    """Blocks over [class token; visible; targets]; norm and head on the targets alone.

    Args:
      positions, grid: see `Placed`.
      class_token: "none"; "own": a learned one that starts at zero; "encoder": the one that comes
        out of the encoder.
      norm_eps: epsilon of the norm before the head; None: that of the blocks. transformers' port
        has its own.
    """

    def __init__(
        self,
        spec: StackSpec,
        options: StackOptions,
        *,
        values: int,
        positions: str = "sincos",
        grid: Grid | None = None,
        class_token: str = "none",
        norm_eps: float | None = None,
        rngs: nnx.Rngs,
    ):
        if class_token not in DECODER_CLASS_TOKENS:
            raise ValueError(
                f"class_token={class_token!r}; choose one of {', '.join(DECODER_CLASS_TOKENS)}"
            )
        super().__init__(
            spec.width,
            positions=positions,
            grid=grid,
            class_token=class_token != "none",
            rngs=rngs,
        )
        self.own_class_token = class_token == "own"
        if self.own_class_token:
            self.cls_token = nnx.Param(jnp.zeros((spec.width,), jnp.float32))
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
        """x [B, ..., Dd] -> [B, M, values] for the last `num_targets` tokens, M of them."""
        x = run_stack(self.blocks, x, self.options, keys=keys)
        return self.head(self.norm(x[:, x.shape[1] - num_targets :]))


class MaskedAutoencoder(nnx.Module):
    """The network of VideoMAE and VideoMAE V2 (they differ in the targets they ask for) and MAE-ST.

    Args:
      encoder, decoder: sizes of the two stacks.
      values: P, the numbers in an input patch.
      target_values: numbers predicted for a token; None: P.
      encoder_options, decoder_options: how their blocks are built and run; the decoder's default
        to the encoder's.
      positions, class_token: of the encoder, see `ViTEncoder`.
      grid: of the clips, where positions are learned.
      decoder_positions, decoder_class_token, decoder_norm_eps: see `Decoder`.
      to_decoder_bias: whether the projection between the stacks has a bias.
      mask_tokens: where they stand in for what is hidden: "decoder", so that the encoder sees
        visible tokens alone, or "encoder", which then takes all tokens.
      scheme: how parameters outside of the blocks begin.

    Raises:
      ValueError: a decoder that wants the class token of an encoder without one.

    Source: VideoMAE (arXiv:2203.12602), VideoMAE V2 (arXiv:2303.16727), MAE-ST (arXiv:2205.09113)
    and their released models.
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
        positions: str = "sincos",
        class_token: bool = False,
        grid: Grid | None = None,
        decoder_positions: str = "sincos",
        decoder_class_token: str = "none",
        decoder_norm_eps: float | None = None,
        to_decoder_bias: bool = False,
        mask_tokens: str = "decoder",
        scheme: init.Scheme = init.SCHEMES["videomae"],
        rngs: nnx.Rngs,
    ):
        if mask_tokens not in MASK_TOKENS:
            raise ValueError(f"mask_tokens={mask_tokens!r}; choose one of {', '.join(MASK_TOKENS)}")
        if decoder_class_token == "encoder" and not class_token:
            raise ValueError("decoder_class_token='encoder' needs an encoder with a class token")
        decoder_options = decoder_options or encoder_options
        self.encoder = ViTEncoder(
            encoder,
            encoder_options,
            values=values,
            positions=positions,
            grid=grid,
            class_token=class_token,
            scheme=scheme,
            rngs=rngs,
        )
        drawn = functools.partial(init.torch_uniform, fan_in=encoder.width)
        bias_init = drawn if scheme.to_decoder_bias else init.zeros
        self.encoder_to_decoder = Linear(
            encoder.width,
            decoder.width,
            kernel_init=scheme.to_decoder,
            bias_init=bias_init if to_decoder_bias else None,
            dtype=decoder_options.dtype,
            rngs=rngs,
        )
        self.masks_in_encoder = mask_tokens == "encoder"
        mask_width = encoder.width if self.masks_in_encoder else decoder.width
        self.mask_token = nnx.Param(scheme.mask_token(rngs.params(), (mask_width,)))
        target_values = values if target_values is None else target_values
        self.decoder = Decoder(
            decoder,
            decoder_options,
            values=target_values,
            positions=decoder_positions,
            grid=grid,
            class_token=decoder_class_token,
            norm_eps=decoder_norm_eps,
            rngs=rngs,
        )

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
        latent = self.encode(
            patches,
            visible_idx,
            target_idx if self.masks_in_encoder else None,
            grid=grid,
            keys=stream(keys, 0),
        )
        return self.decode(latent, visible_idx, target_idx, grid=grid, keys=stream(keys, 1))

    @jax.named_scope("encoder")
    def encode(
        self,
        patches: jax.Array,
        visible_idx: jax.Array | None,
        masked_idx: jax.Array | None = None,
        *,
        grid: Grid,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        """Latent of the visible tokens, after the final norm.

        Args:
          masked_idx: int32 [B, M], where mask tokens stand in; None: nowhere.

        Returns:
          [B, V (+ M), D]; with a class token [B, 1 + V (+ M), D].
        """
        if masked_idx is None:
            return self.encoder(patches, visible_idx, grid=grid, keys=keys)
        idx = jnp.concatenate([visible_idx, masked_idx], axis=1)
        mask_token = self.mask_token[...]
        return self.encoder(patches, idx, grid=grid, keys=keys, mask_token=mask_token)

    def decoder_input(
        self, latent: jax.Array, visible_idx: jax.Array, target_idx: jax.Array, *, grid: Grid
    ) -> jax.Array:
        """[class token; visible; mask tokens] with positions added, never un-shuffled.

        Returns:
          [B, V + M, Dd], or [B, 1 + V + M, Dd] where the decoder has a class token.
        """
        handed_on = self.decoder.class_token and not self.decoder.own_class_token
        if self.encoder.class_token and not handed_on:
            latent = latent[:, 1:]
        tokens, class_token = self.encoder_to_decoder(latent), None
        if handed_on:
            class_token, tokens = tokens[:, :1], tokens[:, 1:]
        elif self.decoder.own_class_token:
            class_token = self.decoder.cls_token[...]
        if not self.masks_in_encoder:
            tokens = with_mask_tokens(tokens, self.mask_token[...], target_idx.shape[1])
        idx = jnp.concatenate([visible_idx, target_idx], axis=1)
        return self.decoder.placed(tokens, idx, grid=grid, class_token=class_token)

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
        """Predictions [B, M, target_values] from the latent of `encode`."""
        x = self.decoder_input(latent, visible_idx, target_idx, grid=grid)
        return self.decoder(x, target_idx.shape[1], keys=keys)
