r"""MaskFeat fine-tuning, MViTv2-L 40x3 at 312 x 312 pixels on Kinetics-700.

Source: arXiv:2112.09133, which gives results but no recipe, and no config was released. Geometry:
that of the supervised MViTv2-L 40x3. All else: MaskFeat's released L 16x4. The supervised
recipe differs in drop path 0.75, dropout 0.5 before the head, RandAugment with 4 operations and
ImageNet's mean and deviation; whether MaskFeat took any of it is not known.

Run:    python -m vmae_jax.main --config=configs/maskfeat_l_40x3_312_k700_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/maskfeat_l_16x4_k700_ft \
            --workdir=runs/maskfeat_l_40x3_312_k700_ft
Expect: paper: top-1 80.4.
        Ours: not run.
"""

from vmae_jax.config import configured, finetune_defaults, mvit
from vmae_jax.variants import MVIT_VARIANTS


def get_config(mode=""):
    config = finetune_defaults("mvit")
    config.model.encoder = mvit(MVIT_VARIANTS["L"])
    config.model.encoder.drop_path = 0.2
    config.data.frames, config.data.stride = 40, 3
    config.data.size = (312, 312)
    config.data.short_side = 356  # as much larger than the crop as 256 than 224
    config.data.views = (5, 3)  # of the supervised recipe
    config.data.published_classes = 700
    config.data.repeats = 1
    config.augment.mix_clips = 2  # of one GPU
    config.optim.min_lr = 1e-5
    config.optim.warmup_lr = 1e-8
    config.optim.warmup_epochs = 5.0
    config.optim.layer_decay = 0.875
    config.train.epochs = 75
    return configured(config, mode)
