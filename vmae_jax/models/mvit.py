"""Multiscale vision transformer (MViTv2) over video, whose tokens grow fewer and wider.

Attention pools its queries, keys and values by depth-wise convolutions, so that a stage can begin
with a coarser grid, and knows where keys lie relative to queries along each axis.

Source: MViTv2 (arXiv:2112.01526) in the form in which MaskFeat (arXiv:2112.09133) was released
(reference: maskfeat.md, section 1).
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from vmae_jax.models import init
from vmae_jax.models.classifier import PooledClassifier
from vmae_jax.models.layers import Mlp, StackOptions, block_linear, block_norm
from vmae_jax.models.positions import Placed
from vmae_jax.models.stack import run_stack, stacked
from vmae_jax.ops.attention import attention
from vmae_jax.ops.drop_path import drop_path
from vmae_jax.ops.keys import stream
from vmae_jax.ops.patches import Grid, Tubelet
from vmae_jax.ops.pooling import conv_pool, max_pool, pooled_grid
from vmae_jax.ops.relative import places, relative_scores, table_rows
from vmae_jax.variants import MViTSpec


@dataclasses.dataclass(frozen=True)
class BlockShape:
    """Sizes of one block; those that are equal are scanned.

    Attributes:
      width, inner, width_out: of the tokens that come, inside the attention, and that go.
      heads: attention heads; each is inner // heads wide.
      hidden: width inside the MLP.
      grid: of the tokens that come, along (time, height, width).
      stride, kv_stride: of the queries, and of keys and values.
      rows: of the tables of relative positions, along (time, height, width).
    """

    width: int
    inner: int
    width_out: int
    heads: int
    hidden: int
    grid: Grid
    stride: tuple[int, int, int]
    kv_stride: tuple[int, int, int]
    rows: tuple[int, int, int]

    @property
    def grid_out(self) -> Grid:
        """Of the queries, and so of the tokens that go."""
        return pooled_grid(self.grid, self.stride)

    @property
    def kv_grid(self) -> Grid:
        """Of keys and values."""
        return pooled_grid(self.grid, self.kv_stride)


def block_shapes(spec: MViTSpec, grid: Grid) -> tuple[BlockShape, ...]:
    """The sizes of every block for a clip whose stem has a grid.

    Tables of relative positions are sized by dividing the grid and rounding down, as released, so
    that they fit other grids only after resampling.
    """
    shapes = []
    width, heads, kv_stride, divided = spec.width, spec.heads, spec.kv_stride, grid
    for stage, depth in enumerate(spec.depths):
        for i in range(depth):
            first, last = i == 0 and stage > 0, i == depth - 1 and stage < len(spec.depths) - 1
            stride = spec.strides[stage] if i == 0 else (1, 1, 1)
            kv_stride = tuple(max(a // b, 1) for a, b in zip(kv_stride, stride, strict=True))
            if first:
                heads *= 2
            grows = {"attention": first, "mlp": last}[spec.grow_in]
            width_out = 2 * width if grows else width
            inner = width_out if spec.grow_in == "attention" else width
            height_width = (
                table_rows(n // s, n // kv)
                for n, s, kv in list(zip(divided, stride, kv_stride, strict=True))[1:]
            )
            shapes.append(
                BlockShape(
                    width=width,
                    inner=inner,
                    width_out=width_out,
                    heads=heads,
                    hidden=int(inner * spec.mlp_ratio),
                    grid=grid,
                    stride=stride,
                    kv_stride=kv_stride,
                    rows=(table_rows(divided[0], divided[0]), *height_width),
                )
            )
            width, grid = width_out, shapes[-1].grid_out
            divided = tuple(n // s for n, s in zip(divided, stride, strict=True))
    return tuple(shapes)


def groups_of(shapes: Sequence[BlockShape]) -> tuple[tuple[int, int], ...]:
    """Adjacent blocks of equal shape, as (number of the first, how many)."""
    counts = [len(list(group)) for _, group in itertools.groupby(shapes)]
    return tuple(zip(itertools.accumulate([0, *counts[:-1]]), counts, strict=True))


class ConvPool(nnx.Module):
    """A depth-wise convolution over the grid, shared by all heads; no bias."""

    def __init__(self, shape: tuple[int, ...], *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(init.normal_002(rngs.params(), shape))

    def __call__(self, x: jax.Array, stride: tuple[int, int, int]) -> jax.Array:
        """x [B, T, H, W, C] -> [B, T', H', W', C]."""
        return conv_pool(x, self.kernel[...], stride)


class PoolingAttention(nnx.Module):
    """Attention between pooled queries and pooled keys and values.

    A class token in front is neither pooled nor has it a place; it attends and is attended to.
    """

    def __init__(
        self,
        shape: BlockShape,
        options: StackOptions,
        *,
        pool_kernel: tuple[int, int, int],
        class_token: bool,
        rngs: nnx.Rngs,
    ):
        head_dim = shape.inner // shape.heads
        self.qkv = block_linear(shape.width, 3 * shape.inner, options, rngs=rngs)
        self.proj = block_linear(shape.inner, shape.inner, options, rngs=rngs)
        for name in "qkv":
            pool = ConvPool((*pool_kernel, head_dim), rngs=rngs)
            setattr(self, f"pool_{name}", pool)
            setattr(self, f"norm_{name}", block_norm(head_dim, options))
        for axis, rows in zip("thw", shape.rows, strict=True):
            table = init.normal_002(rngs.params(), (rows, head_dim))
            setattr(self, f"rel_pos_{axis}", nnx.Param(table))
        self.shape, self.options, self.class_tokens = shape, options, int(class_token)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, K + N, width] -> [B, K + N', inner], K = 1 with a class token."""
        shape, front = self.shape, self.class_tokens
        q, k, v = jnp.split(checkpoint_name(self.qkv(x), "qkv"), 3, axis=-1)
        q = self._pooled(q, self.pool_q, self.norm_q, shape.stride)
        k = self._pooled(k, self.pool_k, self.norm_k, shape.kv_stride)
        v = self._pooled(v, self.pool_v, self.norm_v, shape.kv_stride)
        q_placed, k_placed = self._with_places(q, k)
        with jax.named_scope("attention"):
            context = attention(q_placed, k_placed, v, scale=1.0, impl=self.options.attention)
        # The pooled queries are added to what they found; not of the class token.
        context = context + jnp.pad(q[:, front:], ((0, 0), (front, 0), (0, 0), (0, 0)))
        context = checkpoint_name(context.reshape(*context.shape[:2], -1), "context")
        return checkpoint_name(self.proj(context), "attn_out")

    @jax.named_scope("pooling")
    def _pooled(self, x, pool, norm, stride):
        """[B, K + N, inner] -> normalised [B, K + N', heads, head_dim]."""
        front, (t, h, w) = self.class_tokens, self.shape.grid
        grid = rearrange(x[:, front:], "b (t h w) c -> b t h w c", t=t, h=h, w=w)
        pooled = rearrange(
            checkpoint_name(pool(grid, stride), "pooled"), "b t h w c -> b (t h w) c"
        )
        pooled = jnp.concatenate([x[:, :front], pooled], axis=1)
        return norm(rearrange(pooled, "b n (heads c) -> b n heads c", heads=self.shape.heads))

    @jax.named_scope("positions")
    def _with_places(self, q, k):
        """Queries and keys whose products are scores with relative positions, scale included.

        Columns are appended: to a query what each place along each axis adds to a score, to a key
        ones at its own places. So whatever computes attention need not know of positions.
        """
        front, (t, h, w), kv_grid = self.class_tokens, self.shape.grid_out, self.shape.kv_grid
        spread = rearrange(q[:, front:], "b (t h w) n c -> b t h w n c", t=t, h=h, w=w)
        tables = (self.rel_pos_t, self.rel_pos_h, self.rel_pos_w)
        added = jnp.concatenate(
            [
                relative_scores(spread, table[...], axis=axis, keys=kv_grid[axis - 1])
                for axis, table in enumerate(tables, 1)
            ],
            axis=-1,
        )
        added = rearrange(added, "b t h w n k -> b (t h w) n k")
        marks = jnp.asarray(places(kv_grid), k.dtype)[None, :, None]
        marks = jnp.broadcast_to(marks, (*k[:, front:].shape[:3], marks.shape[-1]))
        beside_class = ((0, 0), (front, 0), (0, 0), (0, 0))
        scale = (self.shape.inner // self.shape.heads) ** -0.5
        q = jnp.concatenate([q * scale, jnp.pad(added, beside_class)], axis=-1)
        return q, jnp.concatenate([k, jnp.pad(marks, beside_class)], axis=-1)


class MultiscaleBlock(nnx.Module):
    """Pre-norm block; where the width grows, the skip path is a projection of the norm's result."""

    def __init__(
        self,
        shape: BlockShape,
        options: StackOptions,
        *,
        pool_kernel: tuple[int, int, int],
        class_token: bool,
        rngs: nnx.Rngs,
    ):
        self.norm1 = block_norm(shape.width, options)
        self.attn = PoolingAttention(
            shape, options, pool_kernel=pool_kernel, class_token=class_token, rngs=rngs
        )
        self.norm2 = block_norm(shape.inner, options)
        self.mlp = Mlp(shape.inner, shape.hidden, options, width_out=shape.width_out, rngs=rngs)
        if shape.width != shape.width_out:
            self.proj = block_linear(shape.width, shape.width_out, options, rngs=rngs)
        self.shape, self.class_tokens = shape, int(class_token)

    def __call__(
        self, x: jax.Array, *, rate: jax.Array | None = None, keys: jax.Array | None = None
    ) -> jax.Array:
        """x [B, K + N, D] -> [B, K + N', D']; `rate` and `keys` [B] switch stochastic depth on."""
        shape = self.shape
        normed = self.norm1(x)
        skip = self.proj(normed) if shape.inner != shape.width else x
        x = self._skip_pooled(skip) + self._dropped(self.attn(normed), rate, keys, 0)
        normed = self.norm2(x)
        skip = self.proj(normed) if shape.width_out != shape.inner else x
        return skip + self._dropped(self.mlp(normed), rate, keys, 1)

    @jax.named_scope("pooling")
    def _skip_pooled(self, x):
        if math.prod(self.shape.stride) == 1:
            return x
        front, (t, h, w) = self.class_tokens, self.shape.grid
        grid = rearrange(x[:, front:], "b (t h w) c -> b t h w c", t=t, h=h, w=w)
        pooled = rearrange(max_pool(grid, self.shape.stride), "b t h w c -> b (t h w) c")
        return jnp.concatenate([x[:, :front], pooled], axis=1)

    @staticmethod
    def _dropped(branch, rate, keys, which):
        if keys is None:
            return branch
        return drop_path(branch, stream(keys, which), rate)


class Stem(nnx.Module):
    """Cuts a video into overlapping patches and projects them: a convolution, padded with zeros."""

    def __init__(
        self,
        kernel: tuple[int, int, int],
        tubelet: Tubelet,
        channels: int,
        width: int,
        *,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        shape = (*kernel, channels, width)
        self.kernel = nnx.Param(init.normal_002(rngs.params(), shape))
        fan_in = math.prod(shape[:-1])
        self.bias = nnx.Param(init.torch_uniform(rngs.params(), (width,), fan_in=fan_in))
        self.tubelet, self.dtype = tubelet, dtype

    @jax.named_scope("stem")
    def __call__(self, video: jax.Array) -> jax.Array:
        """video [B, T, H, W, C] -> tokens [B, N, width] in raster order."""
        kernel = self.kernel[...].astype(self.dtype)
        grid = jax.lax.conv_general_dilated(
            video.astype(self.dtype),
            kernel,
            window_strides=self.tubelet,
            padding=[(side // 2, side // 2) for side in kernel.shape[:3]],
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )
        return rearrange(grid, "b t h w d -> b (t h w) d") + self.bias[...].astype(self.dtype)


class MViT(Placed):
    """Video -> tokens of any of its blocks.

    Parameters of adjacent blocks of equal shape are stacked on a leading axis under the number of
    the first: `blocks/04/...` of MViTv2-S holds blocks 4 to 12.

    Args:
      spec: size.
      options: how the blocks are built and run, but for what these blocks do not know: scale and
        bias of queries and keys, layer scale. Released networks begin with kernel_init "normal"
        and bias_init 0.02.
      grid: tokens of the stem along (time, height, width).
      tubelet: (frames, rows, columns) by which the stem steps.
      channels: of the video.
      class_token: a learned token in front of the others.
      positions: "none", "separable" or "joint", see `Placed`; beside the relative ones.
      final_norm: end with a LayerNorm.
    """

    def __init__(
        self,
        spec: MViTSpec,
        options: StackOptions,
        *,
        grid: Grid,
        tubelet: Tubelet,
        channels: int = 3,
        class_token: bool = True,
        positions: str = "none",
        final_norm: bool = False,
        rngs: nnx.Rngs,
    ):
        self.patch_embed = Stem(
            spec.stem_kernel, tubelet, channels, spec.width, dtype=options.dtype, rngs=rngs
        )
        super().__init__(
            spec.width, positions=positions, grid=grid, class_token=class_token, rngs=rngs
        )
        if class_token:
            self.cls_token = nnx.Param(init.normal_002(rngs.params(), (spec.width,)))
        shapes = block_shapes(spec, grid)

        def build(shape: BlockShape, rngs: nnx.Rngs) -> MultiscaleBlock:
            return MultiscaleBlock(
                shape, options, pool_kernel=spec.pool_kernel, class_token=class_token, rngs=rngs
            )

        self.groups = groups_of(shapes)
        self.blocks = nnx.Dict(
            {
                f"{first:02}": stacked(functools.partial(build, shapes[first]), count, rngs=rngs)
                for first, count in self.groups
            }
        )
        self.final_norm = final_norm
        if final_norm:
            self.norm = block_norm(shapes[-1].width_out, options)
        self.options, self.shapes = options, shapes

    def grid(self, layer: int) -> Grid:
        """Tokens along (time, height, width) after so many blocks; 0: of the stem."""
        return self.shapes[layer - 1].grid_out if layer else self.shapes[0].grid

    def width(self, layer: int) -> int:
        """Width of the tokens after so many blocks; 0: of the stem."""
        return self.shapes[layer - 1].width_out if layer else self.shapes[0].width

    def __call__(
        self,
        video: jax.Array,
        *,
        hidden: jax.Array | None = None,
        mask_token: jax.Array | None = None,
        keys: jax.Array | None = None,
        layer: int | None = None,
    ) -> jax.Array:
        """Encodes clips.

        Args:
          video: [B, T, H, W, C], normalised.
          hidden: bool [B, N] over the stem's tokens, True where `mask_token` takes their place.
          mask_token: [D] of the stem's width, where `hidden` is given.
          keys: typed PRNG keys [B] for stochastic depth; None: evaluation mode.
          layer: number of blocks to run; None: all of them, and the final norm if there is one.

        Returns:
          [B, K + N, D] in the compute dtype: K = 1 class token in front if there is one, then the
          tokens of `grid(layer)` in raster order.

        Raises:
          ValueError: clips of another size, or not so many blocks.
        """
        depth = len(self.shapes)
        if layer is not None and not 1 <= layer <= depth:
            raise ValueError(f"layer {layer} of {depth} blocks; count from 1")
        x = self._embed(video, hidden, mask_token)
        for first, count in self.groups:
            if first >= (layer or depth):
                break
            x = run_stack(
                self.blocks[f"{first:02}"],
                x,
                self.options,
                keys=keys,
                layers=min(count, (layer or depth) - first),
                first=first,
                total=depth,
            )
        return self.norm(x) if self.final_norm and layer is None else x

    def _embed(self, video, hidden, mask_token):
        """Tokens of the stem, hidden ones replaced, class token in front, with positions."""
        x = self.patch_embed(video)
        t, h, w = self.grid(0)
        if x.shape[1] != t * h * w:
            raise ValueError(f"a clip {video.shape[1:]} has {x.shape[1]} tokens, not {t}x{h}x{w}")
        if hidden is not None:
            x = jnp.where(hidden[..., None], mask_token.astype(x.dtype), x)
        cls_token = self.cls_token[...] if self.class_token else None
        return self.placed(x, None, grid=(t, h, w), class_token=cls_token)


class MViTClassifier(PooledClassifier):
    """Classifier on a multiscale transformer: `(video [B, T, H, W, C], keys=) -> logits`.

    Args:
      pooling, num_classes, init_scale, head_dropout: see `PooledClassifier`.
      spec, options, network: see `MViT`.
    """

    def __init__(
        self,
        spec: MViTSpec,
        options: StackOptions,
        *,
        num_classes: int,
        pooling: str = "mean",
        init_scale: float = 0.001,
        head_dropout: float = 0.0,
        rngs: nnx.Rngs,
        **network: Any,
    ):
        encoder = MViT(spec, options, final_norm=pooling != "mean", rngs=rngs, **network)
        super().__init__(
            encoder,
            encoder.width(spec.depth),
            options,
            num_classes=num_classes,
            pooling=pooling,
            init_scale=init_scale,
            head_dropout=head_dropout,
            rngs=rngs,
        )
