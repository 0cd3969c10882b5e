"""Schedules and parameter groups of MAE-ST, MaskFeat and UMT, by our functions on our paths."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from golden import Case, Comparison

from vmae_jax.convert import umt
from vmae_jax.convert.engine import Table, locate, unflatten
from vmae_jax.convert.mae_st import mae_st_table
from vmae_jax.convert.mvit import mvit_table
from vmae_jax.train.optim import layer_decay_scales, weight_decay_mask
from vmae_jax.train.schedules import warmup_cosine


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
    """In pretraining there are two runs, one of which decays the norms too."""
    stages = case.json("param_groups")[stage]
    pretrain = stage == "pretrain"
    table = mae_st_table((2, 8, 8), norm="encoder/norm" if pretrain else "fc_norm")
    for label, groups in stages.items() if pretrain else [("", stages)]:
        config = groups["config"]
        _compare_groups(
            result,
            label,
            groups["params"],
            table,
            weight_decay=config["weight_decay"],
            layer_decay=config.get("layer_decay", 1.0),
            depth=config.get("depth", 0),
            tables=pretrain,
            scales=config.get("bias_wd", False),
        )


def maskfeat_groups(case: Case, result: Comparison, stage: str) -> None:
    groups = case.json("param_groups")[stage]
    config = groups["config"]
    assert config["SOLVER.ZERO_WD_1D_PARAM"] and not config["MVIT.ZERO_DECAY_POS_CLS"]
    _compare_groups(
        result,
        "",
        groups["params"],
        mvit_table(),
        weight_decay=config["SOLVER.WEIGHT_DECAY"],
        layer_decay=config["SOLVER.LAYER_DECAY"],
        depth=config["MVIT.DEPTH"],
        tables=True,
    )


def umt_groups(case: Case, result: Comparison, stage: str) -> None:
    """Pretraining decays a table of positions, which it would have if that were learned."""
    groups = case.json("param_groups")[stage]
    config, pretrain = groups["config"], stage == "pretrain"
    _compare_groups(
        result,
        "",
        groups["params"],
        (umt.pretrain_table if pretrain else umt.finetune_table)((1, 8, 8)),
        weight_decay=config["weight_decay"],
        layer_decay=config["layer_decay"] or 1.0,
        depth=config.get("depth", 0),
        tables=pretrain,
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


def _compare_groups(
    result: Comparison,
    label: str,
    reference: Mapping,
    table: Table,
    *,
    weight_decay: float,
    layer_decay: float,
    depth: int,
    **decaying: bool,
) -> None:
    """Decay and layer-wise rate of every published name; neither looks into the arrays."""
    places = {name: _place(name, table) for name in reference}
    rows: dict[str, int | None] = {}
    for path, block in places.values():
        rows[path] = None if block is None else max(block + 1, rows.get(path, 0))
    params = unflatten({path: np.ones(() if n is None else n) for path, n in rows.items()})
    decays = weight_decay_mask(params, **decaying)
    with jax.enable_x64(True):
        scales = layer_decay_scales(params, depth, layer_decay)
    for name, wanted in reference.items():
        path, block = places[name]
        decay, scale = _at(decays, path) * weight_decay, np.ravel(_at(scales, path))
        result.array(f"decay:{label}:{name}", decay, wanted["weight_decay"], rtol=1e-9, atol=0)
        ours = scale[block or 0] if scale.size > 1 else scale[0]
        result.array(f"lr_scale:{label}:{name}", ours, wanted["lr_scale"], rtol=1e-9, atol=0)


def _place(name: str, table: Table) -> tuple[str, int | None]:
    """Our path, and the row of a stack there; blocks that name their stack are one each."""
    path, block = locate(name, table)
    return (path.replace("{i}", f"{block:02d}"), 0) if "{i}" in path else (path, block)


def _at(tree, path: str):
    for key in path.split("/"):
        tree = tree[key]
    return tree
