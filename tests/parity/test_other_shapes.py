"""The golden runner on configurations that no kept case has, against a slow NumPy twin.

Each builds a case folder in the golden format: outputs from the twin, and the derivative of its
loss along a random direction in place of gradients.
"""

import json

import numpy as np
import pytest
import twin
import videomae_cases
from golden import Case, Comparison
from safetensors.numpy import save_file

PRETRAIN = {
    "encoder_embed_dim": 12,
    "encoder_depth": 2,
    "encoder_num_heads": 3,
    "decoder_embed_dim": 8,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "qk_scale": None,
    "init_values": 0.0,
    "norm_layer_eps": 1e-6,
    "normlize_target": True,
}
FINETUNE = {
    "embed_dim": 12,
    "depth": 2,
    "num_heads": 3,
    "num_classes": 5,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "init_values": 0.0,
    "use_mean_pooling": True,
    "norm_layer_eps": 1e-6,
}


@pytest.mark.parametrize(
    ("clip", "tubelet", "changes"),
    [
        pytest.param((4, 8, 12), (2, 4, 4), {"img_size": [8, 12]}, id="not-square"),
        pytest.param((6, 6, 10), (3, 3, 5), {"decoder_embed_dim": 7}, id="tubelet-3x3x5-odd-width"),
        pytest.param((4, 8, 8), (1, 4, 4), {"qkv_bias": False, "init_values": 0.1}, id="tubelet-1"),
        pytest.param((4, 8, 8), (4, 4, 2), {"qk_scale": 0.7, "mlp_ratio": 2.3}, id="qk-scale"),
        pytest.param((4, 8, 8), (2, 4, 4), {"encoder_num_heads": 5}, id="heads-do-not-divide"),
        pytest.param(
            (4, 8, 8),
            (2, 4, 4),
            {"cos_attn": True, "norm_layer_eps": 1e-3, "normlize_target": False},
            id="cosine-other-eps",
        ),
        pytest.param((4, 8, 8), (2, 4, 4), {"channels": 1}, id="one-channel-input"),
    ],
)
def test_pretraining_equals_twin(clip, tubelet, changes, tmp_path):
    config = PRETRAIN | changes
    channels = config.pop("channels", 3)
    config["decoder_num_classes"] = int(np.prod(tubelet)) * 3
    rng = np.random.default_rng(1)
    weights = _weights(twin.pretrain_shapes(config, tubelet, channels), rng)
    num_tokens = int(np.prod([a // b for a, b in zip(clip, tubelet, strict=True)]))
    inputs = {
        "clip": rng.normal(size=(2, channels, *clip)).astype(np.float32),
        "mask": _masks(rng, num_tokens, num_tokens * 3 // 4),
        "decode_mask": _masks(rng, num_tokens, num_tokens // 2),
    }
    names = ("clip", "mask", "decode_mask")

    def run(weights):
        return twin.pretrain(weights, *(inputs[name] for name in names), config)

    case = _case(tmp_path, "pretrain", config, weights, inputs, run(weights))
    _check(case, videomae_cases.pretrain, run, "loss", rng)


@pytest.mark.parametrize(
    ("clip", "tubelet", "changes"),
    [
        pytest.param((4, 8, 12), (4, 4, 4), {}, id="not-square-tubelet-4"),
        pytest.param(
            (4, 8, 8), (2, 4, 4), {"channels": 2, "use_mean_pooling": False}, id="2-channels"
        ),
        pytest.param((4, 8, 8), (2, 4, 4), {"use_learnable_pos_emb": True}, id="learned-positions"),
        pytest.param((4, 8, 8), (2, 4, 4), {"qkv_bias": False, "num_heads": 5}, id="no-bias"),
        pytest.param((4, 8, 8), (2, 8, 4), {"num_classes": 0, "init_values": 0.3}, id="no-head"),
    ],
)
def test_classifier_equals_twin(clip, tubelet, changes, tmp_path):
    config = FINETUNE | changes
    channels = config.pop("channels", 3)
    rng = np.random.default_rng(2)
    num_tokens = int(np.prod([a // b for a, b in zip(clip, tubelet, strict=True)]))
    weights = _weights(twin.finetune_shapes(config, tubelet, channels, num_tokens), rng)
    classes = config["num_classes"] or config["embed_dim"]
    inputs = {
        "clip": rng.normal(size=(2, channels, *clip)).astype(np.float32),
        "labels": rng.integers(classes, size=2),
        "soft_labels": rng.dirichlet(np.ones(classes), size=2).astype(np.float32),
    }
    names = ("clip", "labels", "soft_labels")

    def run(weights):
        return twin.finetune(weights, *(inputs[name] for name in names), config)

    case = _case(tmp_path, "finetune", config, weights, inputs, run(weights))
    # The released model adds a learned table without a gradient.
    _check(case, videomae_cases.finetune, run, "loss_soft", rng, without_gradient=("pos_embed",))


def test_a_wrong_output_is_found(tmp_path):
    config = FINETUNE
    rng = np.random.default_rng(3)
    weights = _weights(twin.finetune_shapes(config, (2, 4, 4), 3, 4), rng)
    inputs = {
        "clip": rng.normal(size=(1, 3, 2, 8, 8)).astype(np.float32),
        "labels": np.array([1]),
        "soft_labels": np.eye(5, dtype=np.float32)[:1],
    }
    outputs = twin.finetune(weights, *inputs.values(), config)
    outputs["logits"] = outputs["logits"] + 1e-3
    outputs["attention_map"] = np.zeros(3)
    case = _case(tmp_path, "finetune", config, weights, inputs, outputs)
    result = Comparison(case)
    videomae_cases.finetune(case, result)
    assert len(result.problems) == 2
    assert "outputs:logits" in result.complaint()
    assert "nothing computes 'attention_map'" in result.complaint()


def _weights(shapes, rng):
    """Norm weights about 1, all others about 0; some attention scales beyond the clamp."""
    weights = {}
    for name, shape in shapes.items():
        draw = rng.normal(size=shape)
        if "norm" in name and name.endswith("weight"):
            draw = 1 + 0.2 * draw
        elif name.endswith(".scale"):
            draw = np.where(np.arange(shape[0]) % 2, 5.0, 2.0)[:, None, None]
        else:
            draw = 0.3 * draw
        weights[name] = draw.astype(np.float32)
    return weights


def _masks(rng, num_tokens, count):
    return np.stack([rng.permutation(num_tokens) < count for _ in range(2)])


def _case(folder, stage, config, weights, inputs, outputs):
    outputs = {
        name: np.asarray(value, bool if name == "loss_mask" else np.float32)
        for name, value in outputs.items()
    }
    for name, arrays in {
        "weights": weights,
        "inputs": inputs,
        "outputs": outputs,
        "grads": {},
    }.items():
        save_file(arrays, folder / f"{name}.safetensors")
    meta = {"case": "twin", "system": "videomae", "stage": stage, "config": config}
    (folder / "meta.json").write_text(json.dumps(meta))
    return Case.read(folder)


def _check(case, runner, run, loss, rng, without_gradient=()):
    result = DirectionalComparison(case)
    runner(case, result)
    assert not result.problems, result.complaint()
    # Central difference in float64 along a direction that moves every parameter.
    direction = {name: rng.normal(size=array.shape) for name, array in result.grads.items()}
    for name in without_gradient:
        if name in direction:
            assert not np.any(result.grads[name])
            direction[name][:] = 0
    moved = [
        {
            name: w.astype(np.float64) + step * direction[name]
            for name, w in case.arrays("weights").items()
        }
        for step in (1e-5, -1e-5)
    ]
    wanted = (run(moved[0])[loss] - run(moved[1])[loss]) / 2e-5
    ours = sum(np.vdot(direction[name], grad) for name, grad in result.grads.items())
    size = np.sqrt(sum(np.square(grad).sum() for grad in result.grads.values()))
    assert abs(ours - wanted) < 1e-4 * size


class DirectionalComparison(Comparison):
    """Keeps the gradients that a runner hands over."""

    def norms(self, ours):
        self.grads = ours
