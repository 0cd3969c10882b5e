r"""UMT fine-tuning, ViT-L/16 on Moments in Time V1 after Kinetics-400.

Source: arXiv:2303.16058; values from the released script.

Run:    python -m vmae_jax.main --config=configs/umt_l_mit_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/umt_l_k400_ft \
            --workdir=runs/umt_l_mit_ft
Expect: released: top-1 48.0 (4x3 views).
        Ours: not run.
"""

from vmae_jax.config import configured, stack, umt_finetune_defaults
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = umt_finetune_defaults()
    config.model.encoder = stack(VIT_VARIANTS["L"])
    config.model.encoder.drop_path = 0.2
    config.data.published_classes = 339
    config.data.repeats = 1
    # The script begins with the weights that it is to produce; meant are those of Kinetics-400.
    config.optim.base_lr = 1e-4
    config.optim.lr_per_videos = 256.0  # of one clip each
    config.optim.warmup_epochs = 5.0
    config.optim.layer_decay = 0.85
    config.train.epochs = 20
    config.train.batch_videos = 512  # 16 GPUs x 32
    return configured(config, mode)
