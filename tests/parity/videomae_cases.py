"""Runs golden cases of VideoMAE and VideoMAE V2 through our code, in float32."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from golden import Case, Comparison

from vmae_jax.convert.engine import locate, to_ours, to_theirs, unflatten
from vmae_jax.convert.fit import fit
from vmae_jax.convert.videomae import finetune_table, pretrain_table
from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.mae import MaskedAutoencoder
from vmae_jax.models.vit import Classifier
from vmae_jax.ops import losses, masking
from vmae_jax.ops.patches import grid_of, patchify
from vmae_jax.ops.pos_embed import sincos_table
from vmae_jax.ops.preprocess import IMAGENET_MEAN, IMAGENET_STD
from vmae_jax.ops.tokens import gather
from vmae_jax.variants import StackSpec


def pretrain(case: Case, result: Comparison) -> None:
    config, inputs, weights = case.config, case.arrays("inputs"), case.arrays("weights")
    assert not config.get("encoder_num_classes"), "an encoder with a head is not supported"
    assert not config.get("use_learnable_pos_emb"), (
        "learned positions do not exist in pretraining (the released model cannot run them)"
    )
    tubelet, channels = patch_shape(weights["encoder.patch_embed.proj.weight"])
    clip = rearrange(inputs["clip"], "b c t h w -> b t h w c")
    grid = grid_of_clip(clip, tubelet)
    hidden = inputs["mask"].reshape(clip.shape[0], -1).astype(bool)
    dropped = inputs.get("decode_mask", ~hidden).reshape(hidden.shape).astype(bool)
    visible_idx = positions(~hidden)
    target_idx = positions(~dropped)

    # The released engine restores [0, 1] with three fixed channel constants.
    pixels = clip * np.float32(IMAGENET_STD) + np.float32(IMAGENET_MEAN)
    target_channels = pixels.shape[-1]
    net = functional(
        lambda rngs: MaskedAutoencoder(
            _spec(config, "encoder_"),
            _spec(config, "decoder_"),
            values=int(np.prod(tubelet)) * channels,
            target_values=config["decoder_num_classes"],
            encoder_options=_options(config),
            rngs=rngs,
        )
    )
    table = pretrain_table(tubelet, channels)
    params = imported(weights, table, net)

    def run(params):
        module = net.module(params)
        patches = gather(patchify(jnp.asarray(clip), tubelet), visible_idx)
        latent = module.encode(patches, visible_idx, grid=grid)
        target = gather(patchify(jnp.asarray(pixels), tubelet), target_idx)
        target = losses.pixel_targets(
            target, channels=target_channels, normalize=config["normlize_target"]
        )
        weight = gather(jnp.asarray(hidden), target_idx)
        outputs = {
            "encoder_latent": latent,
            "decoder_input": module.decoder_input(latent, visible_idx, target_idx, grid=grid),
            "pred": module.decode(latent, visible_idx, target_idx, grid=grid),
            "target": target,
            "loss_mask": weight,
        }
        total, count = losses.masked_mse(outputs["pred"], target, weight)
        outputs["loss"] = total / count
        return outputs["loss"], outputs

    compare(case, result, run, params, table)


def finetune(case: Case, result: Comparison) -> None:
    config, inputs, weights = case.config, case.arrays("inputs"), case.arrays("weights")
    tubelet, channels = patch_shape(weights["patch_embed.proj.weight"])
    clip = rearrange(inputs["clip"], "b c t h w -> b t h w c")
    grid = grid_of_clip(clip, tubelet)
    net = functional(
        lambda rngs: Classifier(
            _spec(config),
            _options(config),
            values=int(np.prod(tubelet)) * channels,
            num_classes=config["num_classes"],
            pooling="mean" if config.get("use_mean_pooling", True) else "first",
            positions="frozen" if "pos_embed" in weights else "sincos",
            grid=grid,
            rngs=rngs,
        )
    )
    table = finetune_table(tubelet, channels)
    params = imported(weights, table, net)

    def run(params):
        module = net.module(params)
        patches = patchify(jnp.asarray(clip), tubelet)
        pooled = module.features(patches, grid=grid)
        logits = module.logits(pooled)
        labels, soft = jnp.asarray(inputs["labels"], jnp.int32), jnp.asarray(inputs["soft_labels"])
        ratios = {
            "loss_ce": losses.cross_entropy(logits, labels),
            "loss_ls": losses.label_smoothing_cross_entropy(logits, labels, smoothing=0.1),
            "loss_soft": losses.soft_target_cross_entropy(logits, soft),
        }
        outputs = {name: total / weight for name, (total, weight) in ratios.items()}
        outputs |= {"pooled": pooled, "logits": logits}
        return outputs["loss_soft"], outputs

    compare(case, result, run, params, table)


def position_tables(case: Case, result: Comparison) -> None:
    reference = case.arrays("outputs")
    ours = {}
    for name in reference:
        match = re.fullmatch(r"table_(\d+)x(\d+)", name)
        if match:
            ours[name] = sincos_table(int(match[1]), int(match[2]))
    result.arrays("outputs", ours, reference)


def mask_generators(case: Case, result: Comparison) -> None:
    """Maps are compared entry by entry; random draws by what they have in common."""
    reference = case.arrays("outputs")
    keys = jax.random.split(jax.random.key(0), 64)
    for name, drawn in reference.items():
        label, _, what = name.rpartition("_samples")
        if not label:
            label, what = name.removesuffix("_all_maps"), "maps"
        config = case.config[label]
        grid, kind = tuple(config["grid"]), label.split("_")[0]
        drawn = drawn.reshape(drawn.shape[0], -1)
        if kind == "runcell":
            maps = masking.running_cell_maps(grid, config["decoder_mask_ratio"])
            if what == "maps":
                result.array(name, maps, drawn, rtol=0, atol=0)
                continue
            ours = jax.vmap(
                lambda key, grid=grid, config=config: masking.running_cell_mask(
                    key, grid=grid, ratio=config["decoder_mask_ratio"]
                )
            )(keys)
            # 64 draws miss one of four maps with a chance of 4 * 0.75^64 < 1e-7.
            result.array(name, np.unique(ours, axis=0), np.unique(maps, axis=0), rtol=0, atol=0)
            known = {row.tobytes() for row in maps}
            result.array(
                f"{name}: reference",
                np.array([row.tobytes() in known for row in drawn]),
                np.ones(len(drawn), bool),
                rtol=0,
                atol=0,
            )
            continue
        draw = {"tube": masking.tube_mask, "random": masking.random_mask}.get(kind)
        assert draw is not None, f"no mask generator for {name!r}"
        ours = np.asarray(
            jax.vmap(
                lambda key, draw=draw, grid=grid, config=config: draw(
                    key, grid=grid, ratio=config["mask_ratio"]
                )
            )(keys)
        )
        counts = np.unique(ours.sum(axis=1))
        result.array(f"{name}: counts", counts, np.unique(drawn.sum(axis=1)), rtol=0, atol=0)
        if kind == "tube":
            slots = ours.reshape(len(ours), grid[0], -1)
            same = (slots == slots[:, :1]).all()
            result.array(f"{name}: same in every slot", same, np.bool_(True), rtol=0, atol=0)


def schedule(case: Case, result: Comparison) -> None:
    from vmae_jax.train.schedules import warmup_cosine

    rtol = case.meta["tolerances"]["values"]["rtol"]
    for number, entry in enumerate(case.json("schedule")):
        config, values = entry["config"], np.asarray(entry["values"])
        warmup_steps = config["warmup_epochs"] * config["niter_per_ep"]
        # Released quirk: an explicit count replaces the epochs', but only where there are any.
        if config["warmup_steps"] > 0 and config["warmup_epochs"] > 0:
            warmup_steps = config["warmup_steps"]
        with jax.enable_x64(True):
            ours = jax.vmap(
                lambda step, config=config, warmup_steps=warmup_steps: warmup_cosine(
                    step,
                    peak=config["base_value"],
                    floor=config["final_value"],
                    warmup_steps=warmup_steps,
                    total_steps=config["epochs"] * config["niter_per_ep"],
                    start=config["start_warmup_value"],
                )
            )(jnp.arange(len(values)))
            ours = np.asarray(ours)
        assert ours.dtype == np.float64, "the schedule must keep double precision under x64"
        result.array(f"schedule {number}", ours, values, rtol=rtol, atol=0)


def param_groups(case: Case, result: Comparison, stage: str) -> None:
    """Which parameters decay, and their layer-wise rates, by published name."""
    from vmae_jax.train.optim import layer_decay_scales, weight_decay_mask

    groups = case.json("param_groups")[stage]
    reference = groups["params"]
    prefix = "encoder." if stage == "pretrain" else ""
    tubelet, channels = patch_shape(
        np.empty(reference[f"{prefix}patch_embed.proj.weight"]["shape"], np.float32)
    )
    table = (pretrain_table if stage == "pretrain" else finetune_table)(tubelet, channels)
    params = _ones(reference, table)
    decayed = weight_decay_mask(params)
    config = groups["config"]
    scales = None
    if config.get("layer_decay") is not None:
        depth = config["depth"]
        with jax.enable_x64(True):
            scales = layer_decay_scales(params, depth, config["layer_decay"])
    for name, wanted in reference.items():
        path, block = locate(name, table)
        decay = config["weight_decay"] if bool(np.all(_at(decayed, path))) else 0.0
        result.array(f"decay:{name}", decay, wanted["weight_decay"], rtol=1e-9, atol=0)
        scale = np.float64(1.0)
        if scales is not None:
            scale = np.asarray(_at(scales, path), np.float64)
            scale = np.ravel(scale)[0 if block is None or scale.size == 1 else block]
        result.array(f"lr_scale:{name}", scale, wanted["lr_scale"], rtol=1e-9, atol=0)


def imported(weights, table, net) -> dict:
    """The parameters of `net` from published names, every one of them."""
    return unflatten(fit(*to_ours(weights, table), net.shapes).arrays)


def compare(case: Case, result: Comparison, run, params, table) -> None:
    grad_fn = jax.jit(jax.value_and_grad(run, has_aux=True))
    with jax.default_matmul_precision("highest"):
        (_, outputs), grads = grad_fn(params)
    grads = to_theirs(grads, table)
    result.arrays("outputs", outputs, case.arrays("outputs"))
    result.arrays("grads", grads, case.arrays("grads"))
    result.norms(grads)


def _spec(config, prefix: str = "") -> StackSpec:
    return StackSpec(
        width=config[f"{prefix}embed_dim"],
        depth=config[f"{prefix}depth"],
        heads=config[f"{prefix}num_heads"],
        mlp_ratio=config["mlp_ratio"],
    )


def _options(config) -> StackOptions:
    return StackOptions(
        qkv_bias=config.get("qkv_bias", True),
        qk_scale=config.get("qk_scale"),
        cosine_attention=config.get("cos_attn", False),
        layer_scale=config.get("init_values") or 0.0,
        eps=config.get("norm_layer_eps", 1e-6),
        attention="xla_f32",
        dtype="float32",
        remat="none",  # changes no number, and compiles faster
    )


def patch_shape(weight: np.ndarray) -> tuple[tuple[int, int, int], int]:
    """(tubelet, channels) from the convolution itself, which no config can contradict."""
    _, channels, frames, rows, columns = weight.shape
    return (frames, rows, columns), channels


def grid_of_clip(clip: np.ndarray, tubelet) -> tuple[int, int, int]:
    _, frames, height, width, _ = clip.shape
    return grid_of(frames=frames, height=height, width=width, tubelet=tubelet)


def positions(mask: np.ndarray) -> jax.Array:
    """Positions of the True entries, which every row has as many of."""
    rows = [np.flatnonzero(row) for row in mask]
    assert len({len(row) for row in rows}) == 1, "clips of one batch select different counts"
    return jnp.asarray(np.stack(rows), jnp.int32)


def _ones(reference, table) -> dict:
    """A tree of ones in our layout for published names and shapes."""
    leaves: dict[str, dict] = {}
    for name, entry in reference.items():
        rule, _, block = table.find(name)
        array = rule.layout.to_ours(np.ones(entry["shape"], np.float32))
        leaves.setdefault(rule.ours, {})[block] = array
    tree: dict = {}
    for path, blocks in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        stacked = [blocks[i] for i in sorted(blocks, key=lambda i: -1 if i is None else i)]
        node[last] = jnp.asarray(stacked[0] if None in blocks else np.stack(stacked))
    return tree


def _at(tree, path: str):
    for key in path.split("/"):
        tree = tree[key]
    return tree
