"""Where tokens lie: the fixed sinusoid or learned tables, and the class token in front of all."""

import jax
import jax.numpy as jnp
from flax import nnx

from vmae_jax.models import init
from vmae_jax.ops.patches import Grid
from vmae_jax.ops.pos_embed import sincos_positions
from vmae_jax.variants import POSITIONS


class Placed(nnx.Module):
    """What a stack on tokens of a grid has beside its blocks: positions, perhaps a class token.

    A base class, so that the tables lie beside the blocks in the tree of parameters.

    Args:
      width: D of the tokens.
      positions: "none", of networks that know relative ones. "sincos": fixed, nothing learned.
        "separable": a table of places in the frame, `pos_embed_spatial` [h*w, D], and one of time
        slots, `pos_embed_temporal` [t, D], which are added; for the class token `pos_embed_class`
        [D]. "joint": one table `pos_embed`
        [t*h*w, D], with the class token's row in front where there is one. "frozen": a joint table
        that starts at zero and, as in VideoMAE's released code, receives no gradient.
      grid: tokens along (time, height, width) that tables are for. The sinusoid is interpolated for
        clips with others (`sincos_positions`); None: it is that of every clip's own.
      class_token: whether a class token comes in front of the tokens; under "sincos" it has no
        position.

    Raises:
      ValueError: an unknown kind of positions, or learned ones without a grid.

    Source: MAE-ST (arXiv:2205.09113) and its two released implementations.
    """

    def __init__(
        self,
        width: int,
        *,
        positions: str,
        grid: Grid | None,
        class_token: bool,
        rngs: nnx.Rngs,
    ):
        if positions not in POSITIONS:
            raise ValueError(f"positions={positions!r}; choose one of {', '.join(POSITIONS)}")
        learned = positions not in ("none", "sincos")
        if learned and grid is None:
            raise ValueError(f"positions={positions!r} need the grid that they are learned for")
        if positions == "separable":
            t, h, w = grid
            self.pos_embed_spatial = nnx.Param(init.normal_002(rngs.params(), (h * w, width)))
            self.pos_embed_temporal = nnx.Param(init.normal_002(rngs.params(), (t, width)))
            if class_token:
                self.pos_embed_class = nnx.Param(init.normal_002(rngs.params(), (width,)))
        elif positions == "joint":
            rows = grid[0] * grid[1] * grid[2] + class_token
            self.pos_embed = nnx.Param(init.normal_002(rngs.params(), (rows, width)))
        elif positions == "frozen":
            rows = grid[0] * grid[1] * grid[2] + class_token
            self.pos_embed = nnx.Param(jnp.zeros((rows, width), jnp.float32))
        self.positions, self.class_token = positions, class_token
        self.table_grid = None if grid is None else tuple(grid)

    def placed(
        self,
        tokens: jax.Array,
        idx: jax.Array | None,
        *,
        grid: Grid,
        class_token: jax.Array | None = None,
    ) -> jax.Array:
        """Adds positions, and puts the class token with its own in front.

        Args:
          tokens: [B, K, D].
          idx: int32 [B, K], their positions; None: they are all, in raster order.
          grid: tokens along (time, height, width); static.
          class_token: [D] or [B, 1, D]; given exactly where the stack has one.

        Returns:
          [B, K, D], or [B, 1 + K, D] with a class token, in the dtype of `tokens`.

        Raises:
          ValueError: a grid that the tables are not for.
        """
        batch, _, width = tokens.shape
        table, class_row = self._tables(tuple(grid), width)
        tokens = tokens if table is None else add_positions(tokens, table, idx)
        if not self.class_token:
            return tokens
        first = class_token if class_row is None else class_token.astype(jnp.float32) + class_row
        first = jnp.broadcast_to(first.astype(tokens.dtype), (batch, 1, width))
        return jnp.concatenate([first, tokens], axis=1)

    def _tables(self, grid: Grid, width: int):
        """Positions of the grid's tokens [N, D] or None, and of the class token [D] or None."""
        if self.positions == "none":
            return None, None
        if self.positions == "sincos":
            return sincos_positions(grid, width, origin=self.table_grid or grid), None
        if grid != self.table_grid:
            raise ValueError(
                f"positions were learned for tokens on a grid {self.table_grid}, the clip's is "
                f"{grid}; load the weights into a model for that grid, which interpolates them"
            )
        if self.positions == "separable":
            time, space = self.pos_embed_temporal[...], self.pos_embed_spatial[...]
            table = (time[:, None] + space).reshape(-1, width)
            return table, self.pos_embed_class[...] if self.class_token else None
        table = self.pos_embed[...]
        if self.positions == "frozen":
            table = jax.lax.stop_gradient(table)
        return (table[1:], table[0]) if self.class_token else (table, None)


def add_positions(tokens: jax.Array, table: jax.Array, idx: jax.Array | None) -> jax.Array:
    """Adds rows of a float32 table [N, D] to tokens [B, K, D]; the sum is taken in float32.

    Args:
      tokens: there may be further axes in front.
      idx: int32 [B, K], position of each token; None: the tokens are all N, in raster order.
    """
    table = jnp.asarray(table, jnp.float32)
    rows = table if idx is None else table.at[idx].get(mode="promise_in_bounds")
    return (tokens.astype(jnp.float32) + rows).astype(tokens.dtype)
