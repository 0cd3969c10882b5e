"""UMT (Unmasked Teacher): say of the visible tokens what a frozen image tower says of them.

The tower sees every frame whole. What its class token looks at is likely to stay visible, and the
last layers of the student are aligned with its last layers, each by a head of its own. Nothing that
is hidden is predicted.

Source: Unmasked Teacher (arXiv:2303.16058) and its released code (reference: umt.md, A). That code
runs with masks by attention alone; here the others work too.
"""

import functools
import math

import jax
import jax.numpy as jnp
from einops import repeat
from ml_collections import ConfigDict

from vmae_jax.chips import Chip
from vmae_jax.config import aligned_layers, teacher_grid, token_counts
from vmae_jax.models import flops
from vmae_jax.models.functional import functional
from vmae_jax.models.umt import Student
from vmae_jax.ops import losses, masking
from vmae_jax.ops.heat import heat
from vmae_jax.ops.losses import Ratio
from vmae_jax.ops.patches import Grid, Tubelet, patchify
from vmae_jax.ops.preprocess import normalise, unit_range
from vmae_jax.ops.tokens import gather, scatter
from vmae_jax.systems.base import Batch, Params, System
from vmae_jax.systems.image_teacher import image_teacher
from vmae_jax.systems.inputs import clip_spec, clips, drawn_flips, stream
from vmae_jax.systems.stacks import for_planes, spec_of, stack_options, vit_encoder, vit_fields


def build(config: ConfigDict, chip: Chip) -> System:
    """The system that a validated config describes, for the chip that it will run on."""
    model, align = config.model, config.align
    counts, grid, tubelet = token_counts(config), teacher_grid(config), tuple(model.tubelet)
    spec, layers = spec_of(model.encoder), aligned_layers(config, "model")
    tokens = counts.visible + model.class_token
    options = stack_options(config, "model.encoder", tokens=tokens, chip=chip)
    teacher = image_teacher(config, chip)
    network = functional(
        lambda rngs: Student(
            spec,
            options,
            values=counts.patch_values,
            layers=layers,
            output=config.teacher.output,
            rngs=rngs,
            **vit_fields(config),
        )
    )
    seen = functools.partial(normalise, mean=config.data.mean, std=config.data.std)
    unit = {"l2": losses.unit_vectors, "none": lambda x: x}[align.normalize]

    def look(
        frozen: Params, video: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Visible tokens [B, V], the answers to them [K, B, V, D], attention [B, t, h*w]."""
        features, attention = teacher.look(frozen, seen(video))
        attention = attention.reshape(len(video), grid[0], -1)
        visible_idx = masking.pretraining_masks(
            keys, grid=grid, encoder=config.masking.encoder, importance=attention
        ).visible_idx
        return visible_idx, jax.vmap(gather, in_axes=(0, None))(features, visible_idx), attention

    def answers(
        params: Params, visible: jax.Array, visible_idx: jax.Array, keys: jax.Array | None
    ) -> jax.Array:
        """What the student says, [K, B, V, D], of normalised visible patches in planes."""
        params = for_planes(params, model.channels)
        return network.apply(params, visible, visible_idx, grid=grid, keys=keys)

    def visible_patches(video: jax.Array, visible_idx: jax.Array) -> jax.Array:
        return seen(gather(patchify(video, tubelet, order="planes"), visible_idx), order="planes")

    def targets(frozen: Params, batch: Batch, keys: jax.Array) -> Batch:
        """Adds the visible patches and what the teacher says of them."""
        video = clips(config, batch, drawn_flips(config, stream(keys, 2)))
        visible_idx, target, _ = look(frozen, video, keys)
        return {
            "visible": visible_patches(video, visible_idx),
            "visible_idx": visible_idx,
            "target": target,
        }

    def loss(
        params: Params, batch: Batch, keys: jax.Array, train: bool
    ) -> tuple[Ratio, dict[str, Ratio]]:
        said = answers(
            params, batch["visible"], batch["visible_idx"], stream(keys, 3) if train else None
        )
        total, weight = losses.alignment(unit(said), batch["target"], kind=align.loss)
        cosine = _cosine(said, batch["target"]).mean(axis=0).sum()
        return Ratio(align.weight * total, weight), {"cosine": Ratio(cosine, weight)}

    def reconstruct(
        params: Params, frozen: Params, batch: Batch, keys: jax.Array
    ) -> dict[str, jax.Array]:
        """Videos of what the teacher looks at, what is kept, and how near the student comes."""
        video = clips(config, batch)
        visible_idx, target, attention = look(frozen, video, keys)
        said = answers(params, visible_patches(video, visible_idx), visible_idx, None)
        near = _cosine(said[-1], target[-1])
        return pictures(unit_range(video), attention, visible_idx, near, grid=grid, tubelet=tubelet)

    macs = {
        "patch_embed": counts.visible * counts.patch_values * spec.width,
        "encoder": flops.stack_macs(spec, tokens),
        "align": len(layers) * counts.visible * spec.width * config.teacher.output,
    }
    looking = sum(teacher.macs.values())
    return System(
        name=config.system,
        init=network.init,
        targets=targets,
        loss=loss,
        batch_spec=clip_spec(config),
        compute_dtype=model.dtype,
        macs=macs | {"teacher": looking},
        # Of the teacher the forward pass alone.
        train_flops=flops.training_flops(macs) + 2 * looking,
        encoder=vit_encoder(config, chip, final_norm=True),
        choices={"encoder attention": options.attention, **teacher.choices},
        init_frozen=teacher.init,
        reconstruct=reconstruct,
    )


def pictures(
    original: jax.Array,
    attention: jax.Array,
    visible_idx: jax.Array,
    near: jax.Array,
    *,
    grid: Grid,
    tubelet: Tubelet,
) -> dict[str, jax.Array]:
    """Draws clips with numbers of their tokens.

    Args:
      original: [B, T, H, W, C] in [0, 1].
      attention: of each token, not negative, [B, t, h*w].
      visible_idx: int32 [B, V], tokens that are kept.
      near: cosines of these, [B, V].
      grid, tubelet: of the tokens.

    Returns:
      label -> float32 [B, T, H, W, C or 3] in [0, 1].
    """
    tokens = math.prod(grid)
    sizes = dict(zip("thwpqr", (*grid, *tubelet), strict=True))

    def in_pixels(values: jax.Array) -> jax.Array:
        return repeat(values, "b (t h w) -> b (t p) (h q) (w r)", **sizes)

    kept = in_pixels(scatter(jnp.ones(visible_idx.shape, bool), visible_idx, tokens))[..., None]
    grey = original.mean(axis=-1, keepdims=True)
    strongest = attention / attention.max(axis=-1, keepdims=True)
    looked_at = heat(in_pixels(strongest.reshape(-1, tokens)))
    nearness = heat(in_pixels(scatter(near, visible_idx, tokens)))
    return {
        "original": original,
        "teacher's attention, light = strongest of the frame": 0.3 * grey + 0.7 * looked_at,
        "kept tokens": jnp.where(kept, original, 0.2 * original),
        "cosine to the teacher in the last layer, black 0, light 1": jnp.where(
            kept, nearness, 0.2 * grey
        ),
    }


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """[..., D] and [..., D] -> [...], float32."""
    return jnp.sum(losses.unit_vectors(a) * losses.unit_vectors(b), axis=-1)
