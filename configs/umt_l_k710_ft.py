r"""UMT fine-tuning, ViT-L/16 on Kinetics-710 after pretraining there.

Source: arXiv:2303.16058; values from the released script.

Run:    python -m vmae_jax.main --config=configs/umt_l_k710_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/umt_l_k710 \
            --workdir=runs/umt_l_k710_ft
Expect: released: top-1 86.0 (4x3 views).
        Ours: not run.
"""

from vmae_jax.config import configured, stack, umt_finetune_defaults
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = umt_finetune_defaults()
    config.model.encoder = stack(VIT_VARIANTS["L"])
    config.model.encoder.drop_path = 0.2
    config.data.published_classes = 710
    config.data.published_videos = 658_340  # V2's count; UMT's lists were not at hand
    config.optim.base_lr = 1e-4
    config.optim.warmup_epochs = 2.0
    config.optim.layer_decay = 0.85
    config.train.epochs = 20
    config.train.batch_videos = 256  # 16 GPUs x 16
    return configured(config, mode)
