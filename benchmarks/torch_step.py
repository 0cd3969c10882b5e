r"""The training step of a masked video autoencoder in PyTorch, for comparison with ours.

Times transformers' VideoMAEForPreTraining with AdamW on random clips, at the sizes of a config of
ours without a decoder mask, and prints the same figures as `vmae_jax.tools.bench step`:

    python benchmarks/torch_step.py --variant=B --clips=2 --dtype=float32
    python -m vmae_jax.tools.bench step --config=configs/videomae_b_k400.py --clips=2 \
        --dtype=float32

Needs the extra `bench` (torch, transformers). Nothing is downloaded: the weights are random.
"""

import argparse
import json
import os
import pathlib
import time

import numpy as np
import torch
import transformers
from transformers import VideoMAEConfig, VideoMAEForPreTraining

from vmae_jax.models.flops import mae_macs, training_flops
from vmae_jax.ops.masking import mask_counts
from vmae_jax.variants import VIDEOMAE_DECODERS, VIT_VARIANTS

FRAMES, SIZE, PATCH, TUBELET, MASK_RATIO = 16, 224, 16, 2, 0.9
GRID = (FRAMES // TUBELET, SIZE // PATCH, SIZE // PATCH)


def make_model(variant: str) -> VideoMAEForPreTraining:
    """The released architecture at one of its sizes, with random weights."""
    encoder, decoder = VIT_VARIANTS[variant], VIDEOMAE_DECODERS[variant]
    return VideoMAEForPreTraining(
        VideoMAEConfig(
            image_size=SIZE,
            patch_size=PATCH,
            num_frames=FRAMES,
            tubelet_size=TUBELET,
            hidden_size=encoder.width,
            num_hidden_layers=encoder.depth,
            num_attention_heads=encoder.heads,
            intermediate_size=int(encoder.width * encoder.mlp_ratio),
            decoder_hidden_size=decoder.width,
            decoder_num_hidden_layers=decoder.depth,
            decoder_num_attention_heads=decoder.heads,
            decoder_intermediate_size=int(decoder.width * decoder.mlp_ratio),
            norm_pix_loss=True,
            attn_implementation="sdpa",
        )
    )


def tube_masks(clips: int, rng: np.random.Generator) -> torch.Tensor:
    """bool [clips, N], True = hidden, as the released loader draws them."""
    t, h, w = GRID
    frame = np.arange(h * w) < int(MASK_RATIO * h * w)
    masks = [np.tile(rng.permutation(frame), t) for _ in range(clips)]
    return torch.from_numpy(np.stack(masks))


def main() -> None:
    """Entry point of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--variant", choices=sorted(VIDEOMAE_DECODERS), default="B")
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--json", help="append the figures, as one line, to this file")
    args = parser.parse_args()

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = make_model(args.variant).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    rng = np.random.default_rng(0)
    video = torch.from_numpy(
        rng.standard_normal((args.clips, FRAMES, 3, SIZE, SIZE), dtype=np.float32)
    ).to(device)
    masks = tube_masks(args.clips, rng).to(device)
    forward = torch.compile(model) if args.compile else model

    def step() -> float:
        begin = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bfloat16"):
            loss = forward(video, bool_masked_pos=masks).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # waits for the device
        return time.perf_counter() - begin

    seconds = [step() for _ in range(args.warmup + args.steps)][args.warmup :]
    counts = mask_counts(GRID, encoder=("tube", MASK_RATIO))
    macs = mae_macs(
        VIT_VARIANTS[args.variant],
        VIDEOMAE_DECODERS[args.variant],
        visible=counts.visible,
        targets=counts.targets,
        values=3 * TUBELET * PATCH * PATCH,
    )
    median = float(np.median(seconds))
    on_gpu = device.type == "cuda"
    row = {
        "bench": "torch step",
        "config": f"VideoMAE ViT-{args.variant}",
        "clips": args.clips,
        "dtype": args.dtype,
        "compile": args.compile,
        "step_s": median,
        "step_s_p95": float(np.percentile(seconds, 95)),
        "clips_per_s_per_chip": args.clips / median,
        "tflops_per_chip": args.clips / median * training_flops(macs) / 1e12,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        "device": torch.cuda.get_device_name() if on_gpu else f"cpu, {os.cpu_count()} cores",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    print("\n".join(f"{name:<21} {value}" for name, value in row.items()))
    if args.json:
        with pathlib.Path(args.json).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
