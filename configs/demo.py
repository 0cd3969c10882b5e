r"""A small VideoMAE V2 that learns on a laptop: what `make demo` runs.

Run:    python -m vmae_jax.main --config=configs/demo.py \
            --config.data.manifest=runs/demo_videos/train.csv --workdir=runs/demo
Expect: the loss falls visibly within minutes on two CPU cores; see README.md.
"""

from vmae_jax.config import configured, pretrain_defaults, stack
from vmae_jax.variants import StackSpec


def get_config(mode=""):
    config = pretrain_defaults()
    config.model.encoder = stack(StackSpec(width=128, depth=3, heads=4))
    config.model.decoder = stack(StackSpec(width=128, depth=2, heads=4))
    for part in (config.model.encoder, config.model.decoder):
        part.remat = "none"  # it is so small that memory does not matter
    config.model.tubelet = (2, 8, 8)
    config.model.dtype = "float32"  # CPUs gain nothing from bfloat16
    # Easier than the published 0.9, which a model that trains for minutes cannot solve.
    config.masking.encoder = ("tube", 0.75)
    config.masking.decoder = ("running_cell", 0.5)
    # Raw pixels: the generated videos have plain backgrounds, and normalising a nearly flat patch
    # turns compression noise into the target.
    config.masking.normalize_target = False
    config.data.frames = 8
    config.data.stride = 2
    config.data.size = (64, 64)
    config.data.repeats = 2
    config.optim.base_lr = 2e-3
    config.optim.lr_per_videos = 8.0
    config.optim.warmup_epochs = 10.0
    config.optim.clip_norm = 0.1
    config.train.epochs = 100
    config.train.steps = 1000
    config.train.batch_videos = 8
    config.train.log_every = 50
    config.train.picture_every = 200
    config.train.checkpoint_every = 200
    return configured(config, mode)
