r"""MaskFeat fine-tuning, MViTv2-L 16x4 on Kinetics-700.

Source: arXiv:2112.09133; no recipe was released for it; values of Kinetics-400.

Run:    python -m vmae_jax.main --config=configs/maskfeat_l_16x4_k700_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/maskfeat_l_16x4_k700 \
            --workdir=runs/maskfeat_l_16x4_k700_ft
Expect: paper: not given for this size.
        Ours: not run.
"""

from vmae_jax.config import configured, finetune_defaults, mvit
from vmae_jax.variants import MVIT_VARIANTS


def get_config(mode=""):
    config = finetune_defaults("mvit")
    config.model.encoder = mvit(MVIT_VARIANTS["L"])
    config.model.encoder.drop_path = 0.2
    config.data.published_classes = 700
    config.data.repeats = 1
    config.augment.mix_clips = 2  # of one GPU
    config.optim.min_lr = 1e-5
    config.optim.warmup_lr = 1e-8
    config.optim.warmup_epochs = 5.0
    config.optim.layer_decay = 0.875
    config.train.epochs = 75
    return configured(config, mode)
