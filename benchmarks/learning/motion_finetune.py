r"""Fine-tuning on generated motion classes, for benchmarks/learning.

Left and right, and forwards and backwards, are different classes here: nothing is flipped.

Run:    python -m vmae_jax.main --config=benchmarks/learning/motion_finetune.py \
            --config.data.manifest=runs/motion/train.csv \
            --config.init_from=runs/learning/motion_pretrain --workdir=runs/learning/motion_finetune
Expect: see benchmarks/RESULTS.md, "Does pretraining help?".
"""

from vmae_jax.config import configured, finetune_defaults, stack
from vmae_jax.variants import StackSpec


def get_config(mode=""):
    config = finetune_defaults()
    config.model.encoder = stack(StackSpec(width=128, depth=4, heads=4))
    config.model.encoder.remat = "none"
    config.model.tubelet = (2, 8, 8)
    config.model.dtype = "float32"
    config.data.frames = 8
    config.data.stride = 2
    config.data.size = (64, 64)
    config.data.repeats = 1
    config.data.flip = False
    config.data.crop_area = (0.7, 1.0)
    config.data.randaugment = ()
    config.data.views = (1, 1)
    config.augment.mixup = 0.0
    config.augment.cutmix = 0.0
    config.augment.erase = 0.0
    config.augment.smoothing = 0.0
    config.model.encoder.drop_path = 0.0
    config.optim.base_lr = 1e-3
    config.optim.layer_decay = 0.9
    config.optim.lr_per_videos = 16.0
    config.optim.warmup_epochs = 2.0
    config.train.epochs = 15
    config.train.batch_videos = 16
    config.train.log_every = 60
    config.train.checkpoint_every = 700
    config.train.keep_last = 1
    return configured(config, mode)
