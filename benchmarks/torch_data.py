r"""A PyTorch DataLoader that prepares clips as the released loaders do, beside our pipeline.

What those do: decord reads the frames of a video, one thread; each of R multi-scale crops is cut
and resized by Pillow, frame by frame; the clip becomes a float32 tensor, is normalised on the host
and travels as float. Both programs decode the same videos, R crops each, with the same sampling, in
turn, several times, in one run:

    python benchmarks/torch_data.py --manifest=train.csv --repeats=4 --canvas=160x284

Figures are processor time of the host per training clip, workers included; see
`vmae_jax.tools.bench data`. Needs the extra `bench` (torch) and decord, or `--decoder=pyav`: then a
video is decoded up to the last wanted frame and all its frames become RGB.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from vmae_jax.data.pipeline import PipelineOptions
from vmae_jax.data.sampling import dense_indices
from vmae_jax.data.transforms import multi_scale_crop_box
from vmae_jax.ops.preprocess import IMAGENET_MEAN, IMAGENET_STD
from vmae_jax.tools import bench

FRAMES, STRIDE, SIZE = 16, 4, 224


class Clips(torch.utils.data.Dataset):
    """R normalised clips of each video of a list: float32 [R, C, T, H, W]."""

    def __init__(self, paths: Sequence[str], *, repeats: int, decoder: str):
        self._paths, self._repeats = paths, repeats
        self._decode = {"decord": _decord_frames, "pyav": _pyav_frames}[decoder]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        rng = np.random.default_rng(i)
        pictures = [Image.fromarray(frame) for frame in self._decode(self._paths[i], rng)]
        return torch.stack([_clip(pictures, rng) for _ in range(self._repeats)])


def _decord_frames(path: str, rng: np.random.Generator) -> np.ndarray:
    import decord

    video = decord.VideoReader(path, num_threads=1, ctx=decord.cpu(0))
    chosen = dense_indices(len(video), frames=FRAMES, stride=STRIDE, rng=rng)
    return video.get_batch(chosen.tolist()).asnumpy()


def _pyav_frames(path: str, rng: np.random.Generator) -> list[np.ndarray]:
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        chosen = dense_indices(stream.frames, frames=FRAMES, stride=STRIDE, rng=rng)
        frames = []
        for frame in container.decode(stream):
            frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) > chosen.max():
                break
    return [frames[min(i, len(frames) - 1)] for i in chosen.tolist()]


def _clip(pictures: Sequence[Image.Image], rng: np.random.Generator) -> torch.Tensor:
    width, height = pictures[0].size
    box = multi_scale_crop_box(height, width, size=(SIZE, SIZE), rng=rng)
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    crops = [p.crop(corners).resize((SIZE, SIZE), Image.Resampling.BILINEAR) for p in pictures]
    clip = torch.from_numpy(np.stack(crops)).permute(3, 0, 1, 2).contiguous().float().div_(255)
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return clip.sub_(mean).div_(std)


def measure_torch(
    paths: Sequence[str], *, repeats: int, decoder: str, batch_videos: int, workers: int
) -> dict[str, float]:
    """Processor milliseconds per clip and clips per second of a DataLoader once it is running."""
    loader = torch.utils.data.DataLoader(
        Clips(paths, repeats=repeats, decoder=decoder),
        batch_size=batch_videos,
        num_workers=workers,
        drop_last=True,
        multiprocessing_context="spawn" if workers else None,
    )
    batches: Iterator[torch.Tensor] = iter(loader)
    for _ in range(2):
        next(batches)
    counted = len(loader) - 4  # while workers still have something to do
    begin, cpu_begin = time.perf_counter(), bench.cpu_seconds()
    for _ in range(counted):
        next(batches)
    seconds, cpu_s = time.perf_counter() - begin, bench.cpu_seconds() - cpu_begin
    clips = counted * batch_videos * repeats
    return {"host_ms_per_clip": 1e3 * cpu_s / clips, "clips_per_s": clips / seconds}


def measure_ours(options: PipelineOptions, *, videos: int, batch_videos: int) -> dict[str, float]:
    """The same of our pipeline."""
    row = bench.bench_data(options, videos=videos, batch_videos=batch_videos)
    return {
        "host_ms_per_clip": row["host_ms_per_clip"],
        "clips_per_s": row["pipeline_clips_per_s"],
    }


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Measures both in turn; medians, and how many times more clips a core of ours makes."""
    options = PipelineOptions(
        manifest=args.manifest,
        root=args.root,
        frames=FRAMES,
        stride=STRIDE,
        size=(SIZE, SIZE),
        repeats=args.repeats,
        resize="device" if args.canvas else "host",
        canvas=args.canvas or (SIZE, SIZE),
        workers=args.workers,
    )
    source = options.open_source()
    paths = [source.where(i) for i in range(len(source))]
    theirs, ours = [], []
    for _ in range(args.rounds):
        theirs.append(
            measure_torch(
                paths,
                repeats=args.repeats,
                decoder=args.decoder,
                batch_videos=args.batch,
                workers=args.workers,
            )
        )
        ours.append(measure_ours(options, videos=len(paths), batch_videos=args.batch))
    torch_ms, our_ms = (
        float(np.median([row["host_ms_per_clip"] for row in rows])) for rows in (theirs, ours)
    )
    return {
        "torch": theirs,
        "ours": ours,
        "torch_host_ms_per_clip": torch_ms,
        "our_host_ms_per_clip": our_ms,
        "clips_per_core_ratio": torch_ms / our_ms,
    }


def main() -> None:
    """Prints the figures; with --json, also appends them as one line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--manifest", required=True, help="list of video files")
    parser.add_argument("--root", default="", help="folder of its paths; default: its own")
    parser.add_argument("--decoder", choices=["decord", "pyav"], default="decord")
    parser.add_argument("--repeats", type=int, default=4, help="crops of each video")
    parser.add_argument(
        "--canvas", type=bench.height_by_width, metavar="HxW", help="default: crops on the host"
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8, help="videos in a batch")
    parser.add_argument("--rounds", type=int, default=3, help="of both programs")
    parser.add_argument("--json", help="file to append to")
    args = parser.parse_args()
    row = {"bench": "data beside torch", **vars(args), **compare(args)}
    facts = {**bench.provenance(), "torch": torch.__version__, "decoder": args.decoder}
    print(bench.table({**row, "cpu": facts["cpu"], "commit": facts["commit"]}))
    if args.json:
        with pathlib.Path(args.json).open("a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "machine": facts}) + "\n")


if __name__ == "__main__":
    main()
