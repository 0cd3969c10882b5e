"""How a config file ends: as published, or as its miniature."""

import math

from ml_collections import ConfigDict

from vmae_jax.config.errors import ConfigError


def configured(config: ConfigDict, mode: str | None) -> ConfigDict:
    """Ends a config file: applies the mode after the colon in `--config=file.py:mode`.

    Args:
      config: a complete recipe.
      mode: "" or None for the recipe as published; "smoke" for its miniature.

    Raises:
      ConfigError: unknown mode.
    """
    if mode == "smoke":
        config = smoke(config)
    elif mode:
        raise ConfigError(f"unknown config mode {mode!r}; write config.py or config.py:smoke")
    return config.lock()


def smoke(config: ConfigDict) -> ConfigDict:
    """Shrinks width, depth, batch and steps, so that every mechanism of a recipe runs on a CPU.

    Stages, head counts, MLP ratios, masks, sampling and the peak learning rate stay the recipe's:
    `lr_per_videos` shrinks with the batch, or the scaled-down rate would teach nothing. So do
    grids, but those of multiscale networks, whose first blocks have ten times a ViT's tokens.
    """
    config = config.copy_and_resolve_references()
    stacks = [
        part
        for group in ("model", "teacher")
        if group in config
        for part in config[group].values()
        if isinstance(part, ConfigDict)
    ]
    for part in stacks:
        part.width = 8 * part.heads
        if "depths" in part:
            part.depths = (1,) * len(part.depths)
        part.depth = len(part.depths) if "depths" in part else min(part.depth, 2)
    if "align" in config:  # as many layers as are left
        depths = {"model": config.align.interval, "teacher": config.teacher.interval}
        most = min((config[g].encoder.depth - 1) // i + 1 for g, i in depths.items())
        config.align.layers = min(config.align.layers, most)
        asked = min(config.teacher.attention_layer, config.teacher.encoder.depth)
        config.teacher.attention_layer = asked
    if config.model.architecture == "mvit":
        config.data.size = tuple(_third(side) for side in config.data.size)
    small = min(config.train.batch_videos, 2)
    config.optim.lr_per_videos *= small / config.train.batch_videos
    config.optim.accumulate = math.gcd(config.optim.accumulate, small)
    config.train.batch_videos = small
    config.train.steps = 8
    config.train.log_every = 2
    config.train.checkpoint_every = 4
    return config


def _third(side: int) -> int:
    """About a third of it, as often divided by two as the whole."""
    step = math.gcd(side, 32)
    return math.ceil(side / 3 / step) * step
