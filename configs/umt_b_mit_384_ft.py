r"""UMT fine-tuning, ViT-B/16 on Moments in Time V1, 384 pixels, after Kinetics-400.

Source: arXiv:2303.16058; values from the released script.

Run:    python -m vmae_jax.main --config=configs/umt_b_mit_384_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/umt_b_k400_ft \
            --workdir=runs/umt_b_mit_384_ft
Expect: released: top-1 45.5 (4x3 views).
        Ours: not run.
"""

from vmae_jax.config import configured, stack, umt_finetune_defaults
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = umt_finetune_defaults()
    config.model.encoder = stack(VIT_VARIANTS["B"])
    config.model.encoder.drop_path = 0.1
    config.data.published_classes = 339
    config.data.size = (384, 384)
    config.data.repeats = 1
    config.augment.mix_clips = 16
    # The script as released evaluates only (--eval).
    config.optim.base_lr = 1e-5
    config.optim.lr_per_videos = 256.0  # of one clip each
    config.optim.warmup_epochs = 1.0
    config.optim.weight_decay = 0.1
    config.train.epochs = 4
    config.train.batch_videos = 256  # 16 GPUs x 16
    return configured(config, mode)
