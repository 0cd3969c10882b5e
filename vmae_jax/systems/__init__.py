"""The systems by the name that `config.system` gives."""

from ml_collections import ConfigDict

from vmae_jax import chips
from vmae_jax.chips import Chip
from vmae_jax.config import ConfigError
from vmae_jax.systems import classify, distill, mae_st, maskfeat, umt, videomae
from vmae_jax.systems.base import System

BUILDERS = {
    "videomae": videomae.build,
    "mae_st": mae_st.build,
    "classify": classify.build,
    "distill": distill.build,
    "maskfeat": maskfeat.build,
    "umt": umt.build,
}


def build(config: ConfigDict, chip: Chip | None = None) -> System:
    """Builds the system that a validated config names.

    Args:
      config: the recipe.
      chip: what it will run on, which decides "auto" choices; None: this process's devices.

    Raises:
      ConfigError: unknown name.
    """
    if config.system not in BUILDERS:
        raise ConfigError(
            f"config.system={config.system!r}: choose one of {', '.join(sorted(BUILDERS))}"
        )
    return BUILDERS[config.system](config, chip or chips.local())
