"""The size of an image tower, which has no recipe: from shapes, and a config beside its weights."""

import dataclasses
import math
from typing import Any

from vmae_jax.convert.architecture import mlp_ratio
from vmae_jax.convert.engine import ConversionError, Params
from vmae_jax.convert.sources import Source
from vmae_jax.models.clip import ImageTower
from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.ops.patches import Tubelet
from vmae_jax.variants import CLIP_VARIANTS, StackSpec

_HEAD_DIM = 64  # of all published towers


@dataclasses.dataclass(frozen=True)
class Tower:
    """Size of an image tower.

    Attributes:
      spec: of its stack.
      tubelet: (frames, rows, columns) of a patch.
      channels: of the pictures.
      grid: (rows, columns) of patches that it has positions for.
      output: width of its projection.
    """

    spec: StackSpec
    tubelet: Tubelet
    channels: int
    grid: tuple[int, int]
    output: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of its pictures in pixels."""
        return self.grid[0] * self.tubelet[1], self.grid[1] * self.tubelet[2]

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches on pictures of another size (height, width).

        Raises:
          ConversionError: a size that its patches do not divide.
        """
        _, rows, columns = self.tubelet
        if size[0] % rows or size[1] % columns:
            raise ConversionError(f"patches of {rows} x {columns} pixels do not divide {size}")
        return size[0] // rows, size[1] // columns

    @property
    def shapes(self) -> Params:
        """Its parameters without their values."""
        network = functional(
            lambda rngs: ImageTower(
                self.spec,
                StackOptions(),
                values=math.prod(self.tubelet) * self.channels,
                grid=self.grid,
                output=self.output,
                rngs=rngs,
            )
        )
        return network.shapes


def tower_of(source: Source) -> Tower:
    """The size of an image tower, as far as shapes, published sizes and a config beside it tell.

    Raises:
      ConversionError: they do not, or it computes otherwise than CLIP's.
    """
    shapes = {path: array.shape for path, array in source.arrays.items()}
    try:
        depth, width, hidden = shapes["blocks/mlp/fc1/kernel"]
        places, (_, output) = shapes["pos_embed"][0] - 1, shapes["proj/kernel"]
    except KeyError as error:
        raise ConversionError(f"an image tower without {error.args[0]}") from error
    if source.tubelet is None:
        raise ConversionError(
            "nothing beside the image tower tells its patches; keep the config.json that "
            "tools/convert writes"
        )
    side = math.isqrt(places)
    grid = source.config.get("image_tower", {}).get("grid", (side, side))
    if math.prod(grid) != places:
        raise ConversionError(f"{places} positions are no square, and no config tells their grid")
    usual = {spec.width: spec.heads for spec in CLIP_VARIANTS.values()}
    heads = _told(source).get("heads") or usual.get(width) or max(width // _HEAD_DIM, 1)
    check_tower(source, heads)
    spec = StackSpec(width, depth, heads, mlp_ratio(width, hidden))
    return Tower(spec, source.tubelet, source.channels, tuple(grid), output)


def check_tower(source: Source, heads: int) -> None:
    """Whether what lies beside an image tower agrees with CLIP's blocks of so many heads.

    Raises:
      ConversionError: it does not.
    """
    theirs = _told(source)
    for name, ours in (("heads", heads), ("activation", "quick_gelu"), ("epsilon", 1e-5)):
        if theirs.get(name, ours) != ours:
            raise ConversionError(
                f"the image tower's config says {name} {theirs[name]!r}, the model has {ours!r}"
            )


def _told(source: Source) -> dict[str, Any]:
    """What a config beside an image tower says, ours or transformers', of what shapes do not."""
    theirs = source.config.get("vision_config", source.config)
    names = {"num_attention_heads": "heads", "hidden_act": "activation"}
    names |= {"layer_norm_eps": "epsilon"}
    found = {name: theirs[key] for key, name in names.items() if key in theirs}
    ours = source.config.get("image_tower", {})
    return found | ({"heads": ours["heads"]} if "heads" in ours else {})
