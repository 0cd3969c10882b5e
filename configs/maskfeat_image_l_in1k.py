r"""MaskFeat pretraining on images, ViT-L/16 on ImageNet-1K.

Source: arXiv:2112.09133; values from the released config, epochs of the released weights.

Images are clips of one frame: a list of `folder number 1` with the pictures named as below
(docs/data.md), or any videos, of which one frame each is drawn.

Run:    python -m vmae_jax.main --config=configs/maskfeat_image_l_in1k.py \
            --config.data.manifest=train.txt --workdir=runs/maskfeat_image_l_in1k
Expect: released, after fine-tuning on images, which is not in this repository: top-1 85.7.
        Ours: not run.
"""

from vmae_jax.config import configured, maskfeat_defaults, stack
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = maskfeat_defaults("vit")
    config.model.encoder = stack(VIT_VARIANTS["L"])
    # train/n01440764/n01440764_10026.JPEG is the line "n01440764 10026 1".
    config.data.frame_templates = (("", "{folder}_{number}.JPEG"),)
    # The source resizes by cubic interpolation, which is not here: bilinear.
    # The released config says 300 epochs, the released weights and their table 1600.
    config.train.epochs = 1600
    return configured(config, mode)
