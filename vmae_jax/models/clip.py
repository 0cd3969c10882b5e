"""The image tower of CLIP: what it says of every patch of single frames, and where it looks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vmae_jax.models import init
from vmae_jax.models.layers import LayerNorm, Linear, StackOptions
from vmae_jax.models.positions import Placed
from vmae_jax.models.stack import block_of, build_stack, run_stack
from vmae_jax.variants import StackSpec

# The released blocks: biases of queries, keys and values, sigmoid GELU, PyTorch's default epsilon.
_RELEASED = {
    "qkv_bias": True,
    "key_bias": True,
    "qk_scale": None,
    "cosine_attention": False,
    "layer_scale": 0.0,
    "eps": 1e-5,
    "gelu": "quick",
    "drop_path": 0.0,
}


class ImageTower(Placed):
    """CLIP's vision transformer on the patches of frames, in evaluation mode.

    Args:
      spec: size of the stack.
      options: how its blocks are run (attention, dtype, remat, scan); what they compute is CLIP's.
      values: P, the numbers in a patch.
      grid: (rows, columns) of patches that the table of positions is for.
      output: width of the space that pictures and texts share.

    Source: CLIP (arXiv:2103.00020) and its released model.
    """

    def __init__(
        self,
        spec: StackSpec,
        options: StackOptions,
        *,
        values: int,
        grid: tuple[int, int],
        output: int,
        rngs: nnx.Rngs,
    ):
        options = dataclasses.replace(options, **_RELEASED)
        linear = {"kernel_init": init.by_fan_in, "bias_init": None, "dtype": options.dtype}
        norm = {"eps": options.eps, "dtype": options.dtype}
        self.patch_embed = Linear(values, spec.width, rngs=rngs, **linear)
        super().__init__(
            spec.width, positions="joint", grid=(1, *grid), class_token=True, rngs=rngs
        )
        self.cls_token = nnx.Param(init.normal_002(rngs.params(), (spec.width,)))
        self.norm_pre = LayerNorm(spec.width, **norm)
        self.blocks = build_stack(spec, options, rngs=rngs)
        self.norm = LayerNorm(spec.width, **norm)
        self.proj = Linear(spec.width, output, rngs=rngs, **linear)
        self.grid, self.depth = (1, *grid), spec.depth
        self.values, self.options = values, options

    def __call__(
        self, patches: jax.Array, *, taps: tuple[int, ...], attention_layer: int | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """What some layers say of the patches, and which of them the class token takes.

        Final norm and projection, which were trained for the class token of the last layer, are
        applied to the patches of all tapped ones, as UMT (arXiv:2303.16058) does.

        Args:
          patches: normalised patch vectors of F frames, [F, N, P], in raster order.
          taps: layers, counted from 1 and ascending; static.
          attention_layer: whose class token is asked, counted from 1; None: the last one's.

        Returns:
          (features float32 [K, F, N, output], not of unit length; attention float32 [F, N], the
          weights of the class token in that layer, mean of the heads. What it takes of itself is
          left out, so that rows add up to less than one.)

        Raises:
          ValueError: other patches than it is for, or no such layers.
        """
        grid = self.grid
        if patches.shape[1:] != (grid[1] * grid[2], self.values):
            raise ValueError(
                f"expected patches [F, {grid[1] * grid[2]}, {self.values}], got {patches.shape}"
            )
        x = self.placed(self.patch_embed(patches), None, grid=grid, class_token=self.cls_token[...])
        x = self.norm_pre(x)
        # What enters a block says where its class token looks.
        asked = self.depth if attention_layer is None else attention_layer
        before = asked - 1
        kept = tuple(sorted({*taps, before} - {0}))
        outputs = run_stack(self.blocks, x, self.options, taps=kept)
        entering = outputs[kept.index(before)] if before else x
        block = block_of(self.blocks, asked)
        attention = block.attention(entering, queries=1).mean(axis=1)[:, 0, 1:]
        if kept != taps:
            outputs = outputs[np.array([kept.index(tap) for tap in taps])]
        features = self.proj(self.norm(outputs[:, :, 1:]))
        return features.astype(jnp.float32), attention
