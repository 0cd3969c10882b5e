r"""MAE-ST fine-tuning, ViT-H/16 on Kinetics-400.

Source: arXiv:2205.09113; values from PySlowFast's released config.

Run:    python -m vmae_jax.main --config=configs/mae_st_h_k400_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/mae_st_h_k400 \
            --workdir=runs/mae_st_h_k400_ft
Expect: paper: top-1 85.1 (7x3 views).
        Ours: not run.
"""

from vmae_jax.config import configured, mae_st_finetune_defaults, stack
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = mae_st_finetune_defaults()
    config.model.encoder = stack(VIT_VARIANTS["H"])
    config.model.encoder.drop_path = 0.2
    config.model.encoder.remat = "full"
    config.model.head_dropout = 0.5
    config.data.published_classes = 400
    config.data.published_videos = 240_436
    config.data.repeats = 1
    config.augment.mix_clips = 2
    config.optim.min_lr = 1e-6
    config.optim.layer_decay = 0.8
    config.train.epochs = 75
    config.mesh.fsdp = 16
    return configured(config, mode)
