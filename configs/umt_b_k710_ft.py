r"""UMT fine-tuning, ViT-B/16 on Kinetics-710 after pretraining there.

Source: arXiv:2303.16058; values from the released script.

Run:    python -m vmae_jax.main --config=configs/umt_b_k710_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/umt_b_k710 \
            --workdir=runs/umt_b_k710_ft
Expect: released: top-1 81.9 (4x3 views).
        Ours: not run.
"""

from vmae_jax.config import configured, stack, umt_finetune_defaults
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = umt_finetune_defaults()
    config.model.encoder = stack(VIT_VARIANTS["B"])
    config.model.encoder.drop_path = 0.1
    config.data.published_classes = 710
    config.data.published_videos = 658_340  # V2's count; UMT's lists were not at hand
    config.optim.base_lr = 2e-4
    config.optim.warmup_epochs = 2.0
    config.train.epochs = 35
    config.train.batch_videos = 256  # 16 GPUs x 16
    return configured(config, mode)
