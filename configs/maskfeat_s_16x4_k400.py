r"""MaskFeat pretraining, MViTv2-S 16x4 on Kinetics-400.

Source: arXiv:2112.09133; values from the released config.

Run:    python -m vmae_jax.main --config=configs/maskfeat_s_16x4_k400.py \
            --config.data.manifest=train.csv --workdir=runs/maskfeat_s_16x4_k400
Expect: released, after fine-tuning: top-1 82.2 (10x1 views).
        Ours: not run.
"""

from vmae_jax.config import configured, maskfeat_defaults


def get_config(mode=""):
    config = maskfeat_defaults()
    config.train.epochs = 300
    return configured(config, mode)
