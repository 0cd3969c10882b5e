"""Runs golden cases of UMT's pretraining and positions through our code, in float32."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from clip_cases import teacher_outputs
from einops import rearrange
from golden import Case, Comparison
from videomae_cases import compare, grid_of_clip, imported, patch_shape, positions

from vmae_jax.convert.families import recognise
from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.umt import Student
from vmae_jax.ops import losses, masking
from vmae_jax.ops.patches import patchify
from vmae_jax.ops.pos_embed import sincos_positions
from vmae_jax.ops.tokens import gather
from vmae_jax.variants import StackSpec


def pretrain(case: Case, result: Comparison) -> None:
    config, inputs, weights = case.config, case.arrays("inputs"), case.arrays("weights")
    student = config["student"]
    tubelet, channels = patch_shape(weights["encoder.patch_embed.proj.weight"])
    clip = jnp.asarray(rearrange(inputs["clip"], "b c t h w -> b t h w c"))
    grid = grid_of_clip(clip, tubelet)
    normalised = {"l2": losses.unit_vectors, "none": lambda x: x}[student["clip_norm_type"]]
    net = functional(
        lambda rngs: Student(
            _spec(student, "encoder_"),
            _options(student),
            values=int(np.prod(tubelet)) * channels,
            layers=tuple(index + 1 for index in student["return_index"]),
            output=student["clip_output_dim"],
            rngs=rngs,
        )
    )
    table = recognise(weights).table
    params = imported(weights, table, net)
    order = rearrange(inputs["importance"], "(b t) n -> b t n", t=grid[0])
    mask = masking.hidden_by_order(jnp.asarray(order), grid=grid, ratio=config["mask_ratio"])
    visible_idx = positions(~np.asarray(mask))
    looked = teacher_outputs(case)
    features = looked["teacher_features"]

    def run(params):
        module = net.module(params)
        visible = gather(patchify(clip, tubelet), visible_idx)
        tokens = module.features(visible, visible_idx, grid=grid)
        aligned = normalised(module.aligned(tokens, visible_idx, grid=grid))
        target = jax.vmap(gather, in_axes=(0, None))(features, visible_idx)
        total, count = losses.alignment(aligned, target, kind=config["clip_loss_type"])
        outputs = {
            "mask": mask,
            "student_features": tokens,
            "student_aligned": aligned,
            "target": target,
            "loss_clip": total / count,
            "loss": (config["clip_loss_ratio"] * total / count)[None],
            **looked,
        }
        return outputs["loss"][0], outputs

    compare(case, result, run, params, table)


def mask_sampling(case: Case, result: Comparison) -> None:
    """Draws differ; compared is how often each patch comes first, and is kept."""
    config, reference = case.config, case.arrays("outputs")
    rows, patches, draws = config["rows"], config["N"], config["draws"]
    attention = jnp.asarray(reference["attn"])
    keys = jax.random.split(jax.random.key(0), draws)
    order = np.asarray(jax.jit(jax.vmap(lambda key: masking.draw_order(key, attention)))(keys))
    hidden = np.asarray(
        masking.hidden_by_order(order, grid=(rows, 1, patches), ratio=config["mask_ratio"])
    )
    visible = ~hidden.reshape(draws, rows, patches)
    result.array("kept", visible.sum(axis=2)[0], [config["n_visible"]] * rows, rtol=0, atol=0)
    ours = {
        "first_frequency": np.eye(patches)[order[:, :, 0]].mean(axis=0),
        "visible_frequency": visible.mean(axis=0),
    }
    for name, frequency in ours.items():
        # Five standard errors of the difference of two estimates from as many draws.
        error = 5 * np.sqrt(2 * frequency * (1 - frequency) / draws)
        share = np.abs(frequency - reference[name]) / error
        result.array(name, share, np.zeros_like(share), rtol=0, atol=1)


def position_tables(case: Case, result: Comparison) -> None:
    """Sinusoids of one grid for another, of fine-tuning and of clips beside texts."""
    reference = case.arrays("outputs")
    ours = {}
    for name in reference:
        config = case.config[name]
        frames, side = config["cur_frame"], math.isqrt(config["n_position"] // config["cur_frame"])
        origin = (8, 14, 14)  # of the 1568 positions
        if "ckpt_num_frame" in config:  # of another number of frames, or the clip's own
            of = config["ckpt_num_frame"] if config["ckpt_num_frame"] > 0 else frames
            origin = (of, side, side)
        ours[name] = sincos_positions((frames, side, side), config["d_hid"], origin=origin)
    result.arrays("outputs", ours, reference)


def _spec(config, prefix: str = "") -> StackSpec:
    return StackSpec(
        width=config[f"{prefix}embed_dim"],
        depth=config[f"{prefix}depth"],
        heads=config[f"{prefix}num_heads"],
        mlp_ratio=config["mlp_ratio"],
    )


def _options(config) -> StackOptions:
    return StackOptions(eps=config["norm_layer_eps"], attention="xla_f32", remat="none")
