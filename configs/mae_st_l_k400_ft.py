r"""MAE-ST fine-tuning, ViT-L/16 on Kinetics-400.

Source: arXiv:2205.09113; values from PySlowFast's released config.

Run:    python -m vmae_jax.main --config=configs/mae_st_l_k400_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/mae_st_l_k400 \
            --workdir=runs/mae_st_l_k400_ft
Expect: paper: top-1 84.8 (7x3 views); 84.4 after 800 epochs of pretraining.
        Ours: not run.
"""

from vmae_jax.config import configured, mae_st_finetune_defaults, stack
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = mae_st_finetune_defaults()
    config.model.encoder = stack(VIT_VARIANTS["L"])
    config.model.encoder.drop_path = 0.2
    config.data.published_classes = 400
    config.data.published_videos = 240_436
    return configured(config, mode)
