r"""The training step of a masked video autoencoder in PyTorch, for comparison with ours.

Times the blocks of transformers' VideoMAEForPreTraining with AdamW on random clips, at the sizes of
a config of ours, and prints the same figures as `vmae_jax.tools.bench step`:

    python benchmarks/torch_step.py --variant=B --clips=2 --dtype=float32
    python -m vmae_jax.tools.bench step --config=configs/videomae_b_k400.py --clips=2 \
        --dtype=float32

    python benchmarks/torch_step.py --system=videomae_v2 --variant=g --clips=16 --dtype=bfloat16 \
        --compile --checkpoint
    python -m vmae_jax.tools.bench step --config=configs/v2_vitg.py --clips=16 --resize=host

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
from vmae_jax.ops.masking import mask_counts, running_cell_maps
from vmae_jax.variants import VIDEOMAE_DECODERS, VIDEOMAE_V2_DECODERS, VIT_VARIANTS, StackSpec

FRAMES, SIZE, TUBELET, MASK_RATIO, DECODER_RATIO = 16, 224, 2, 0.9, 0.5
DECODERS = {"videomae": VIDEOMAE_DECODERS, "videomae_v2": VIDEOMAE_V2_DECODERS}


def grid_and_patch(variant: str) -> tuple[tuple[int, int, int], int]:
    """Tokens along (time, height, width), and the side of a patch: 14 for ViT-g."""
    patch = 14 if variant == "g" else 16
    return (FRAMES // TUBELET, SIZE // patch, SIZE // patch), patch


def sizes(system: str, variant: str, *, smoke: bool) -> tuple[StackSpec, StackSpec]:
    """Encoder and decoder; `smoke` shrinks them as it does those of a config."""
    stacks = VIT_VARIANTS[variant], DECODERS[system][variant]
    if not smoke:
        return stacks
    return tuple(StackSpec(8 * s.heads, min(s.depth, 2), s.heads, s.mlp_ratio) for s in stacks)


def make_model(encoder: StackSpec, decoder: StackSpec, patch: int) -> VideoMAEForPreTraining:
    """The released architecture at one of its sizes, with random weights."""
    return VideoMAEForPreTraining(
        VideoMAEConfig(
            image_size=SIZE,
            patch_size=patch,
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
            use_mean_pooling=False,  # the encoder ends with its norm
            attn_implementation="sdpa",
        )
    )


class SingleMasking(torch.nn.Module):
    """VideoMAE: all hidden tokens are predicted."""

    def __init__(self, model: VideoMAEForPreTraining):
        super().__init__()
        self.model = model

    def forward(self, video: torch.Tensor, hidden: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return self.model(video, bool_masked_pos=hidden).loss


class DualMasking(torch.nn.Module):
    """VideoMAE V2 from the same blocks: the decoder predicts the tokens that its mask leaves."""

    def __init__(self, model: VideoMAEForPreTraining):
        super().__init__()
        self.model = model
        self.register_buffer("positions", model.position_embeddings[0].clone(), persistent=False)

    def forward(
        self, video: torch.Tensor, hidden: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """Loss of clips [B, T, 3, H, W] for masks [B, N]: True = hidden; True = predicted."""
        model, clips = self.model, video.shape[0]
        visible_idx, target_idx = _places(~hidden), _places(targets)
        tokens = _gather(model.videomae.embeddings(video, None), visible_idx)
        latent = model.videomae.layernorm(model.videomae.encoder(tokens).last_hidden_state)
        latent = model.encoder_to_decoder(latent) + self.positions[visible_idx]
        masked = model.mask_token + self.positions[target_idx]
        x = torch.cat([latent, masked.expand(clips, -1, -1)], dim=1)
        pred = model.decoder(x, target_idx.shape[1]).logits
        target = self._normalised_patches(video, target_idx)
        error = (pred.float() - target).square().mean(dim=-1)
        weight = hidden.gather(1, target_idx).float()
        return (error * weight).sum() / weight.sum()

    @torch.no_grad()
    def _normalised_patches(self, video: torch.Tensor, idx: torch.Tensor) -> torch.Tensor:
        b, _, c, height, width = video.shape
        side = self.model.config.patch_size
        x = video.reshape(b, -1, TUBELET, c, height // side, side, width // side, side)
        x = x.permute(0, 1, 4, 6, 2, 5, 7, 3).reshape(b, -1, TUBELET * side * side * c)
        x = _gather(x, idx).unflatten(-1, (-1, c))
        x = (x - x.mean(dim=2, keepdim=True)) / (x.var(dim=2, keepdim=True).sqrt() + 1e-6)
        return x.flatten(2)


def _places(mask: torch.Tensor) -> torch.Tensor:
    """Where [B, N] is True, the same count in each row: [B, K]."""
    return torch.argsort(~mask, dim=1, stable=True)[:, : int(mask[0].sum())]


def _gather(tokens: torch.Tensor, idx: torch.Tensor) -> torch.Tensor:
    return tokens.gather(1, idx[..., None].expand(-1, -1, tokens.shape[-1]))


def tube_masks(clips: int, grid: tuple[int, int, int], rng: np.random.Generator) -> torch.Tensor:
    """bool [clips, N], True = hidden, as the released loader draws them."""
    t, h, w = grid
    frame = np.arange(h * w) < int(MASK_RATIO * h * w)
    masks = [np.tile(rng.permutation(frame), t) for _ in range(clips)]
    return torch.from_numpy(np.stack(masks))


def cell_targets(clips: int, grid: tuple[int, int, int], rng: np.random.Generator) -> torch.Tensor:
    """bool [clips, N], True = predicted, for the running-cell mask of V2."""
    return torch.from_numpy(~running_cell_maps(grid, DECODER_RATIO)[rng.integers(0, 4, clips)])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--system", choices=sorted(DECODERS), default="videomae")
    parser.add_argument("--variant", choices=sorted(VIT_VARIANTS), default="B")
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--checkpoint", action="store_true", help="recompute the encoder's blocks")
    parser.add_argument("--smoke", action="store_true", help="a miniature, to try the program")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--json", help="append the figures, as one line, to this file")
    args = parser.parse_args()
    if args.variant not in DECODERS[args.system]:
        parser.error(f"{args.system} has no ViT-{args.variant}; use --system=videomae_v2")
    return args


def main() -> None:
    """Entry point of the command line."""
    args = _arguments()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    grid, patch = grid_and_patch(args.variant)
    encoder, decoder = sizes(args.system, args.variant, smoke=args.smoke)
    network = make_model(encoder, decoder, patch)
    if args.checkpoint:
        network.videomae.gradient_checkpointing_enable()
    dual = args.system == "videomae_v2"
    model = (DualMasking if dual else SingleMasking)(network).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    rng = np.random.default_rng(0)
    video = torch.from_numpy(
        rng.standard_normal((args.clips, FRAMES, 3, SIZE, SIZE), dtype=np.float32)
    ).to(device)
    hidden = tube_masks(args.clips, grid, rng).to(device)
    targets = cell_targets(args.clips, grid, rng).to(device)
    forward = torch.compile(model) if args.compile else model

    def step() -> tuple[float, float]:
        begin = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bfloat16"):
            loss = forward(video, hidden, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = loss.item()  # waits for the device
        return time.perf_counter() - begin, value

    timed = [step() for _ in range(args.warmup + args.steps)][args.warmup :]
    seconds = [time for time, _ in timed]
    masks = {"encoder": ("tube", MASK_RATIO)}
    masks |= {"decoder": ("running_cell", DECODER_RATIO)} if dual else {}
    counts = mask_counts(grid, **masks)
    macs = mae_macs(
        encoder,
        decoder,
        visible=counts.visible,
        targets=counts.targets,
        values=3 * TUBELET * patch * patch,
    )
    median = float(np.median(seconds))
    on_gpu = device.type == "cuda"
    row = {
        "bench": "torch step",
        "config": f"{args.system} ViT-{args.variant}" + (":smoke" if args.smoke else ""),
        "clips": args.clips,
        "dtype": args.dtype,
        "compile": args.compile,
        "remat": "full" if args.checkpoint else "none",
        "step_s": median,
        "step_s_p95": float(np.percentile(seconds, 95)),
        "clips_per_s_per_chip": args.clips / median,
        "tflops_per_chip": args.clips / median * training_flops(macs) / 1e12,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        "loss": timed[-1][1],
        "device": torch.cuda.get_device_name() if on_gpu else f"cpu, {os.cpu_count()} cores",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    print("\n".join(f"{name:<21} {value}" for name, value in row.items()))
    if args.json:
        with pathlib.Path(args.json).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
