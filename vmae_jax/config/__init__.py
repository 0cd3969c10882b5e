"""The recipe: its fields and defaults, what makes one valid, and the numbers that follow from it.

A config file (`configs/*.py`) starts from the defaults of its system, changes what its paper
changes and ends with `configured(config, mode)`. Everything is checked here, before anything is
compiled.
"""

from vmae_jax.config.checks import validate
from vmae_jax.config.defaults import (
    ARCHITECTURES,
    DEFAULTS,
    defaults_of,
    distill_defaults,
    finetune_defaults,
    mae_st_defaults,
    mae_st_finetune_defaults,
    maskfeat_defaults,
    mvit,
    pretrain_defaults,
    stack,
    umt_defaults,
    umt_finetune_defaults,
    use_mvit,
)
from vmae_jax.config.derived import (
    Plan,
    TokenCounts,
    aligned_layers,
    check_devices,
    clip_grid,
    clips_of_a_window,
    feature_tubelet,
    mask_cells,
    mixed_clips,
    mvit_spec,
    patch_values,
    plan,
    teacher_frames,
    teacher_grid,
    token_counts,
)
from vmae_jax.config.errors import ConfigError
from vmae_jax.config.modes import configured, smoke
from vmae_jax.config.saved import from_mapping, to_json

__all__ = [
    "ARCHITECTURES",
    "DEFAULTS",
    "ConfigError",
    "Plan",
    "TokenCounts",
    "aligned_layers",
    "check_devices",
    "clip_grid",
    "clips_of_a_window",
    "configured",
    "defaults_of",
    "distill_defaults",
    "feature_tubelet",
    "finetune_defaults",
    "from_mapping",
    "mae_st_defaults",
    "mae_st_finetune_defaults",
    "mask_cells",
    "maskfeat_defaults",
    "mixed_clips",
    "mvit",
    "mvit_spec",
    "patch_values",
    "plan",
    "pretrain_defaults",
    "smoke",
    "stack",
    "teacher_frames",
    "teacher_grid",
    "to_json",
    "token_counts",
    "umt_defaults",
    "umt_finetune_defaults",
    "use_mvit",
    "validate",
]
