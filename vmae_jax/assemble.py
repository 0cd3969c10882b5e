"""From a config to live parts: pipeline, starting weights, run. Used by main and the tools."""

import dataclasses
import json
import logging
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vmae_jax import config as config_lib
from vmae_jax import systems
from vmae_jax.convert import sources
from vmae_jax.convert.architecture import config_of
from vmae_jax.convert.engine import ConversionError, flatten, unflatten
from vmae_jax.convert.fit import EXACT, Fitted, Policy, fit, starting_policy
from vmae_jax.convert.sources import Source
from vmae_jax.convert.towers import check_tower
from vmae_jax.data.pipeline import ClipPipeline, PipelineOptions
from vmae_jax.systems.base import System
from vmae_jax.train import optim
from vmae_jax.train.checkpoints import read_params, saved_config
from vmae_jax.train.frozen import place_frozen
from vmae_jax.train.loop import Run
from vmae_jax.train.schedules import warmup_cosine
from vmae_jax.train.sharding import make_mesh, state_shardings
from vmae_jax.train.step import StepOptions

_log = logging.getLogger(__name__)

# Fields of config.data that the device or the loop uses, not the pipeline.
NOT_THE_PIPELINES = ("flip", "mean", "std", "published_videos", "published_classes")


_MOST_WORKERS = 64  # started without being asked for


def pipeline_options(config: ConfigDict) -> PipelineOptions:
    """The host pipeline's options, read off `config.data`.

    Raises:
      ConfigError: no manifest is given.
    """
    if not config.data.manifest:
        raise config_lib.ConfigError(
            "config.data.manifest is empty: give a list of videos with "
            "--config.data.manifest=FILE (formats: docs/data.md)"
        )
    fields = {k: v for k, v in config.data.items() if k not in NOT_THE_PIPELINES}
    if fields["workers"] < 0:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        fields["workers"] = min(max((cores or 1) - 1, 1), _MOST_WORKERS)
    try:
        return PipelineOptions(channels=config.model.channels, **fields)
    except (ValueError, re.error) as error:
        raise config_lib.ConfigError(f"config.data: {error}") from error


def count_videos(config: ConfigDict) -> int:
    """Videos of one epoch.

    Raises:
      ManifestError: a list or a line of it that cannot be used, by file, line and column.
    """
    return sum(share.draws for share in pipeline_options(config).open_source().shares)


def with_classes(config: ConfigDict) -> ConfigDict:
    """The config with number and names of the classes read off the data, where it leaves them open.

    Without data (to plan or time a step) they are as many as those of the published set.

    Raises:
      ConfigError: the data has no labels, or more classes than the recipe.
    """
    if "num_classes" not in config.model:
        return config
    if not config.data.manifest:
        config = config.copy_and_resolve_references()
        config.model.num_classes = config.model.num_classes or config.data.published_classes
        return config
    source, wanted = pipeline_options(config).open_source(), config.model.num_classes
    found = source.num_classes
    if not found:
        raise config_lib.ConfigError(
            f"{config.data.manifest} has no labels, which {config.system!r} learns from; "
            "docs/data.md says how to write them"
        )
    if wanted and found > wanted:
        raise config_lib.ConfigError(
            f"{config.data.manifest} has {found} classes, config.model.num_classes is {wanted}; "
            "set it to 0 to take the number from the data"
        )
    config = config.copy_and_resolve_references()
    config.model.num_classes = wanted or found
    config.model.class_names = config.model.class_names or tuple(source.class_names)
    return config


def open_pipeline(config: ConfigDict, *, start_step: int) -> ClipPipeline:
    """This process's share of the clips, beginning with the batch of `start_step`."""
    return ClipPipeline(
        pipeline_options(config),
        batch_videos=config.train.batch_videos,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        start_step=start_step,
    )


def make_run(config: ConfigDict, plan: config_lib.Plan) -> Run:
    """Optimizer, schedule and intervals of a run."""

    def schedule(step: jax.Array) -> jax.Array:
        return warmup_cosine(
            step,
            shape=config.optim.schedule,
            start=plan.start_lr,
            peak=plan.peak_lr,
            floor=plan.floor_lr,
            warmup_steps=plan.warmup_steps,
            total_steps=plan.total_steps,
        )

    train = config.train
    return Run(
        total_steps=plan.total_steps,
        clips=plan.clips_per_step,
        schedule=schedule,
        tx=optim.adamw_direction(
            betas=config.optim.betas,
            eps=config.optim.eps,
            weight_decay=config.optim.weight_decay,
            decay_tables=config.optim.decay_tables,
            decay_scales=config.optim.decay_scales,
            fixed=("^encoder/pos_embed$",) if config.model.positions == "frozen" else (),
            layer_decay=config.optim.layer_decay,
            depth=config.model.encoder.depth,
        ),
        options=StepOptions(
            clip_norm=config.optim.clip_norm,
            accumulate=config.optim.accumulate,
            ema_decay=config.optim.ema_decay,
        ),
        seed=config.seed,
        fsdp=config.mesh.fsdp,
        eval_every=config.eval.every,
        max_skipped_in_a_row=config.optim.max_skipped_in_a_row,
        config=config.to_dict(),
        **{
            field.name: train[field.name]
            for field in dataclasses.fields(Run)
            if field.name in train
        },
    )


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained model, ready for use.

    Attributes:
      config: its recipe, with `data.resize="host"`: its functions take finished clips.
      system: its functions.
      params: its parameters, on the devices.
      sha256: of the weights; see `convert.sources.Source`.
      class_names: names of a classifier's classes, in their order; () where nobody knows them.
    """

    config: ConfigDict
    system: System
    params: Any
    sha256: str
    class_names: tuple[str, ...]


def open_model(weights: str, config_file: str | None = None, **overrides: Any) -> Model:
    """Opens weights for use: all that the recipe asks for must be there, and nothing else.

    Args:
      weights: see `read_weights`.
      config_file: a config.json; None: the one beside the weights, or what can be inferred.
      overrides: other values of config fields, by dotted path: `**{"data.frames": 32}`.

    Returns:
      the model, its parameters in the layout of the mesh that is set, or on one device.

    Raises:
      UserError: of whatever kind; says what to put right.
    """
    source = read_weights(weights)
    _log.info("Weights:\n%s", source.describe())
    config = recipe_of(source, config_file, {**overrides, "data.resize": "host"})
    system = systems.build(config)
    template = jax.eval_shape(system.init, jax.random.key(0))
    fitted = fit_weights(source, config, template)
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        layout = jax.tree.map(lambda _: here, template)
    else:
        layout = state_shardings(template, mesh)
    wanted = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), template, layout
    )
    params = unflatten(_placed(fitted.arrays, flatten(wanted)))
    names = tuple(config.model.class_names) if "class_names" in config.model else ()
    return Model(config, system, params, source.sha256, names)


def recipe_of(
    source: Source, config_file: str | None = None, overrides: Mapping[str, Any] | None = None
) -> ConfigDict:
    """The recipe of weights: of a file, else theirs, else what can be inferred.

    Args:
      source: the weights.
      config_file: a config.json.
      overrides: other values of config fields, by dotted path.

    Raises:
      ConfigError: a file that is none, unknown fields, or a recipe that cannot be run.
    """
    if config_file is None:
        config = config_of(source)
    else:
        try:
            text = pathlib.Path(config_file).read_text(encoding="utf-8")
            config = config_lib.from_mapping(json.loads(text))
        except (OSError, ValueError) as error:
            raise config_lib.ConfigError(f"{config_file} is no config: {error}") from error
    config = config.copy_and_resolve_references().lock()
    # Zero stands for the number that the data has, which is not looked at here.
    if "num_classes" in config.model and not config.model.num_classes:
        config.model.num_classes = len(source.arrays.get("head/bias", ()))
    try:
        config.update_from_flattened_dict(dict(overrides or {}))
    except (KeyError, TypeError, ValueError) as error:
        raise config_lib.ConfigError(f"a field that was to be overridden: {error}") from error
    names = config.model.class_names if "class_names" in config.model else ()
    if names and len(names) != config.model.num_classes:
        raise config_lib.ConfigError(
            f"{len(names)} names of classes for a head with {config.model.num_classes} of them"
        )
    return config


def initial_weights(config: ConfigDict) -> Callable[[Any], Any] | None:
    """How to get the weights that `config.init_from` names; None where it names none.

    What the model has and the source lacks keeps the values that `config.seed` gives it, where
    `convert/fit.py` allows that: a classifier from a pretraining checkpoint, for one.

    Returns:
      abstract parameters -> parameters; see `load_weights`.
    """
    path = config.init_from
    if not path:
        return None

    def load(abstract: Any) -> Any:
        return load_weights(path, config, abstract, policy=starting_policy(abstract))

    return load


def frozen_weights(config: ConfigDict) -> Callable[[Any], Any] | None:
    """How to get what a system needs and never trains: the teacher's weights; None: there is none.

    Raises:
      ConfigError: there is a teacher, but no weights are named.
    """
    if "teacher" not in config:
        return None
    path, wanted = _teacher_weights(config), config.teacher.sha256
    described = teacher_config(config)

    def load(abstract: Any) -> Any:
        source = read_weights(path)
        if wanted and source.sha256 != wanted:
            raise config_lib.ConfigError(
                f"config.teacher.weights={path} has SHA-256 {source.sha256}, config.teacher.sha256 "
                f"is {wanted}: give the file that the recipe was made with, or another recipe"
            )
        return _loaded(source, described, abstract, EXACT)

    return load


def with_teacher(config: ConfigDict, workdir: str) -> ConfigDict:
    """The config with the SHA-256 of its teacher's weights, which stands for them in checkpoints.

    Args:
      config: the recipe; one without a teacher comes back as it is.
      workdir: of the run, which may be going on from a checkpoint.

    Raises:
      ConfigError: no weights are named, or others than the recipe or the checkpoint says.
      CheckpointError, ConversionError: they cannot be read.
    """
    if "teacher" not in config:
        return config
    path = _teacher_weights(config)
    found = sources.sha256(path) if sources.is_weights(path) else read_weights(path).sha256
    saved = (saved_config(workdir) or {}).get("teacher", {}).get("sha256", "")
    for wanted, where in ((config.teacher.sha256, "config.teacher.sha256"), (saved, workdir)):
        if wanted and wanted != found:
            raise config_lib.ConfigError(
                f"config.teacher.weights={path} has SHA-256 {found}, but {where} was made with a "
                f"teacher of {wanted}: give that file, or another workdir to begin anew"
            )
    config = config.copy_and_resolve_references()
    config.teacher.sha256 = found
    return config


def _teacher_weights(config: ConfigDict) -> str:
    if not config.teacher.weights:
        raise config_lib.ConfigError(
            f"config.teacher.weights is empty: {config.system!r} learns from a teacher that is "
            "trained already; name its weights (docs/weights.md says what is read)"
        )
    return config.teacher.weights


def open_frozen(config: ConfigDict, system: System) -> Any:
    """What a system needs and never trains, on the devices; None where it needs nothing.

    Raises:
      ConfigError, CheckpointError, ConversionError: there is a teacher whose weights are not named,
        cannot be read or do not fit.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        mesh = make_mesh(1, jax.local_devices()[:1])
    return place_frozen(system, mesh, jax.random.key(config.seed), frozen_weights(config))


def teacher_config(config: ConfigDict) -> ConfigDict:
    """The recipe's config with the teacher as its model, and clips as the teacher sees them.

    For reading the teacher's weights.
    """
    config = config.copy_and_resolve_references().unlock()
    if "size" in config.teacher:  # it sees pictures, each by itself
        config.data.frames, config.data.size = config.teacher.tubelet[0], config.teacher.size
    config.model.update(
        {name: value for name, value in config.teacher.items() if name in config.model}
    )
    return config


def load_weights(
    path: str, config: ConfigDict, abstract_params: Any, *, policy: Policy = EXACT
) -> Any:
    """Weights of any origin that `read_weights` reads, fitted to a model and placed.

    Args:
      path: see `read_weights`.
      config: the recipe of the model.
      abstract_params: nested dict of `jax.ShapeDtypeStruct` with shardings.
      policy: what need not agree; every name by default.

    Raises:
      CheckpointError, ConversionError: what does not fit, by name and shape.
    """
    return _loaded(read_weights(path), config, abstract_params, policy)


def _loaded(source: Source, config: ConfigDict, abstract_params: Any, policy: Policy) -> Any:
    _log.info("Weights:\n%s", source.describe())
    fitted = fit_weights(source, config, abstract_params, policy=policy)
    _log.info("%s", fitted.report)
    wanted = flatten(abstract_params)
    placed = _placed(fitted.arrays, wanted)
    if fresh := {name: wanted[name].sharding for name in fitted.report.fresh}:
        init = systems.build(config).init

        def initial(key: jax.Array) -> dict[str, jax.Array]:
            params = flatten(init(key))
            return {name: params[name] for name in fresh}

        placed |= jax.jit(initial, out_shardings=fresh)(jax.random.key(config.seed))
    return unflatten({name: placed[name] for name in wanted})


def read_weights(path: str) -> Source:
    """Weights of any origin, by our paths, with what is known of them.

    Of a checkpoint that holds an average of the parameters (EMA), the average is taken.

    Args:
      path: a workdir or one step's folder in it; a `.safetensors` or PyTorch file, or a folder,
        of the released VideoMAE, transformers or our own.

    Raises:
      CheckpointError, ConversionError: it cannot be read.
    """
    if sources.is_weights(path):
        return sources.read(path)
    params, part, meta = read_params(path)
    return sources.of_checkpoint(path, params, part, meta["config"])


def fit_weights(
    source: Source, config: ConfigDict, template: Any, *, policy: Policy = EXACT
) -> Fitted:
    """Fits weights to the model of a recipe; see `convert.fit.fit`.

    Raises:
      ConversionError: what does not fit, by name and shape.
    """
    for field in ("tubelet", "channels"):
        found = getattr(source, field)
        if found is not None and found != config.model[field]:
            raise ConversionError(
                f"{source.path} was made for {field}={found}, the config has "
                f"model.{field}={config.model[field]}"
            )
    if source.tower:
        check_tower(source, config.model.encoder.heads)
    theirs = config_lib.clip_grid(config_of(source)) if "system" in source.config else None
    return fit(
        source.arrays,
        source.report,
        template,
        policy=policy,
        grid=config_lib.clip_grid(config),
        source_grid=theirs,
    )


def _placed(arrays: Mapping[str, np.ndarray], wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Arrays in the dtypes and layouts of `wanted`; a process takes its devices' parts of them."""
    return {
        name: jax.make_array_from_callback(
            array.shape,
            wanted[name].sharding,
            lambda index, array=array, dtype=wanted[name].dtype: array[index].astype(dtype),
        )
        for name, array in arrays.items()
    }
