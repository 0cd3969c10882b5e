r"""VideoMAE fine-tuning, ViT-B/16 on Kinetics-400.

Source: arXiv:2203.12602; values from the released script.

Run:    python -m vmae_jax.main --config=configs/videomae_b_k400_800ep_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/videomae_b_k400_800ep \
            --workdir=runs/videomae_b_k400_800ep_ft
Expect: paper: top-1 80.0, top-5 94.4 (5x3 views).
        Ours: not run.
"""

from vmae_jax.config import configured, finetune_defaults, stack
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = finetune_defaults()
    config.model.encoder = stack(VIT_VARIANTS["B"])
    config.model.encoder.drop_path = 0.1
    config.data.published_classes = 400
    config.data.published_videos = 240_436
    config.data.repeats = 1
    config.augment.mix_clips = 8
    config.optim.base_lr = 1e-3
    config.train.epochs = 100
    config.train.batch_videos = 512  # 64 GPUs x 8
    return configured(config, mode)
