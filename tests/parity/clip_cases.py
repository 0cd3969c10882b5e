"""The teacher's side of UMT's golden cases through our code, in float32."""

import jax
import jax.numpy as jnp
from einops import rearrange
from golden import Case
from safetensors.numpy import load_file
from videomae_cases import imported

from vmae_jax.convert.families import recognise
from vmae_jax.models.clip import ImageTower
from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.ops.bicubic import resize_bicubic
from vmae_jax.ops.losses import unit_vectors
from vmae_jax.ops.patches import patchify
from vmae_jax.variants import StackSpec


def teacher_outputs(case: Case) -> dict[str, jax.Array]:
    """What the teacher of a case says of its clips; the resized clips where they are."""
    config, weights = case.config["teacher"], load_file(case.path / "teacher_weights.safetensors")
    video = jnp.asarray(rearrange(case.arrays("inputs")["clip"], "b c t h w -> b t h w c"))
    side, resized = config["input_resolution"], {}
    if video.shape[2] != side:
        video = resize_bicubic(video, side, side)
        resized["teacher_clip"] = rearrange(video, "b t h w c -> b c t h w")
    family = recognise(weights)
    grid = (side // config["patch_size"],) * 2
    net = functional(
        lambda rngs: ImageTower(
            StackSpec(config["width"], config["layers"], config["heads"]),
            StackOptions(attention="xla_f32", remat="none"),
            values=family.channels * family.tubelet[0] * config["patch_size"] ** 2,
            grid=grid,
            output=config["output_dim"],
            rngs=rngs,
        )
    )
    batch, places = len(video), grid[0] * grid[1]
    patches = rearrange(patchify(video, family.tubelet), "b (t n) p -> (b t) n p", n=places)
    taps = tuple(index + 1 for index in config["return_index"])
    with jax.default_matmul_precision("highest"):
        features, attention = jax.jit(net.apply, static_argnames="taps")(
            imported(weights, family.table, net), patches, taps=taps
        )
    if config["clip_norm_type"] == "l2":
        features = unit_vectors(features)
    features = rearrange(features, "k (b t) n d -> k b (t n) d", b=batch)
    return {"teacher_features": features, "teacher_attn": attention} | resized
