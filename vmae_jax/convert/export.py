"""Writes weights for others: a folder of our own, transformers' folder, released names."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from vmae_jax import __version__
from vmae_jax import config as config_lib
from vmae_jax.convert.clip import clip_table
from vmae_jax.convert.engine import ConversionError, Table, to_theirs, unflatten
from vmae_jax.convert.families import released_table
from vmae_jax.convert.sources import Source
from vmae_jax.convert.towers import Tower
from vmae_jax.convert.videomae import transformers_table

# Of our norms, as released. transformers' own default differs; its decoder.norm and fc_norm stay
# at 1e-5 whatever its config says (docs/weights.md).
NORM_EPS = 1e-6
_BILINEAR = 2  # Pillow's number


def save_ours(
    folder: pathlib.Path,
    arrays: Mapping[str, np.ndarray],
    config: ConfigDict,
    *,
    source: Source,
    licence: str,
    metrics: Mapping[str, Any] | None = None,
) -> list[pathlib.Path]:
    """Writes model.safetensors by our paths, config.json and a model card.

    Args:
      folder: made if it is not there.
      arrays: our path -> float32 array.
      config: the recipe.
      source: where the weights came from.
      licence: of the weights, for the card.
      metrics: measured results, for the card.

    Returns:
      the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "vmae_jax", "licence": licence, "source_sha256": source.sha256}
    save_arrays(folder / "model.safetensors", arrays, metadata)
    (folder / "config.json").write_text(config_lib.to_json(config) + "\n", encoding="utf-8")
    card = model_card(config, arrays, source=source, licence=licence, metrics=metrics)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return [folder / name for name in ("model.safetensors", "config.json", "README.md")]


def save_released(
    folder: pathlib.Path, arrays: Mapping[str, np.ndarray], config: ConfigDict, *, licence: str
) -> list[pathlib.Path]:
    """Writes model.safetensors in the names of the code that such a model was released with."""
    table = released_table(arrays, config.model.tubelet, config.model.channels)
    return _save_by_table(folder, arrays, table, licence)


def save_released_tower(
    folder: pathlib.Path, arrays: Mapping[str, np.ndarray], tower: Tower, *, licence: str
) -> list[pathlib.Path]:
    """Writes model.safetensors in the names of an image tower that was taken out of CLIP."""
    return _save_by_table(folder, arrays, clip_table(tower.tubelet, tower.channels), licence)


def _save_by_table(
    folder: pathlib.Path, arrays: Mapping[str, np.ndarray], table: Table, licence: str
) -> list[pathlib.Path]:
    folder.mkdir(parents=True, exist_ok=True)
    theirs = to_theirs(unflatten(arrays), table)
    save_arrays(folder / "model.safetensors", theirs, {"format": "pt", "licence": licence})
    return [folder / "model.safetensors"]


def save_tower(
    folder: pathlib.Path,
    arrays: Mapping[str, np.ndarray],
    tower: Tower,
    *,
    source: Source,
    licence: str,
) -> list[pathlib.Path]:
    """Writes an image tower: model.safetensors by our paths, config.json and a model card.

    Args: see `save_ours`; config.json holds what shapes do not tell.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "vmae_jax", "licence": licence, "source_sha256": source.sha256}
    save_arrays(folder / "model.safetensors", arrays, metadata)
    told = {
        "tubelet": tower.tubelet,
        "channels": tower.channels,
        "grid": tower.grid,
        "heads": tower.spec.heads,
    }
    text = json.dumps({"image_tower": told}, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(
        _tower_card(tower, arrays, source=source, licence=licence), encoding="utf-8"
    )
    return [folder / name for name in ("model.safetensors", "config.json", "README.md")]


def save_transformers(
    folder: pathlib.Path,
    arrays: Mapping[str, np.ndarray],
    config: ConfigDict,
    *,
    licence: str,
) -> list[pathlib.Path]:
    """Writes a folder that transformers' VideoMAE classes load, with its image processor's config.

    Raises:
      ConversionError: a model that these classes cannot hold.
    """
    content = transformers_config(arrays, config)
    folder.mkdir(parents=True, exist_ok=True)
    table = transformers_table(config.model.tubelet, config.model.channels)
    theirs = to_theirs(unflatten(arrays), table)
    metadata = {"format": "pt", "licence": licence}
    save_arrays(folder / "model.safetensors", theirs, metadata)
    for name, values in (
        ("config.json", content),
        ("preprocessor_config.json", _processor_config(config)),
    ):
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / n for n in ("model.safetensors", "config.json", "preprocessor_config.json")]


def save_arrays(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file; the library takes the bytes as they lie, whatever the strides."""
    ordered = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
    save_file(ordered, path, metadata=dict(metadata))
    path.chmod(0o644)  # the library lets its owner alone read it; these are to be handed on


def transformers_config(arrays: Mapping[str, np.ndarray], config: ConfigDict) -> dict[str, Any]:
    """The config.json of transformers for our model.

    Raises:
      ConversionError: a model that its classes cannot hold.
    """
    if config.model.architecture != "vit":
        raise ConversionError("transformers' VideoMAE has no multiscale network")
    model, data = config.model, config.data
    pretraining = _pretraining(arrays)
    if not pretraining and "head/bias" not in arrays:
        raise ConversionError(
            "neither a decoder nor a classifier: transformers has no class for it"
        )
    frames, rows, columns = model.tubelet
    grid = config_lib.clip_grid(config)
    lacking = {
        "cosine attention": model.cosine_attention,
        "layer scale": model.layer_scale > 0,
        f"patches of {rows} x {columns} pixels": rows != columns,
        "learned positions": any(path.startswith("encoder/pos_embed") for path in arrays),
        "positions of another grid": (tuple(model.sincos_grid) or grid) != grid,
        "class token": "encoder/cls_token" in arrays,
        "biases of the keys": "encoder/blocks/attn/k_bias" in arrays,
    }
    if missing := [name for name, there in lacking.items() if there]:
        raise ConversionError(f"transformers' VideoMAE has no {' and no '.join(missing)}")
    content = {
        "architectures": [
            "VideoMAEForPreTraining" if pretraining else "VideoMAEForVideoClassification"
        ],
        "model_type": "videomae",
        "image_size": data.size[0] if data.size[0] == data.size[1] else list(data.size),
        "patch_size": rows,
        "num_channels": model.channels,
        "num_frames": data.frames,
        "tubelet_size": frames,
        **_stack_config("", model.encoder),
        "qkv_bias": True,
        "layer_norm_eps": NORM_EPS,
        "hidden_act": "gelu" if model.gelu == "exact" else "gelu_pytorch_tanh",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "use_mean_pooling": "fc_norm/scale" in arrays,
        "dtype": "float32",
    }
    if pretraining:
        content |= _stack_config("decoder_", model.decoder)
        content["norm_pix_loss"] = config.masking.normalize_target
    else:
        placeholders = [f"LABEL_{number}" for number in range(len(arrays["head/bias"]))]
        names = model.class_names or placeholders
        content["id2label"] = {str(number): name for number, name in enumerate(names)}
        content["label2id"] = {name: number for number, name in enumerate(names)}
    return content


def model_card(
    config: ConfigDict,
    arrays: Mapping[str, np.ndarray],
    *,
    source: Source,
    licence: str,
    metrics: Mapping[str, Any] | None = None,
) -> str:
    """A model card in Markdown: what it is, how it was made, from what, and what may be done."""
    model, data, train = config.model, config.data, config.train
    encoder, optim = model.encoder, config.optim
    facts = {
        "system": config.system,
        "encoder": f"{encoder.depth} blocks, width {encoder.width}, {encoder.heads} heads",
        "parameters": f"{sum(array.size for array in arrays.values()):,} (float32)",
        "input": f"{data.frames} frames, stride {data.stride}, {data.size[0]} x {data.size[1]} "
        f"pixels, patches of {' x '.join(map(str, model.tubelet))}",
        "pixels": f"in [0, 1], less {tuple(data.mean)}, divided by {tuple(data.std)}",
    }
    if "head/bias" in arrays:
        facts["classes"] = str(len(arrays["head/bias"]))
    if source.family == "vmae_jax":
        facts["recipe"] = (
            f"{train.epochs} epochs of {train.batch_videos} videos a step, base rate "
            f"{optim.base_lr:g}, weight decay {optim.weight_decay:g}; the rest is in config.json"
        )
        facts["data"] = data.manifest or "not recorded"
    else:
        unknown = "not recorded in the source; config.json has defaults in its place"
        facts |= {"recipe": unknown, "data": unknown}
    results = _table(metrics) if metrics else ["No results were given."]
    use = [
        "```python",
        "from vmae_jax.assemble import open_model",
        "",
        'model = open_model("THIS FOLDER")',
        "```",
        "`--config.init_from=THIS FOLDER` starts training from it.",
    ]
    title = f"{config.system}, {encoder.depth} blocks of width {encoder.width}"
    facts |= _origin(source)
    return _card(title, facts, ["## Results", *results, ""], licence=licence, use=use)


def _tower_card(
    tower: Tower, arrays: Mapping[str, np.ndarray], *, source: Source, licence: str
) -> str:
    """The card of an image tower."""
    spec, height, width = tower.spec, *tower.size
    facts = {
        "image tower": f"{spec.depth} blocks, width {spec.width}, {spec.heads} heads",
        "parameters": f"{sum(array.size for array in arrays.values()):,} (float32)",
        "input": f"pictures of {height} x {width} pixels, patches of "
        f"{' x '.join(map(str, tower.tubelet))} (frames, rows, columns)",
        "output": f"{tower.output} numbers a patch",
    }
    title = f"image tower, {spec.depth} blocks of width {spec.width}"
    use = ["`--config.teacher.weights=THIS FOLDER` lets a system with a teacher learn from it."]
    return _card(title, facts | _origin(source), [], licence=licence, use=use)


def _origin(source: Source) -> dict[str, str]:
    name = pathlib.Path(source.path).name
    return {
        "made from": f"{name} ({source.format}, names of {source.family})",
        "SHA-256 of that": f"`{source.sha256}`",
        "written by": f"vmae_jax {__version__}",
    }


def _card(
    title: str, facts: Mapping[str, Any], results: list[str], *, licence: str, use: list[str]
) -> str:
    terms = "The terms of the data it was trained on may bind the weights too."
    head, tail = [f"# {title}", "", *_table(facts), "", *results], ["", "## Use", *use, ""]
    return "\n".join([*head, "## Licence", f"{licence}.", terms, *tail])


def _table(facts: Mapping[str, Any]) -> list[str]:
    rows = [(n, v) for n, v in facts.items() if isinstance(v, int | float | str)]
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def _stack_config(prefix: str, stack: ConfigDict) -> dict[str, int]:
    return {
        f"{prefix}hidden_size": stack.width,
        f"{prefix}num_hidden_layers": stack.depth,
        f"{prefix}num_attention_heads": stack.heads,
        f"{prefix}intermediate_size": int(stack.width * stack.mlp_ratio),
    }


def _processor_config(config: ConfigDict) -> dict[str, Any]:
    """The short side to the clip's, then its centre: one view, as for validation."""
    height, width = config.data.size
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": min(height, width)},
        "resample": _BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.data.mean),
        "image_std": list(config.data.std),
    }


def _pretraining(arrays: Mapping[str, np.ndarray]) -> bool:
    return any(path.startswith("decoder/") for path in arrays)
