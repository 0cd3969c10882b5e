"""The error of a recipe that cannot be run."""

from vmae_jax.errors import UserError


class ConfigError(UserError, ValueError):
    """A recipe that cannot be run; the message names the field, the value and the good values."""
