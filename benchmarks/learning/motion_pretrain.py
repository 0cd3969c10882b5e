r"""VideoMAE V2 pretraining on generated motion classes, for benchmarks/learning.

Run:    python -m vmae_jax.main --config=benchmarks/learning/motion_pretrain.py \
            --config.data.manifest=runs/motion/train.csv --workdir=runs/learning/motion_pretrain
Expect: see benchmarks/RESULTS.md, "Does it learn".
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
    config.masking.encoder = ("tube", 0.75)
    config.masking.decoder = ("running_cell", 0.5)
    # Raw pixels: the generated backgrounds are plain; see configs/demo.py.
    config.masking.normalize_target = False
    config.data.frames = 8
    config.data.stride = 2
    config.data.size = (48, 48)
    config.data.repeats = 2
    config.optim.base_lr = 2e-3
    config.optim.lr_per_videos = 16.0
    config.optim.warmup_epochs = 10.0
    config.optim.clip_norm = 0.1
    config.train.epochs = 100
    config.train.steps = 1200
    config.train.batch_videos = 16
    config.train.log_every = 100
    config.train.checkpoint_every = 400
    return configured(config, mode)
