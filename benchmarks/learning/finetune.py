r"""Fine-tuning of the small ViT of benchmarks/learning, from scratch or from its pretraining.

Run:    python -m vmae_jax.main --config=benchmarks/learning/finetune.py \
            --config.data.manifest=train.csv --config.init_from=runs/learning/pretrain \
            --workdir=runs/learning/finetune
Expect: see benchmarks/RESULTS.md, "Does pretraining help?".
"""

from vmae_jax.config import configured, finetune_defaults, stack
from vmae_jax.variants import StackSpec


def get_config(mode=""):
    config = finetune_defaults()
    config.model.encoder = stack(StackSpec(width=128, depth=4, heads=4))
    config.model.encoder.remat = "none"
    config.model.encoder.drop_path = 0.1
    config.model.tubelet = (2, 8, 8)
    config.model.dtype = "float32"
    config.data.frames = 8
    config.data.stride = 4
    config.data.size = (64, 64)
    config.data.repeats = 1
    config.data.flip = False  # a mirrored forehand looks like a backhand
    config.data.crop_area = (0.3, 1.0)
    config.data.randaugment = ()
    config.data.views = (2, 3)
    # For fifteen epochs of four hundred clips, mixing would hide the classes more than it helps.
    config.augment.mixup = 0.0
    config.augment.cutmix = 0.0
    config.optim.base_lr = 1e-3
    config.optim.layer_decay = 0.9
    config.optim.lr_per_videos = 16.0
    config.optim.warmup_epochs = 2.0
    config.train.epochs = 15
    config.train.batch_videos = 16
    config.train.log_every = 24
    config.train.checkpoint_every = 360
    config.train.keep_last = 1
    return configured(config, mode)
