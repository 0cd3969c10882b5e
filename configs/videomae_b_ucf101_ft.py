r"""VideoMAE fine-tuning, ViT-B/16 on UCF101 (split 1).

Source: arXiv:2203.12602; values from the released script.

Run:    python -m vmae_jax.main --config=configs/videomae_b_ucf101_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/videomae_b_ucf101 \
            --workdir=runs/videomae_b_ucf101_ft
Expect: paper: top-1 91.3, top-5 98.5 (5x3 views).
        Ours: not run.
"""

from vmae_jax.config import configured, finetune_defaults, stack
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = finetune_defaults()
    config.model.encoder = stack(VIT_VARIANTS["B"])
    config.model.encoder.drop_path = 0.2
    config.model.head_dropout = 0.5
    config.data.published_classes = 101
    config.data.published_videos = 9_537
    config.augment.mix_clips = 32
    config.optim.base_lr = 5e-4
    config.optim.min_lr = 1e-5
    config.optim.layer_decay = 0.7
    config.train.epochs = 100
    config.train.batch_videos = 128  # 8 GPUs x 16
    return configured(config, mode)
