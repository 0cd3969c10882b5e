r"""MaskFeat pretraining of a small multiscale network on few real clips, for benchmarks/learning.

Run:    python -m vmae_jax.main --config=benchmarks/learning/maskfeat.py \
            --config.data.manifest=train.csv --workdir=runs/learning/maskfeat
Expect: see benchmarks/RESULTS.md, "Learning".
"""

from vmae_jax.config import configured, maskfeat_defaults, mvit
from vmae_jax.variants import MViTSpec


def get_config(mode=""):
    config = maskfeat_defaults()
    config.model.encoder = mvit(
        MViTSpec(
            width=24,
            depths=(1, 1, 2),
            heads=1,
            strides=((1, 1, 1), (1, 2, 2), (1, 2, 2)),
            kv_stride=(1, 4, 4),
        )
    )
    config.model.encoder.remat = "none"
    config.model.dtype = "float32"
    config.masking.cell = (2, 16, 16)
    config.data.frames = 8
    config.data.size = (64, 64)
    config.optim.base_lr = 1e-3
    config.optim.min_lr = 1e-5
    config.optim.warmup_lr = 1e-5
    config.optim.lr_per_videos = 8.0
    config.optim.warmup_epochs = 0.5
    config.optim.clip_norm = 0.1
    config.train.epochs = 5
    config.train.steps = 300
    config.train.batch_videos = 8
    config.train.log_every = 20
    config.train.picture_every = 150
    config.train.checkpoint_every = 300
    return configured(config, mode)
