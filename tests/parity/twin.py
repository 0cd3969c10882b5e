"""A slow NumPy twin of the released VideoMAE networks: float64, loops, published names.

Written from the reference sheets, not from our modules: it shares no code with the package. It
reaches configurations for which no golden case is kept.
"""

import itertools
import math

import numpy as np


def pretrain(weights, clip, mask, decode_mask, config):
    """Outputs of a pretraining step, under the names of the golden cases."""
    batch = clip.shape[0]
    patches = cut(clip, weights["encoder.patch_embed.proj.weight"].shape[2:])
    width = weights["encoder.patch_embed.proj.weight"].shape[0]
    tokens = np.stack(
        [
            [embed(weights, "encoder.", patches[b][n]) for n in range(mask.shape[1])]
            for b in range(batch)
        ]
    )
    tokens = tokens + table(mask.shape[1], width)
    x = np.stack([tokens[b][~mask[b]] for b in range(batch)])
    x = blocks(weights, "encoder.", x, config, config["encoder_num_heads"])
    latent = norm(weights, "encoder.norm", x, config)
    visible = latent @ weights["encoder_to_decoder.weight"].T
    positions = table(mask.shape[1], visible.shape[-1])
    full = []
    for b in range(batch):
        seen = visible[b] + positions[~mask[b]]
        asked = weights["mask_token"][0] + positions[~decode_mask[b]]
        full.append(np.concatenate([seen, asked]))
    full = np.stack(full)
    y = blocks(weights, "decoder.", full, config, config["decoder_num_heads"])
    y = norm(weights, "decoder.norm", y[:, visible.shape[1] :], config)
    pred = y @ weights["decoder.head.weight"].T + weights["decoder.head.bias"]

    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = clip * std[:, None, None, None] + mean[:, None, None, None]
    cubes = cut(pixels, weights["encoder.patch_embed.proj.weight"].shape[2:])
    target = []
    for b in range(batch):
        for n in np.flatnonzero(~decode_mask[b]):
            cube = np.moveaxis(cubes[b][n], 0, -1)  # frame, row, column, channel
            if config["normlize_target"]:
                flat = cube.reshape(-1, cube.shape[-1])
                cube = (cube - flat.mean(0)) / (flat.std(0, ddof=1) + 1e-6)
            target.append(cube.reshape(-1))
    target = np.stack(target).reshape(pred.shape)
    loss_mask = np.stack([mask[b][~decode_mask[b]] for b in range(batch)])
    error = ((pred - target) ** 2).mean(-1)
    return {
        "encoder_latent": latent,
        "decoder_input": full,
        "pred": pred,
        "target": target,
        "loss_mask": loss_mask,
        "loss": (error * loss_mask).sum() / loss_mask.sum(),
    }


def finetune(weights, clip, labels, soft_labels, config):
    """Outputs of a fine-tuning step, under the names of the golden cases."""
    patches = cut(clip, weights["patch_embed.proj.weight"].shape[2:])
    x = np.stack([[embed(weights, "", patch) for patch in clip] for clip in patches])
    if config.get("use_learnable_pos_emb"):
        x = x + weights["pos_embed"]
    else:
        x = x + table(x.shape[1], x.shape[2])
    x = blocks(weights, "", x, config, config["num_heads"])
    if config["use_mean_pooling"]:
        pooled = norm(weights, "fc_norm", x.mean(1), config)
    else:
        pooled = norm(weights, "norm", x, config)[:, 0]
    logits = pooled
    if config["num_classes"]:
        logits = pooled @ weights["head.weight"].T + weights["head.bias"]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -log_probs[np.arange(len(labels)), labels]
    return {
        "pooled": pooled,
        "logits": logits,
        "loss_ce": nll.mean(),
        "loss_ls": (0.9 * nll - 0.1 * log_probs.mean(-1)).mean(),
        "loss_soft": -(soft_labels * log_probs).sum(-1).mean(),
    }


def cut(clip, tubelet):
    """[B, C, T, H, W] -> B lists of cubes [C, t, h, w]: time slowest, then rows, then columns."""
    steps = [range(0, size, side) for size, side in zip(clip.shape[2:], tubelet, strict=True)]
    p0, p1, p2 = tubelet
    return [
        [one[:, t : t + p0, y : y + p1, x : x + p2] for t, y, x in itertools.product(*steps)]
        for one in clip
    ]


def embed(weights, prefix, cube):
    kernel = weights[f"{prefix}patch_embed.proj.weight"]
    return np.tensordot(kernel, cube, 4) + weights[f"{prefix}patch_embed.proj.bias"]


def table(num_tokens, width):
    out = np.zeros((num_tokens, width))
    for n, j in itertools.product(range(num_tokens), range(width)):
        angle = n / 10000 ** (2 * (j // 2) / width)
        out[n, j] = math.sin(angle) if j % 2 == 0 else math.cos(angle)
    return out


def norm(weights, name, x, config):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config["norm_layer_eps"])
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def blocks(weights, prefix, x, config, heads):
    for i in itertools.count():
        name = f"{prefix}blocks.{i}"
        if f"{name}.norm1.weight" not in weights:
            return x
        gamma_1 = weights.get(f"{name}.gamma_1", 1.0)
        gamma_2 = weights.get(f"{name}.gamma_2", 1.0)
        x = x + gamma_1 * attend(
            weights, name, norm(weights, f"{name}.norm1", x, config), config, heads
        )
        y = norm(weights, f"{name}.norm2", x, config)
        y = gelu(y @ weights[f"{name}.mlp.fc1.weight"].T + weights[f"{name}.mlp.fc1.bias"])
        x = x + gamma_2 * (
            y @ weights[f"{name}.mlp.fc2.weight"].T + weights[f"{name}.mlp.fc2.bias"]
        )


def attend(weights, name, x, config, heads):
    size = x.shape[-1] // heads
    rows = weights[f"{name}.attn.qkv.weight"].reshape(3, heads, size, x.shape[-1])
    zero = np.zeros(heads * size)
    q_bias = weights.get(f"{name}.attn.q_bias", zero).reshape(heads, size)
    v_bias = weights.get(f"{name}.attn.v_bias", zero).reshape(heads, size)
    out = np.zeros((*x.shape[:2], heads, size))
    for b, h in itertools.product(range(x.shape[0]), range(heads)):
        q = x[b] @ rows[0, h].T + q_bias[h]
        k = x[b] @ rows[1, h].T
        v = x[b] @ rows[2, h].T + v_bias[h]
        if config.get("cos_attn"):
            q = q / np.linalg.norm(q, axis=-1, keepdims=True)
            k = k / np.linalg.norm(k, axis=-1, keepdims=True)
            scale = math.exp(min(weights[f"{name}.attn.scale"][h, 0, 0], 4.6052))
        else:
            scale = config.get("qk_scale") or size**-0.5
        scores = np.exp(scale * (q @ k.T))
        out[b, :, h] = scores / scores.sum(-1, keepdims=True) @ v
    flat = out.reshape(*x.shape[:2], heads * size)
    return flat @ weights[f"{name}.attn.proj.weight"].T + weights[f"{name}.attn.proj.bias"]


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def pretrain_shapes(config, tubelet, channels):
    """Published names and shapes of a pretraining model."""
    width, decoder_width = config["encoder_embed_dim"], config["decoder_embed_dim"]
    encoder = block_shapes(
        "encoder.", width, config["encoder_depth"], config["encoder_num_heads"], config
    )
    decoder = block_shapes(
        "decoder.", decoder_width, config["decoder_depth"], config["decoder_num_heads"], config
    )
    return {
        "mask_token": (1, 1, decoder_width),
        "encoder.patch_embed.proj.weight": (width, channels, *tubelet),
        "encoder.patch_embed.proj.bias": (width,),
        **encoder,
        "encoder.norm.weight": (width,),
        "encoder.norm.bias": (width,),
        "encoder_to_decoder.weight": (decoder_width, width),
        **decoder,
        "decoder.norm.weight": (decoder_width,),
        "decoder.norm.bias": (decoder_width,),
        "decoder.head.weight": (config["decoder_num_classes"], decoder_width),
        "decoder.head.bias": (config["decoder_num_classes"],),
    }


def finetune_shapes(config, tubelet, channels, num_tokens):
    """Published names and shapes of a fine-tuning model."""
    width, classes = config["embed_dim"], config["num_classes"]
    final = "fc_norm" if config["use_mean_pooling"] else "norm"
    shapes = {
        "patch_embed.proj.weight": (width, channels, *tubelet),
        "patch_embed.proj.bias": (width,),
        **block_shapes("", width, config["depth"], config["num_heads"], config),
        f"{final}.weight": (width,),
        f"{final}.bias": (width,),
    }
    if config.get("use_learnable_pos_emb"):
        shapes["pos_embed"] = (1, num_tokens, width)
    if classes:
        shapes |= {"head.weight": (classes, width), "head.bias": (classes,)}
    return shapes


def block_shapes(prefix, width, depth, heads, config):
    inner, hidden = heads * (width // heads), int(width * config["mlp_ratio"])
    shapes = {}
    for i in range(depth):
        name = f"{prefix}blocks.{i}"
        shapes |= {
            f"{name}.norm1.weight": (width,),
            f"{name}.norm1.bias": (width,),
            f"{name}.attn.qkv.weight": (3 * inner, width),
            f"{name}.attn.proj.weight": (width, inner),
            f"{name}.attn.proj.bias": (width,),
            f"{name}.norm2.weight": (width,),
            f"{name}.norm2.bias": (width,),
            f"{name}.mlp.fc1.weight": (hidden, width),
            f"{name}.mlp.fc1.bias": (hidden,),
            f"{name}.mlp.fc2.weight": (width, hidden),
            f"{name}.mlp.fc2.bias": (width,),
        }
        if config["qkv_bias"]:
            shapes |= {f"{name}.attn.q_bias": (inner,), f"{name}.attn.v_bias": (inner,)}
        if config.get("cos_attn"):
            shapes[f"{name}.attn.scale"] = (heads, 1, 1)
        if config["init_values"]:
            shapes |= {f"{name}.gamma_1": (width,), f"{name}.gamma_2": (width,)}
    return shapes
