"""Schedules and parameter groups of MAE-ST and MaskFeat, by our functions on our paths.

Only names and the numbers of blocks are translated here: neither decay nor layer-wise rates look at
the arrays.
"""

import itertools
import re
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from golden import Case, Comparison

from vmae_jax.convert.engine import unflatten
from vmae_jax.train.optim import layer_decay_scales, weight_decay_mask
from vmae_jax.train.schedules import warmup_cosine

_LEAVES = {"weight": "kernel", "bias": "bias"}
_PLACES = (
    (r"pred_head\.projections\.0|decoder_pred", "decoder/head"),
    (r"pred_head\.transforms\.0\.0|decoder_norm", "decoder/norm"),
    (r"head(\.projection)?", "head"),
    (r"patch_embed\.proj", "encoder/patch_embed"),
    (r"decoder_embed", "encoder_to_decoder"),
    (r"norm", "fc_norm"),
)


def mae_st_schedule(case: Case, result: Comparison) -> None:
    for number, entry in enumerate(case.json("schedule")):
        config = entry["config"]
        ours = _rates(
            len(entry["values"]),
            peak=config["lr"],
            floor=config["min_lr"],
            warmup_steps=config["warmup_epochs"] * config["steps"],
            shape="peak_once",
        )
        _compare_rates(case, result, number, ours, entry["values"])


def maskfeat_schedule(case: Case, result: Comparison) -> None:
    for number, entry in enumerate(case.json("schedule")):
        config = entry["config"]
        ours = _rates(
            len(entry["values"]),
            peak=config["BASE_LR"],
            floor=config["COSINE_END_LR"],
            start=config["WARMUP_START_LR"],
            warmup_steps=round(config["WARMUP_EPOCHS"] * config["steps"]),
            shape="peak_once" if config["COSINE_AFTER_WARMUP"] else "cosine_throughout",
        )
        _compare_rates(case, result, number, ours, entry["values"])


def mae_st_groups(case: Case, result: Comparison, stage: str) -> None:
    """Blocks are one stack; in pretraining there are two runs, one with decay of norms."""
    stages = case.json("param_groups")[stage]
    for label, groups in [("", stages)] if "params" in stages else list(stages.items()):
        config, reference = groups["config"], groups["params"]
        places = {name: _path(name) for name in reference}
        _compare_groups(
            result,
            label,
            reference,
            places,
            weight_decay=config["weight_decay"],
            layer_decay=config.get("layer_decay", 1.0),
            depth=config.get("depth", 0),
            tables=stage == "pretrain",
            scales=config.get("bias_wd", False),
        )


def maskfeat_groups(case: Case, result: Comparison, stage: str) -> None:
    """Adjacent blocks of equal shapes are one stack, named by its first."""
    groups = case.json("param_groups")[stage]
    config, reference = groups["config"], groups["params"]
    assert config["SOLVER.ZERO_WD_1D_PARAM"] and not config["MVIT.ZERO_DECAY_POS_CLS"]
    shapes: dict[int, list] = {}
    for name, entry in reference.items():
        if block := re.match(r"blocks\.(\d+)\.(.*)", name):
            shapes.setdefault(int(block[1]), []).append((block[2], entry["shape"]))
    first = {}
    for _, alike in itertools.groupby(sorted(shapes), key=lambda i: str(sorted(shapes[i]))):
        alike = list(alike)
        first |= dict.fromkeys(alike, alike[0])
    places = {}
    for name in reference:
        path, block = _path(name)
        if block is not None:
            group = f"/blocks/{first[block]:02d}/"
            path, block = path.replace("/blocks/", group), block - first[block]
        places[name] = path, block
    _compare_groups(
        result,
        "",
        reference,
        places,
        weight_decay=config["SOLVER.WEIGHT_DECAY"],
        layer_decay=config["SOLVER.LAYER_DECAY"],
        depth=config["MVIT.DEPTH"],
        tables=True,
    )


def _rates(steps: int, **options) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(
            jax.vmap(lambda step: warmup_cosine(step, total_steps=steps, **options))(
                jnp.arange(steps)
            )
        )


def _compare_rates(case: Case, result: Comparison, number: int, ours, values) -> None:
    tolerance = case.meta["tolerances"]["values"]
    result.array(f"schedule {number}", ours, np.asarray(values), **tolerance)


def _path(name: str) -> tuple[str, int | None]:
    """Our path of a published name, and its block (None: in none)."""
    stem, _, leaf = name.rpartition(".")
    if block := re.match(r"(decoder_)?blocks\.(\d+)\.(.+)", stem):
        stack = "decoder/blocks" if block[1] else "encoder/blocks"
        inner = block[3].replace(".", "/")
        if re.fullmatch(r"attn/[qkv]", inner):
            inner, leaf = ("attn/qkv", leaf) if leaf == "weight" else ("attn", f"{inner[-1]}_bias")
        return f"{stack}/{inner}/{_leaf(inner, leaf)}", int(block[2])
    if not stem:
        prefix, bare = re.fullmatch(r"(decoder_)?(.+)", leaf).groups()
        if bare == "mask_token":
            return bare, None
        return f"{'decoder' if prefix else 'encoder'}/{bare}", None
    place = next(ours for theirs, ours in _PLACES if re.fullmatch(theirs, stem))
    return f"{place}/{_leaf(place, leaf)}", None


def _leaf(module: str, leaf: str) -> str:
    if leaf == "weight" and re.search(r"norm(_?[qkv12])?$", module):
        return "scale"
    return _LEAVES.get(leaf, leaf)


def _compare_groups(
    result: Comparison,
    label: str,
    reference: Mapping,
    places: Mapping[str, tuple[str, int | None]],
    *,
    weight_decay: float,
    layer_decay: float,
    depth: int,
    **decaying: bool,
) -> None:
    blocks = {path: [b for p, b in places.values() if p == path] for path, _ in places.values()}
    params = unflatten({path: np.ones(_stacked(numbers)) for path, numbers in blocks.items()})
    decays = weight_decay_mask(params, **decaying)
    with jax.enable_x64(True):
        scales = layer_decay_scales(params, depth, layer_decay)
    for name, wanted in reference.items():
        path, block = places[name]
        decay, scale = _at(decays, path) * weight_decay, np.ravel(_at(scales, path))
        result.array(f"decay:{label}:{name}", decay, wanted["weight_decay"], rtol=1e-9, atol=0)
        ours = scale[block or 0]
        result.array(f"lr_scale:{label}:{name}", ours, wanted["lr_scale"], rtol=1e-9, atol=0)


def _stacked(numbers: Iterable[int | None]) -> tuple[int, ...]:
    return () if None in numbers else (max(numbers) + 1,)


def _at(tree, path: str):
    for key in path.split("/"):
        tree = tree[key]
    return tree
