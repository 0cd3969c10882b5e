"""A frozen image tower that looks at the frames of clips, as pure functions of its parameters."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
from einops import rearrange
from ml_collections import ConfigDict

from vmae_jax.chips import Chip
from vmae_jax.config import aligned_layers, patch_values, teacher_frames, teacher_grid
from vmae_jax.models import flops
from vmae_jax.models.clip import ImageTower
from vmae_jax.models.functional import functional
from vmae_jax.ops.bicubic import resize_bicubic
from vmae_jax.ops.losses import unit_vectors
from vmae_jax.ops.patches import patchify
from vmae_jax.systems.base import Params, compute_copy
from vmae_jax.systems.stacks import encoder_for_planes, spec_of, stack_options


@dataclasses.dataclass(frozen=True)
class ImageTeacher:
    """A tower that is never trained.

    Attributes:
      init: `key -> frozen`.
      look: `(frozen, video) -> (features, attention)` of clips [B, T, H, W, C], float32 and
        normalised as the student's. Features float32 [K, B, N, D] of the layers that are aligned,
        the shallowest first, tokens in raster order; attention float32 [B * slots, N / slots], how
        much the class token of each frame takes of its patches.
      macs: forward multiply-accumulates per clip, by part.
      choices: what "auto" fields came to.
    """

    init: Callable[[jax.Array], Params]
    look: Callable[[Params, jax.Array], tuple[jax.Array, jax.Array]]
    macs: Mapping[str, float]
    choices: Mapping[str, str]


def image_teacher(config: ConfigDict, chip: Chip) -> ImageTeacher:
    """The teacher that `config.teacher` describes.

    Args:
      config: a validated recipe.
      chip: what it will run on.

    Raises:
      ConfigError: an attention that this chip cannot use.
    """
    part, channels = config.teacher, config.model.channels
    size, tubelet = tuple(part.size), tuple(part.tubelet)
    slots, rows, columns = teacher_grid(config)
    spec, places, layers = spec_of(part.encoder), rows * columns, aligned_layers(config, "teacher")
    together, unit = teacher_frames(config), config.align.normalize == "l2"
    options = stack_options(config, "teacher.encoder", tokens=1 + places, chip=chip)
    network = functional(
        lambda rngs: ImageTower(
            spec,
            options,
            values=patch_values(config, tubelet),
            grid=(rows, columns),
            output=part.output,
            rngs=rngs,
        )
    )

    def seen(frozen: Params, video: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features [K, B, slots, places, D] and attention [B, slots, places] of some frames."""
        batch = video.shape[0]
        if video.shape[2:4] != size:
            video = resize_bicubic(video, *size)
        patches = patchify(video, tubelet, order="planes")
        patches = rearrange(patches, "b (t n) p -> (b t) n p", n=places)
        features, attention = network.apply(
            frozen, patches, taps=layers, attention_layer=part.attention_layer or None
        )
        features = unit_vectors(features) if unit else features
        return (
            rearrange(features, "k (b t) n d -> k b t n d", b=batch),
            rearrange(attention, "(b t) n -> b t n", b=batch),
        )

    @jax.named_scope("teacher")
    def look(frozen: Params, video: jax.Array) -> tuple[jax.Array, jax.Array]:
        frozen = encoder_for_planes(compute_copy(frozen, config.model.dtype), channels)
        # Frames of every clip at a time, so that all devices have their share of each chunk.
        chunks = rearrange(video, "b (chunk t) h w c -> chunk b t h w c", t=together)
        if len(chunks) == 1:
            features, attention = jax.tree.map(lambda x: x[None], seen(frozen, chunks[0]))
        else:
            features, attention = jax.lax.map(lambda chunk: seen(frozen, chunk), chunks)
        return (
            rearrange(features, "chunk k b t n d -> k b (chunk t n) d"),
            rearrange(attention, "chunk b t n -> (b chunk t) n"),
        )

    return ImageTeacher(
        init=network.init,
        look=look,
        macs=flops.image_tower_macs(
            spec,
            frames=slots,
            patches=places,
            values=math.prod(tubelet) * channels,
            layers=len(layers),
            output=part.output,
        ),
        choices={"teacher attention": options.attention},
    )
