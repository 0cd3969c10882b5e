r"""MaskFeat pretraining, MViTv2-L 40x3 on Kinetics-400.

Source: arXiv:2112.09133; for so many frames no config was released: values are those of 16x4.

Run:    python -m vmae_jax.main --config=configs/maskfeat_l_40x3_k400.py \
            --config.data.manifest=train.csv --workdir=runs/maskfeat_l_40x3_k400
Expect: nothing is published for pretraining on 40 frames; the published models of 40x3 may have
        been pretrained on 16x4 and fine-tuned on more frames and pixels.
        Ours: not run.
"""

from vmae_jax.config import configured, maskfeat_defaults, mvit
from vmae_jax.variants import MVIT_VARIANTS, without_last_stride


def get_config(mode=""):
    config = maskfeat_defaults()
    config.model.encoder = mvit(without_last_stride(MVIT_VARIANTS["L"]))
    config.data.frames = 40
    config.data.stride = 3
    # Open in the source: masks (here 40 % of 20 x 7 x 7 cells), batch, rate and epochs.
    config.train.epochs = 300
    return configured(config, mode)
