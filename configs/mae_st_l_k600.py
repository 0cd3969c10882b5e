r"""MAE-ST pretraining, ViT-L/16 on Kinetics-600.

Source: arXiv:2205.09113; weights were published, a config for this set was not: values of
Kinetics-400.

Run:    python -m vmae_jax.main --config=configs/mae_st_l_k600.py \
            --config.data.manifest=train.csv --workdir=runs/mae_st_l_k600
Expect: paper, after fine-tuning on Kinetics-400: top-1 84.9; on SSv2: 73.0.
        Ours: not run.
"""

from vmae_jax.config import configured, mae_st_defaults, stack
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = mae_st_defaults()
    config.model.encoder = stack(VIT_VARIANTS["L"])
    config.data.published_videos = 366_006
    config.train.epochs = 400  # with 4 clips of each video, the "1600 epochs" of the weights
    return configured(config, mode)
