r"""MaskFeat pretraining, MViTv2-L 16x4 on Kinetics-600.

Source: arXiv:2112.09133; for this set no config was released: values are those of Kinetics-400.

Run:    python -m vmae_jax.main --config=configs/maskfeat_l_16x4_k600.py \
            --config.data.manifest=train.csv --workdir=runs/maskfeat_l_16x4_k600
Expect: paper: top-1 88.3 on Kinetics-600 after fine-tuning at 312 pixels and 40 frames.
        Ours: not run.
"""

from vmae_jax.config import configured, maskfeat_defaults, mvit
from vmae_jax.variants import MVIT_VARIANTS, without_last_stride


def get_config(mode=""):
    config = maskfeat_defaults()
    config.model.encoder = mvit(without_last_stride(MVIT_VARIANTS["L"]))
    # Open in the source: epochs (here those of the released weights of Kinetics-400), batch, rate.
    config.train.epochs = 800
    return configured(config, mode)
