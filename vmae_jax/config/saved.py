"""Configs as JSON, in `config.json` and in checkpoints."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vmae_jax.config.defaults import defaults_of
from vmae_jax.config.errors import ConfigError

_log = logging.getLogger(__name__)


def to_json(config: ConfigDict) -> str:
    """The resolved config as stable JSON, for `config.json` and checkpoints."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_mapping(values: Mapping[str, Any]) -> ConfigDict:
    """Rebuilds a config from `config.json` or a checkpoint, where tuples became lists.

    Fields that came after it was saved get their default, which the log names: a new field's
    default is what was done before there was a choice.

    Raises:
      ConfigError: a system, an architecture or fields that this version does not know.
    """
    system = values.get("system")
    # Before there was a choice, all networks were of one kind.
    architecture = values.get("model", {}).get("architecture", "vit")
    try:
        config = defaults_of(system, architecture)
    except ConfigError as error:
        raise ConfigError(f"the saved config is none of this version: {error}") from error
    problems: list[str] = []
    _fill(config, values, "config", problems)
    if problems:
        raise ConfigError(
            "the saved config does not fit this version of vmae_jax: " + "; ".join(problems)
        )
    return config


def _fill(config: ConfigDict, values: Mapping[str, Any], path: str, problems: list[str]) -> None:
    problems += [f"{path}.{name} is unknown" for name in sorted(values.keys() - config.keys())]
    for name in sorted(config.keys() - values.keys()):
        _log.info("%s.%s is newer than the saved config; it is %r.", path, name, config[name])
    for name in sorted(config.keys() & values.keys()):
        if isinstance(config[name], ConfigDict):
            _fill(config[name], values[name], f"{path}.{name}", problems)
        else:
            config[name] = _tuples(values[name])


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
