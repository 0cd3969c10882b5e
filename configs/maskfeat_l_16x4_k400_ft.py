r"""MaskFeat fine-tuning, MViTv2-L 16x4 on Kinetics-400.

Source: arXiv:2112.09133; values from the released config.

Run:    python -m vmae_jax.main --config=configs/maskfeat_l_16x4_k400_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/maskfeat_l_16x4_k400 \
            --workdir=runs/maskfeat_l_16x4_k400_ft
Expect: paper: top-1 84.3 (10x1 views, 377 GMACs each), after 800 epochs of pretraining.
        Ours: not run.
"""

from vmae_jax.config import configured, finetune_defaults, mvit
from vmae_jax.variants import MVIT_VARIANTS


def get_config(mode=""):
    config = finetune_defaults("mvit")
    config.model.encoder = mvit(MVIT_VARIANTS["L"])
    config.model.encoder.drop_path = 0.2
    config.data.published_classes = 400
    config.data.published_videos = 240_436
    config.data.repeats = 1
    config.augment.mix_clips = 2  # of one GPU
    config.optim.min_lr = 1e-5
    config.optim.warmup_lr = 1e-8
    config.optim.warmup_epochs = 5.0
    config.optim.layer_decay = 0.875
    config.train.epochs = 75
    return configured(config, mode)
