r"""VideoMAE V2 pretraining on generated motion classes, for benchmarks/learning.

Run:    python -m vmae_jax.main --config=benchmarks/learning/motion_pretrain.py \
            --config.data.manifest=runs/motion/train.csv --workdir=runs/learning/motion_pretrain
Expect: see benchmarks/RESULTS.md, "Does pretraining help?".
"""

from vmae_jax.config import configured, pretrain_defaults, stack
from vmae_jax.variants import StackSpec


def get_config(mode=""):
    config = pretrain_defaults()
    config.model.encoder = stack(StackSpec(width=128, depth=4, heads=4))
    config.model.decoder = stack(StackSpec(width=128, depth=2, heads=4))
    for part in (config.model.encoder, config.model.decoder):
        part.remat = "none"
    config.model.tubelet = (2, 8, 8)
    config.model.dtype = "float32"
    # Three of four time slots are hidden whole: only who knows how things move can predict them.
    # With tubes a network looks up what is beside a hidden patch at the same time, and what it
    # learned so was of no use here; see benchmarks/RESULTS.md.
    config.masking.encoder = ("frame", 0.75)
    config.masking.decoder = ("running_cell", 0.5)
    # Raw pixels: the generated backgrounds are plain; see configs/demo.py.
    config.masking.normalize_target = False
    config.data.frames = 8
    config.data.stride = 2
    config.data.size = (64, 64)
    config.data.repeats = 1
    config.optim.base_lr = 2e-3
    config.optim.lr_per_videos = 16.0
    config.optim.warmup_epochs = 10.0
    config.optim.clip_norm = 0.1
    config.train.epochs = 100
    config.train.steps = 3000
    config.train.batch_videos = 16
    config.train.log_every = 200
    config.train.picture_every = 1000
    config.train.checkpoint_every = 1000
    config.train.keep_last = 1
    return configured(config, mode)
