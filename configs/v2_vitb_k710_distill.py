r"""VideoMAE V2 distillation of ViT-g into ViT-B/16 on Kinetics-710.

Source: arXiv:2303.16727, appendix; no code was released. What it leaves open are fields of
`config.distill`.

Run:    python -m vmae_jax.main --config=configs/v2_vitb_k710_distill.py \
            --config.data.manifest=train.csv --config.init_from=runs/v2_vitb_k710_ft \
            --config.teacher.weights=runs/v2_vitg_k710_ft --workdir=runs/v2_vitb_k710_distill
Expect: paper: top-1 81.5 (K710), 86.6 (K400), 85.9 (K600) (7x3 views on K400 and K600).
        Ours: not run.
"""

from vmae_jax.config import configured, distill_defaults, stack
from vmae_jax.variants import VIT_VARIANTS


def get_config(mode=""):
    config = distill_defaults()
    config.model.encoder = stack(VIT_VARIANTS["B"])
    config.model.encoder.drop_path = 0.1
    config.data.published_classes = 710
    config.data.published_videos = 658_340
    config.data.views = (7, 3)
    config.optim.base_lr = 1e-3
    config.optim.clip_norm = 1.0
    config.train.epochs = 100
    config.train.batch_videos = 1024
    config.mesh.fsdp = 16
    return configured(config, mode)
