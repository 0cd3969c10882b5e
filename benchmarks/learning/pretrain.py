r"""VideoMAE V2 pretraining of a small ViT on few real clips, for benchmarks/learning.

Run:    python -m vmae_jax.main --config=benchmarks/learning/pretrain.py \
            --config.data.manifest=train.csv --workdir=runs/learning/pretrain
Expect: see benchmarks/RESULTS.md, "Does pretraining help?".
"""

from vmae_jax.config import configured, pretrain_defaults, stack
from vmae_jax.variants import StackSpec


def get_config(mode=""):
    config = pretrain_defaults()
    config.model.encoder = stack(StackSpec(width=128, depth=4, heads=4))
    config.model.decoder = stack(StackSpec(width=96, depth=2, heads=4))
    for part in (config.model.encoder, config.model.decoder):
        part.remat = "none"
    config.model.tubelet = (2, 8, 8)
    config.model.dtype = "float32"
    # Three of four time slots are hidden whole, and each patch is normalised, or the dark clips
    # would count for little: with tubes and raw pixels less was learned; see benchmarks/RESULTS.md.
    config.masking.encoder = ("frame", 0.75)
    config.masking.decoder = ("running_cell", 0.5)
    config.masking.normalize_target = True
    config.data.frames = 8
    config.data.stride = 4
    config.data.size = (64, 64)
    config.data.repeats = 2
    config.optim.base_lr = 2e-3
    config.optim.lr_per_videos = 16.0
    config.optim.min_lr = 1e-5
    config.optim.warmup_epochs = 10.0
    config.optim.clip_norm = 0.1
    config.train.epochs = 100
    config.train.steps = 1500
    config.train.batch_videos = 16
    config.train.log_every = 50
    config.train.picture_every = 500
    config.train.checkpoint_every = 500
    return configured(config, mode)
