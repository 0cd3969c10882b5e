r"""Every pretraining system as a small network on few frames, for benchmarks/learning/compare.py.

Data, batch and schedule are the same for all; network, masks and targets are each system's own.
The ViTs are 128 wide with 4 blocks; the MViT takes twice as many operations for all of a clip's
tokens as a ViT does for a quarter of them. `umt` needs a teacher (`--config.teacher.weights`):
benchmarks/learning/image_tower.py trains one.

Run:    python -m vmae_jax.main --config=benchmarks/learning/small.py:mae_st \
            --config.data.manifest=train.csv --workdir=runs/small_mae_st
Expect: see benchmarks/RESULTS.md, "Systems at equal encoder FLOPs".
"""

from vmae_jax.config import (
    ConfigError,
    mae_st_defaults,
    maskfeat_defaults,
    mvit,
    pretrain_defaults,
    stack,
    umt_defaults,
)
from vmae_jax.variants import MViTSpec, StackSpec

ENCODER = StackSpec(width=128, depth=4, heads=4)
DECODER = StackSpec(width=128, depth=2, heads=4)


def get_config(mode=""):
    if mode not in RECIPES:
        raise ConfigError(f"no small system {mode!r}; write small.py:{'|'.join(RECIPES)}")
    config = RECIPES[mode]().unlock()
    config.model.dtype = "float32"
    config.data.sampling = "dense"
    config.data.frames = 8
    config.data.stride = 4
    config.data.size = (64, 64)
    config.data.crop = "resized"
    config.data.crop_area = (0.5, 1.0)
    config.data.flip = True
    config.data.repeats = 1
    config.data.repeat_windows = False
    config.optim.base_lr = 1e-3
    config.optim.lr_per_videos = 16.0
    config.optim.min_lr = 1e-5
    config.optim.warmup_lr = 0.0
    config.optim.warmup_epochs = 10.0
    config.optim.clip_norm = 1.0
    config.train.epochs = 100
    config.train.batch_videos = 16
    config.train.log_every = 100
    config.train.picture_every = 500
    config.train.checkpoint_every = 500
    config.train.keep_last = 1
    return config.lock()


def _vit(defaults):
    config = defaults().unlock()
    config.model.encoder, config.model.decoder = stack(ENCODER), stack(DECODER)
    for part in (config.model.encoder, config.model.decoder):
        part.remat = "none"
    config.model.tubelet = (2, 8, 8)
    return config


def videomae():
    config = _vit(pretrain_defaults)
    config.masking.encoder = ("tube", 0.75)
    return config


def videomae_v2():
    config = videomae()
    config.masking.decoder = ("running_cell", 0.5)
    return config


def mae_st():
    config = _vit(mae_st_defaults)
    config.masking.encoder = ("agnostic", 0.75)
    return config


def maskfeat():
    config = maskfeat_defaults().unlock()
    # Patches of 16 x 16 pixels are predicted, from a grid of 4 x 4 in each of 4 slots.
    spec = MViTSpec(
        width=32,
        depths=(1, 1, 2),
        heads=1,
        strides=((1, 1, 1), (1, 2, 2), (1, 2, 2)),
        kv_stride=(1, 4, 4),
    )
    config.model.encoder = mvit(spec)
    config.model.encoder.remat = "none"
    config.masking.cell = (2, 16, 16)
    return config


def umt():
    config = umt_defaults().unlock()
    config.model.encoder = stack(ENCODER)
    config.model.encoder.remat = "none"
    config.model.tubelet = (1, 8, 8)
    # As benchmarks/learning/image_tower.py trains it.
    config.teacher.encoder = stack(StackSpec(width=128, depth=4, heads=2))
    config.teacher.encoder.remat = "none"
    config.teacher.tubelet = (1, 8, 8)
    config.teacher.size = (64, 64)
    config.teacher.output = 64
    config.align.layers = 3
    return config


RECIPES = {f.__name__: f for f in (videomae, videomae_v2, mae_st, maskfeat, umt)}
