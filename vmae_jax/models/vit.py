"""Vision transformer over tubelets: the encoder of VideoMAE and MAE-ST, and classifiers on top."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from vmae_jax.models import init
from vmae_jax.models.classifier import PooledClassifier
from vmae_jax.models.layers import LayerNorm, Linear, StackOptions
from vmae_jax.models.positions import Placed
from vmae_jax.models.stack import block_of, build_stack, run_stack
from vmae_jax.ops.patches import Grid, Tubelet
from vmae_jax.variants import StackSpec


def patch_values(tubelet: Tubelet, channels: int) -> int:
    """P, the numbers in one patch."""
    return tubelet[0] * tubelet[1] * tubelet[2] * channels


class ViTEncoder(Placed):
    """Patch vectors -> tokens, for the tokens that it is given and no others.

    Args:
      spec: size of the stack.
      options: how its blocks are built and run.
      values: P, the numbers in a patch (`patch_values`).
      final_norm: end with a LayerNorm.
      positions, grid: see `Placed`.
      class_token: put a learned token in front of the others; results have it there too.
      scheme: how parameters outside of the blocks begin.
    """

    def __init__(
        self,
        spec: StackSpec,
        options: StackOptions,
        *,
        values: int,
        final_norm: bool = True,
        positions: str = "sincos",
        grid: Grid | None = None,
        class_token: bool = False,
        scheme: init.Scheme = init.SCHEMES["videomae"],
        rngs: nnx.Rngs,
    ):
        self.patch_embed = Linear(
            values,
            spec.width,
            kernel_init=scheme.patch_embed,
            bias_init=functools.partial(init.torch_uniform, fan_in=values),
            dtype=options.dtype,
            rngs=rngs,
        )
        super().__init__(
            spec.width, positions=positions, grid=grid, class_token=class_token, rngs=rngs
        )
        if class_token:
            self.cls_token = nnx.Param(init.normal_002(rngs.params(), (spec.width,)))
        self.blocks = build_stack(spec, options, rngs=rngs)
        self.final_norm = final_norm
        if final_norm:
            self.norm = LayerNorm(spec.width, eps=options.eps, dtype=options.dtype)
        self.values, self.options = values, options

    def __call__(
        self,
        patches: jax.Array,
        idx: jax.Array | None = None,
        *,
        grid: Grid,
        keys: jax.Array | None = None,
        layer: int | None = None,
        taps: tuple[int, ...] = (),
        mask_token: jax.Array | None = None,
        hidden: jax.Array | None = None,
    ) -> jax.Array:
        """Encodes some or all tokens.

        Args:
          patches: normalised patch vectors [B, K, P].
          idx: int32 [B, K], their positions in the grid; None: all N in raster order. With a
            `mask_token` [B, K + M], those that it stands in at come last.
          grid: tokens along (time, height, width) of the whole clip; static.
          keys: typed PRNG keys [B] for stochastic depth; None: evaluation mode.
          layer: number of blocks to run; None: all of them, and the final norm if there is one.
          taps: layers whose tokens are wanted, counted from 1 and ascending, each after the final
            norm if there is one; (): those of the last.
          mask_token: [D], in place of M patches that are hidden; None: these are left out.
          hidden: bool [B, K], patches that are given and that the mask token replaces; M is 0.

        Returns:
          [B, K (+ M), D] in the compute dtype; with a class token [B, 1 + K (+ M), D].
          With taps these for each of them, on a leading axis.
        """
        x = self._embed(patches, idx, grid, mask_token, hidden)
        x = run_stack(self.blocks, x, self.options, keys=keys, layers=layer, taps=taps)
        return self.norm(x) if self.final_norm and layer is None else x

    def attention(self, patches: jax.Array, *, grid: Grid, layer: int) -> jax.Array:
        """How much each token takes of each other in one layer, in evaluation mode.

        Args:
          patches: normalised patch vectors of all tokens, [B, N, P].
          grid: tokens along (time, height, width); static.
          layer: from 1.

        Returns:
          float32 [B, heads, N, N], a row for each token that takes; rows sum to one. A class token
          has the first row and column, [B, heads, 1 + N, 1 + N].
        """
        x = self._embed(patches, None, grid)
        if layer > 1:
            x = run_stack(self.blocks, x, self.options, layers=layer - 1)
        return block_of(self.blocks, layer).attention(x)

    def _embed(
        self,
        patches: jax.Array,
        idx: jax.Array | None,
        grid: Grid,
        mask_token: jax.Array | None = None,
        hidden: jax.Array | None = None,
    ) -> jax.Array:
        """Patch vectors [B, K, P] -> tokens with their positions, the class token in front."""
        num_tokens = grid[0] * grid[1] * grid[2]
        if patches.ndim != 3 or patches.shape[-1] != self.values:
            raise ValueError(f"expected patches [B, K, {self.values}], got {patches.shape}")
        if idx is None and patches.shape[1] != num_tokens:
            raise ValueError(
                f"{patches.shape[1]} patches a clip for a grid {tuple(grid)} of {num_tokens}; "
                "give idx where only some are encoded"
            )
        tokens = self.patch_embed(patches)
        if hidden is not None:
            tokens = jnp.where(hidden[..., None], mask_token.astype(tokens.dtype), tokens)
        elif mask_token is not None:
            tokens = with_mask_tokens(tokens, mask_token, idx.shape[1] - tokens.shape[1])
        cls_token = self.cls_token[...] if self.class_token else None
        return self.placed(tokens, idx, grid=grid, class_token=cls_token)


def with_mask_tokens(tokens: jax.Array, mask_token: jax.Array, count: int) -> jax.Array:
    """Tokens [B, K, D] and behind them `count` copies of the mask token [D]."""
    batch, _, width = tokens.shape
    masked = jnp.broadcast_to(mask_token.astype(tokens.dtype), (batch, count, width))
    return jnp.concatenate([tokens, masked], axis=1)


class Classifier(PooledClassifier):
    """Classifier on a vision transformer: `(patches [B, N, P], grid=, keys=) -> logits`.

    Args:
      pooling, num_classes, init_scale, head_dropout, pooled_eps: see `PooledClassifier`.
      spec, options, values, positions, grid, class_token, scheme: see `ViTEncoder`.
    """

    def __init__(
        self,
        spec: StackSpec,
        options: StackOptions,
        *,
        values: int,
        num_classes: int,
        pooling: str = "mean",
        init_scale: float = 0.001,
        head_dropout: float = 0.0,
        pooled_eps: float | None = None,
        positions: str = "sincos",
        grid: Grid | None = None,
        class_token: bool = False,
        scheme: init.Scheme = init.SCHEMES["videomae"],
        rngs: nnx.Rngs,
    ):
        encoder = ViTEncoder(
            spec,
            options,
            values=values,
            final_norm=pooling != "mean",
            positions=positions,
            grid=grid,
            class_token=class_token,
            scheme=scheme,
            rngs=rngs,
        )
        super().__init__(
            encoder,
            spec.width,
            options,
            num_classes=num_classes,
            pooling=pooling,
            init_scale=init_scale,
            head_dropout=head_dropout,
            pooled_eps=pooled_eps,
            rngs=rngs,
        )
