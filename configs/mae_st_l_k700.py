r"""MAE-ST pretraining, ViT-L/16 on Kinetics-700.

Source: arXiv:2205.09113; weights were published, a config for this set was not: values of
Kinetics-400.

Run:    python -m vmae_jax.main --config=configs/mae_st_l_k700.py \
            --config.data.manifest=train.csv --workdir=runs/mae_st_l_k700
Expect: paper, after fine-tuning on SSv2: top-1 73.6; on AVA: 33.1 mAP.
        Ours: not run.
"""

from vmae_jax.config import configured, mae_st_defaults, stack
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = mae_st_defaults()
    config.model.encoder = stack(VIT_VARIANTS["L"])
    # It holds 13.9 thousand videos of Kinetics-400's validation set: do not validate on that.
    config.train.epochs = 400  # with 4 clips of each video, the "1600 epochs" of the weights
    return configured(config, mode)
