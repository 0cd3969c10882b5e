r"""VideoMAE fine-tuning, ViT-B/16 on Kinetics-400.

Source: arXiv:2203.12602; values from the released script.

Run:    python -m vmae_jax.main --config=configs/videomae_b_k400_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/videomae_b_k400 \
            --workdir=runs/videomae_b_k400_ft
Expect: paper: top-1 81.5, top-5 95.1 (5x3 views).
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
    config.augment.mix_clips = 12
    config.optim.base_lr = 5e-4
    config.train.epochs = 75
    config.train.batch_videos = 384  # 64 GPUs x 6
    return configured(config, mode)
