r"""MAE-ST fine-tuning, ViT-L/16 on Something-Something V2.

Source: arXiv:2205.09113; no config was released, and the paper's values are not known here:
those of Kinetics-400, but for what it says of Something-Something in words. Unverified.

Run:    python -m vmae_jax.main --config=configs/mae_st_l_ssv2_ft.py \
            --config.data.manifest=train.csv --config.init_from=runs/mae_st_l_k700 \
            --workdir=runs/mae_st_l_ssv2_ft
Expect: paper: top-1 72.1 after Kinetics-400, 73.6 after Kinetics-700.
        Ours: not run.
"""

from vmae_jax.config import configured, mae_st_finetune_defaults, stack
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = mae_st_finetune_defaults()
    config.model.encoder = stack(VIT_VARIANTS["L"])
    config.model.encoder.drop_path = 0.2
    config.data.published_classes = 174
    config.data.published_videos = 168_913
    config.data.sampling = "segments"  # one frame of each, as the paper says
    config.data.views = (1, 3)
    config.data.flip = False  # left and right are in the names of its classes
    return configured(config, mode)
