r"""MaskFeat pretraining, MViTv2-L 16x4 on Kinetics-400, 300 epochs.

Source: arXiv:2112.09133; values from the released config.

Run:    python -m vmae_jax.main --config=configs/maskfeat_l_16x4_k400.py \
            --config.data.manifest=train.csv --workdir=runs/maskfeat_l_16x4_k400
Expect: paper, after fine-tuning: top-1 83.1 (10x1 views), recalled and not checked.
        Ours: not run.
"""

from vmae_jax.config import configured, maskfeat_defaults, mvit
from vmae_jax.variants import MVIT_VARIANTS, without_last_stride


def get_config(mode=""):
    config = maskfeat_defaults()
    config.model.encoder = mvit(without_last_stride(MVIT_VARIANTS["L"]))
    config.train.epochs = 300
    return configured(config, mode)
