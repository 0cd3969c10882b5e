"""Parameter counts and multiply-accumulates against the published figures; nothing is allocated."""

import dataclasses

import pytest

from vmae_jax.models import flops
from vmae_jax.models.functional import functional
from vmae_jax.models.layers import StackOptions
from vmae_jax.models.mae import MaskedAutoencoder
from vmae_jax.models.vit import Classifier, patch_values
from vmae_jax.variants import MAE_ST_DECODER, VIDEOMAE_DECODERS, VIDEOMAE_V2_DECODERS, VIT_VARIANTS

PATCH_16, PATCH_14 = patch_values((2, 16, 16), 3), patch_values((2, 14, 14), 3)


def pretrain_params(encoder, decoder, values):
    options = StackOptions()
    return functional(
        lambda rngs: MaskedAutoencoder(
            encoder, decoder, values=values, encoder_options=options, rngs=rngs
        )
    ).num_params


@pytest.mark.parametrize(
    ("variant", "depth", "count"),
    [  # reference/videomae.md 1.8
        ("S", 4, 24_029_376),
        ("B", 4, 94_210_944),
        ("L", 4, 317_782_016),
        ("H", 4, 653_104_256),
        ("S", 12, 27_586_752),
        ("B", 12, 108_403_584),
        ("L", 12, 342_996_992),
        ("H", 12, 692_487_296),
    ],
)
def test_videomae_has_the_published_parameter_count(variant, depth, count):
    decoder = dataclasses.replace(VIDEOMAE_DECODERS[variant], depth=depth)
    assert pretrain_params(VIT_VARIANTS[variant], decoder, PATCH_16) == count


@pytest.mark.parametrize(
    ("variant", "values", "count"),
    [  # reference/videomae_v2.md 1.4
        ("B", PATCH_16, 94_210_944),
        ("L", PATCH_16, 317_782_016),
        ("H", PATCH_16, 645_659_392),
        ("g", PATCH_14, 1_026_306_560),
    ],
)
def test_videomae_v2_has_the_published_parameter_count(variant, values, count):
    assert pretrain_params(VIT_VARIANTS[variant], VIDEOMAE_V2_DECODERS[variant], values) == count


@pytest.mark.parametrize(
    ("variant", "values", "classes", "count"),
    [
        ("S", PATCH_16, 400, 22_033_936),
        ("B", PATCH_16, 400, 86_534_800),
        ("L", PATCH_16, 174, 304_039_086),
        ("H", PATCH_16, 710, 632_516_550),
        ("g", PATCH_14, 710, 1_012_611_142),
        ("g", PATCH_14, 174, 1_011_855_918),
    ],
)
def test_classifiers_have_the_published_parameter_count(variant, values, classes, count):
    options = StackOptions(kernel_init="normal")
    net = functional(
        lambda rngs: Classifier(
            VIT_VARIANTS[variant], options, values=values, num_classes=classes, rngs=rngs
        )
    )
    assert net.num_params == count


def macs(variant, decoder, *, tokens, visible, targets, values):
    return flops.mae_macs(
        VIT_VARIANTS[variant],
        decoder,
        visible=visible,
        targets=targets,
        values=values,
        embedded=tokens,
    )


B = {"decoder": VIDEOMAE_V2_DECODERS["B"], "tokens": 1568, "visible": 160, "values": PATCH_16}
G = {"decoder": VIDEOMAE_V2_DECODERS["g"], "tokens": 2048, "visible": 208, "values": PATCH_14}


@pytest.mark.parametrize(
    ("variant", "size", "targets", "published", "counted"),
    [  # reference/videomae_v2.md 6.1 and 6.2
        ("B", B, 1408, 35.48, 35.44),
        ("B", B, 1176, 31.63, 31.59),
        ("B", B, 784, 25.87, 25.84),
        ("B", B, 392, 21.06, 21.03),
        ("g", G, 1840, 263.93, 263.96),
        ("g", G, 1024, 241.61, 241.61),
    ],
)
def test_forward_macs_are_the_published_ones(variant, size, targets, published, counted):
    total = sum(macs(variant, targets=targets, **size).values()) / 1e9
    assert total == pytest.approx(published, rel=0.01)
    assert total == pytest.approx(counted, abs=0.005)


def test_the_parts_of_vit_b_are_the_counted_ones():
    parts = macs("B", targets=1408, **B)  # reference/videomae.md 1.8
    assert parts["patch_embed"] / 1e9 == pytest.approx(1.85, abs=0.005)
    assert parts["encoder"] / 1e9 == pytest.approx(14.06, abs=0.05)
    decoder = sum(parts.values()) - parts["patch_embed"] - parts["encoder"]
    assert decoder / 1e9 == pytest.approx(19.5, abs=0.1)


@pytest.mark.parametrize(("variant", "published"), [("B", 180.3), ("L", 596.8), ("H", 1191)])
def test_classifier_macs_are_the_published_ones(variant, published):
    parts = flops.classifier_macs(
        VIT_VARIANTS[variant], tokens=1568, values=PATCH_16, num_classes=400
    )
    assert sum(parts.values()) / 1e9 == pytest.approx(published, rel=0.002)


@pytest.mark.parametrize(("masks_in_encoder", "counted"), [(False, 81.5), (True, 628)])
def test_mae_st_macs_are_the_counted_ones(masks_in_encoder, counted):
    # reference/mae_st.md 1.8, counting as the paper does: it says 81.0 and 627.5
    parts = flops.mae_macs(
        VIT_VARIANTS["L"],
        MAE_ST_DECODER,
        visible=156,
        targets=1412,
        values=PATCH_16,
        target_values=PATCH_16 // 2,
        embedded=1568,
        class_tokens=1,
        decoder_class_tokens=1,
        masks_in_encoder=masks_in_encoder,
    )
    assert sum(parts.values()) / 1e9 == pytest.approx(counted, rel=0.001)


def test_training_flops_follow_the_rule():
    # 2 FLOPs a MAC, three passes, but no input gradient for the embedding
    assert flops.training_flops({"patch_embed": 10, "encoder": 100}) == 2 * (3 * 110 - 10)
    # with the papers' habit of embedding all tokens: 209 and 151 GFLOP a clip for ViT-B
    assert flops.training_flops(macs("B", targets=1408, **B)) / 1e9 == pytest.approx(209, abs=0.5)
    assert flops.training_flops(macs("B", targets=784, **B)) / 1e9 == pytest.approx(151, abs=0.5)


def test_tokens_that_are_never_embedded_are_not_counted():
    size = {**B, "targets": 784}
    parts = macs("B", **{**size, "tokens": None})
    assert parts["patch_embed"] == 160 * 1536 * 768
