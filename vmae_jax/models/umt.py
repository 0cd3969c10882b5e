"""The student of UMT: an encoder on the visible tokens, and a head for each aligned layer."""

import jax
from flax import nnx

from vmae_jax.models import init
from vmae_jax.models.layers import LayerNorm, Linear, StackOptions
from vmae_jax.models.positions import add_positions
from vmae_jax.models.stack import stacked
from vmae_jax.models.vit import ViTEncoder
from vmae_jax.ops.patches import Grid
from vmae_jax.ops.pos_embed import sincos_table
from vmae_jax.variants import StackSpec


class AlignmentHead(nnx.Module):
    """Linear, LayerNorm: tokens [..., D] of a student -> float32 [..., output] of a teacher."""

    def __init__(self, width: int, output: int, options: StackOptions, *, rngs: nnx.Rngs):
        self.proj = Linear(
            width,
            output,
            kernel_init=init.KERNEL_INITS[options.kernel_init],
            dtype=options.dtype,
            rngs=rngs,
        )
        # float32: it is compared with the teacher next.
        self.norm = LayerNorm(output, eps=options.eps, dtype="float32")

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.proj(x))


class Student(nnx.Module):
    """A vision transformer whose last layers each say what a teacher would.

    Args:
      spec, options, values, positions, grid, class_token, scheme: see `ViTEncoder`.
      layers: that are aligned, counted from 1 and ascending.
      output: width of the teacher's answers.

    Source: Unmasked Teacher (arXiv:2303.16058) and its released model.
    """

    def __init__(
        self,
        spec: StackSpec,
        options: StackOptions,
        *,
        values: int,
        layers: tuple[int, ...],
        output: int,
        positions: str = "sincos",
        grid: Grid | None = None,
        class_token: bool = False,
        scheme: init.Scheme = init.SCHEMES["videomae"],
        rngs: nnx.Rngs,
    ):
        self.encoder = ViTEncoder(
            spec,
            options,
            values=values,
            positions=positions,
            grid=grid,
            class_token=class_token,
            scheme=scheme,
            rngs=rngs,
        )
        self.align = stacked(
            lambda rngs: AlignmentHead(spec.width, output, options, rngs=rngs),
            len(layers),
            rngs=rngs,
        )
        self.layers = tuple(layers)

    def __call__(
        self,
        patches: jax.Array,
        visible_idx: jax.Array,
        *,
        grid: Grid,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        """What each aligned layer says of the visible tokens.

        Args:
          patches: normalised patch vectors of the visible tokens, [B, V, P].
          visible_idx: int32 [B, V], their positions.
          grid: tokens along (time, height, width) of the whole clip; static.
          keys: typed PRNG keys [B] for stochastic depth; None: evaluation mode.

        Returns:
          float32 [K, B, V, output], the shallowest layer first; not yet of unit length.
        """
        tokens = self.features(patches, visible_idx, grid=grid, keys=keys)
        return self.aligned(tokens, visible_idx, grid=grid)

    @jax.named_scope("encoder")
    def features(
        self,
        patches: jax.Array,
        visible_idx: jax.Array,
        *,
        grid: Grid,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        """Tokens of each aligned layer after the one final norm, [K, B, V, D]."""
        tokens = self.encoder(patches, visible_idx, grid=grid, keys=keys, taps=self.layers)
        return tokens[:, :, 1:] if self.encoder.class_token else tokens

    @jax.named_scope("align")
    def aligned(self, tokens: jax.Array, visible_idx: jax.Array, *, grid: Grid) -> jax.Array:
        """What the heads make of `features`; fixed positions are added to these once more."""
        table = sincos_table(grid[0] * grid[1] * grid[2], tokens.shape[-1])
        graphdef, heads = nnx.split(self.align)
        # One product for all heads rather than one each.
        return jax.vmap(lambda head, x: nnx.merge(graphdef, head)(x))(
            heads, add_positions(tokens, table, visible_idx)
        )
