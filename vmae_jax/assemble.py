"""From a config to live parts: pipeline, starting weights, run. Used by main and the tools."""

import dataclasses
import logging
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from vmae_jax import config as config_lib
from vmae_jax.convert.files import load_safetensors
from vmae_jax.convert.videomae import pretrain_table
from vmae_jax.data.pipeline import ClipPipeline, PipelineOptions
from vmae_jax.train import optim
from vmae_jax.train.checkpoints import CheckpointError, load_params
from vmae_jax.train.loop import Run
from vmae_jax.train.schedules import warmup_cosine
from vmae_jax.train.step import StepOptions

_log = logging.getLogger(__name__)

# Fields of config.data that the device or the loop uses, not the pipeline.
NOT_THE_PIPELINES = ("flip", "mean", "std", "published_videos")


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
        ),
        options=StepOptions(
            clip_norm=config.optim.clip_norm,
            accumulate=config.optim.accumulate,
            ema_decay=config.optim.ema_decay,
        ),
        seed=config.seed,
        fsdp=config.mesh.fsdp,
        max_skipped_in_a_row=config.optim.max_skipped_in_a_row,
        config=config.to_dict(),
        **{
            field.name: train[field.name]
            for field in dataclasses.fields(Run)
            if field.name in train
        },
    )


def initial_weights(config: ConfigDict) -> Callable[[Any], Any] | None:
    """How to get the weights that `config.init_from` names; None where it names none.

    Returns:
      abstract parameters -> parameters; see `load_weights`.
    """
    path = config.init_from
    if not path:
        return None
    return lambda abstract: load_weights(path, config, abstract)


def load_weights(path: str, config: ConfigDict, abstract_params: Any) -> Any:
    """Weights from a checkpoint of ours, or from a safetensors file in the released names.

    Of a checkpoint that holds an average of the parameters (EMA), the average is taken.

    Args:
      path: a workdir, one step's folder in it, or a `.safetensors` file.
      config: says how patches were cut, which a released file does not tell.
      abstract_params: nested dict of `jax.ShapeDtypeStruct`, with shardings if there is a mesh.

    Raises:
      CheckpointError, ConversionError: what does not fit, by name and shape.
    """
    if not path.endswith(".safetensors"):
        return load_params(path, abstract_params, prefer_ema=True)
    if not pathlib.Path(path).is_file():
        raise CheckpointError(f"no weights at {path}")
    table = pretrain_table(config.model.tubelet, config.model.channels)
    params, report = load_safetensors(path, table, abstract_params)
    _log.info("Weights from %s: %s", path, report)
    return jax.tree.map(lambda x, want: jax.device_put(x, want.sharding), params, abstract_params)
