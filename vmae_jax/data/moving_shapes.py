"""Draws short videos of moving shapes, labelled by how the shapes move, not by how they look.

Colours, shapes, sizes, frame rates and lengths are drawn independently of the class, so a model
that names the class has understood motion. Video `i` depends on `(seed, i)` only. Writing files is
left to `synthetic.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

CLASSES = (
    "left",
    "right",
    "up",
    "down",
    "clockwise",
    "counterclockwise",
    "grow",
    "shrink",
    "bounce",
    "orbit",
)
SIZES = ((160, 120), (128, 128), (120, 160), (192, 108))  # width, height
FRAME_RATES = (12, 24, 25, 30)
NUM_FRAMES = (32, 120)  # shortest and longest

# name -> (points, radius of the notches between them); cos(pi / points) makes a straight side.
_SHAPES = {
    "triangle": (3, 0.5),
    "square": (4, np.cos(np.pi / 4)),
    "hexagon": (6, np.cos(np.pi / 6)),
    "sparkle": (4, 0.42),
    "star": (5, 0.5),
    "flower": (8, 0.74),
    "circle": None,
    "ring": None,
}
# Background from, background to, then fills.
_PALETTES = (
    ("#12263a", "#2f6690", "#f4d35e", "#ee964b", "#f95738", "#9bd1e5"),
    ("#fff1d6", "#ffc6a5", "#d1495b", "#00798c", "#30638e", "#edae49"),
    ("#1b1b3a", "#693668", "#f0c987", "#74a4bc", "#ff6b6b", "#b6e3b8"),
    ("#d8f3dc", "#74c69d", "#1b4332", "#ff8c61", "#5f4bb6", "#f7f052"),
    ("#cfe8ff", "#7fb2e5", "#e63946", "#ffb703", "#1d3557", "#fefae0"),
    ("#2b2d42", "#596180", "#ef233c", "#8ecae6", "#ffb703", "#90be6d"),
    ("#f7e1ff", "#b892d8", "#3a0ca3", "#f72585", "#fb8500", "#2ec4b6"),
    ("#0b3d3a", "#1f7a6d", "#f2e8cf", "#f4a261", "#e76f51", "#a7c957"),
)
_TURN = 2 * np.pi


@dataclass(frozen=True)
class _Shape:
    """One shape of a video; lengths are in units of the picture's short side."""

    kind: str
    radius: float
    fill: tuple[np.ndarray, np.ndarray]  # RGB in [0, 1], light to dark along the shape
    stripes: float  # stripes per radius, 0: none
    angle: float
    phase: float  # where in its cycle the motion starts, in [0, 1)
    offset: float  # where across the direction of motion it lives, in [0, 1]


@dataclass(frozen=True)
class _Scene:
    motion: str
    size: tuple[int, int]
    fps: int
    num_frames: int
    speed: float  # cycles per second
    shapes: tuple[_Shape, ...]
    background: np.ndarray  # float32 [H, W, 3] in [0, 1]


@dataclass(frozen=True)
class _Pose:
    x: float  # centre, in units of the short side
    y: float
    scale: float
    angle: float
    opacity: float


def draw_video(index: int, *, seed: int) -> tuple[np.ndarray, int]:
    """Draws one video.

    Returns:
      uint8 frames [T, H, W, 3] and their rate in frames per second.
    """
    scene = _draw_scene(index, np.random.default_rng([seed, index]))
    frames = np.empty((scene.num_frames, *scene.background.shape), np.uint8)
    for t in range(scene.num_frames):
        frame = scene.background.copy()
        for shape in scene.shapes:
            _paint(frame, shape, _pose(scene, shape, t / scene.fps))
        frames[t] = np.rint(frame * 255)
    return frames, scene.fps


def _draw_scene(index: int, rng: np.random.Generator) -> _Scene:
    """Draws all that is random about a video; the class enters only as the name of the motion."""
    motion = CLASSES[index % len(CLASSES)]
    size = SIZES[rng.integers(len(SIZES))]
    palette = [_rgb(colour) for colour in _PALETTES[rng.integers(len(_PALETTES))]]
    num_shapes = int(rng.integers(2, 4))
    kinds = rng.choice(list(_SHAPES), num_shapes, replace=False)
    fills = rng.permutation(4)[:num_shapes]
    lanes = (rng.permutation(num_shapes) + rng.uniform(0.3, 0.7, num_shapes)) / num_shapes
    first_phase = rng.uniform()
    shapes = []
    for i in range(num_shapes):
        fill = palette[2 + fills[i]]
        # A plain disc would not be seen to turn, whatever its class.
        choices = (1.6, 2.4) if _SHAPES[str(kinds[i])] is None else (0.0, 0.0, 1.6, 2.4)
        shapes.append(
            _Shape(
                kind=str(kinds[i]),
                radius=rng.uniform(0.19, 0.27) * (1.15 if num_shapes == 2 else 1.0),
                fill=(fill + 0.25 * (1 - fill), fill * 0.72),
                stripes=float(rng.choice(choices)),
                angle=rng.uniform(0, _TURN),
                phase=(first_phase + (i + rng.uniform(-0.12, 0.12)) / num_shapes) % 1.0,
                offset=float(lanes[i]),
            )
        )
    return _Scene(
        motion=motion,
        size=size,
        fps=int(rng.choice(FRAME_RATES)),
        num_frames=int(rng.integers(NUM_FRAMES[0], NUM_FRAMES[1] + 1)),
        speed=rng.uniform(0.35, 0.6),
        shapes=tuple(shapes),
        background=_draw_background(size, palette[0], palette[1], rng),
    )


def _draw_background(
    size: tuple[int, int], start: np.ndarray, end: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Returns float32 [H, W, 3]: a gradient with soft clouds and a faint regular pattern."""
    width, height = size
    x, y = _grid(size)
    angle = rng.uniform(0, _TURN)
    along = np.cos(angle) * (x - width / 2) + np.sin(angle) * (y - height / 2)
    along = 0.5 + along / np.hypot(width, height)
    clouds = Image.fromarray(rng.uniform(-1, 1, (4, 5)).astype(np.float32))
    clouds = np.asarray(clouds.resize(size, Image.Resampling.BICUBIC))
    mix = np.clip(along + 0.18 * clouds, 0, 1)[..., None]
    picture = start * (1 - mix) + end * mix
    pitch = rng.uniform(14, 26)
    turn = rng.uniform(0, np.pi)
    u = (np.cos(turn) * x + np.sin(turn) * y) / pitch
    v = (np.cos(turn) * y - np.sin(turn) * x) / pitch
    pattern = rng.choice(["none", "stripes", "dots", "checks"])
    if pattern == "stripes":
        shade = _cover((np.abs(u % 1 - 0.5) - 0.25) * pitch)
    elif pattern == "dots":
        shade = _cover((np.hypot(u % 1 - 0.5, v % 1 - 0.5) - 0.27) * pitch)
    elif pattern == "checks":
        edge = (np.abs(u % 1 - 0.5) - 0.25) * pitch, (np.abs(v % 1 - 0.5) - 0.25) * pitch
        shade = _cover(edge[0]) + _cover(edge[1]) - 2 * _cover(edge[0]) * _cover(edge[1])
    else:
        shade = np.zeros_like(x)
    strength = rng.uniform(0.06, 0.12) * (1 if picture.mean() < 0.5 else -1)
    return np.clip(picture + strength * shade[..., None], 0, 1).astype(np.float32)


def _pose(scene: _Scene, shape: _Shape, time_s: float) -> _Pose:
    """Returns where a shape is; every motion repeats, so that any stretch of a video shows it."""
    width, height = (side / min(scene.size) for side in scene.size)
    u = shape.phase + scene.speed * time_s
    cycle = u % 1.0
    r = shape.radius
    x, y = r + shape.phase * (width - 2 * r), r + shape.offset * (height - 2 * r)
    angle, scale, opacity = shape.angle, 1.0, 1.0
    match scene.motion:
        case "left" | "right":
            way = cycle if scene.motion == "right" else 1 - cycle
            x = -1.2 * r + way * (width + 2.4 * r)
        case "up" | "down":
            way = cycle if scene.motion == "down" else 1 - cycle
            x, y = r + shape.offset * (width - 2 * r), -1.2 * r + way * (height + 2.4 * r)
        case "clockwise" | "counterclockwise":
            # y points down, so a growing angle turns clockwise.
            angle += _TURN * u * (1 if scene.motion == "clockwise" else -1)
        case "grow" | "shrink":
            way = cycle if scene.motion == "grow" else 1 - cycle
            scale = 0.25 + 1.35 * way
            opacity = min(1.0, 6 * cycle, 6 * (1 - cycle))
        case "bounce":
            hop = (shape.phase + 2 * scene.speed * time_s) % 1.0
            x = r + shape.offset * (width - 2 * r)
            y = height - r - 4 * hop * (1 - hop) * (height - 2 * r) * 0.85
        case "orbit":
            x = width / 2 + (width / 2 - 1.1 * r) * np.cos(_TURN * u)
            y = height / 2 + (height / 2 - 1.1 * r) * np.sin(_TURN * u)
    return _Pose(x, y, scale, angle, opacity)


def _paint(frame: np.ndarray, shape: _Shape, pose: _Pose) -> None:
    """Paints one shape and its shadow into float32 [H, W, 3], touching only the box it fills."""
    height, width = frame.shape[:2]
    side = min(width, height)
    radius = shape.radius * pose.scale * side
    centre_x, centre_y = pose.x * side, pose.y * side
    reach = radius * 1.35 + 2  # the shadow sticks out
    left, right = max(0, int(centre_x - reach)), min(width, int(centre_x + reach) + 2)
    top, bottom = max(0, int(centre_y - reach)), min(height, int(centre_y + reach) + 2)
    if left >= right or top >= bottom:
        return
    box = frame[top:bottom, left:right]
    x, y = _grid((right - left, bottom - top))
    x, y = x + (left - centre_x), y + (top - centre_y)

    shadow = radius * _distance(shape.kind, x / radius - 0.1, y / radius - 0.14, pose.angle)
    softness = 0.14 * radius
    shadow = 0.4 * pose.opacity * np.clip(0.5 - shadow / (2 * softness), 0, 1)
    box *= 1 - shadow[..., None]

    distance = radius * _distance(shape.kind, x / radius, y / radius, pose.angle)
    cover = _cover(distance) * pose.opacity
    light, dark = shape.fill
    # The fill turns with the shape, so that a turning circle is seen to turn.
    across = np.cos(pose.angle) * x + np.sin(pose.angle) * y
    mix = np.clip(0.5 + across / (1.8 * radius), 0, 1)
    if shape.stripes:
        pitch = radius / shape.stripes
        mix = mix * 0.35 + 0.65 * _cover((np.abs(across / pitch % 1 - 0.5) - 0.25) * pitch)
    paint = light + (dark - light) * mix[..., None]
    rim = _cover(np.abs(distance + 0.07 * radius) - 0.07 * radius)[..., None]
    paint = paint + rim * (0.35 * (1 - paint))
    box += cover[..., None] * (paint - box)


def _distance(kind: str, x: np.ndarray, y: np.ndarray, angle: float) -> np.ndarray:
    """Returns the signed distance to the outline of a shape of radius 1, negative inside."""
    r = np.hypot(x, y)
    if kind == "circle":
        return r - 0.9
    if kind == "ring":
        return np.abs(r - 0.68) - 0.26
    points, notch = _SHAPES[kind]
    # Fold the plane into half a point: there the outline is one line, from tip (1, 0) to notch.
    wedge = _TURN / points
    theta = np.arctan2(y, x) - angle
    theta = np.abs((theta + wedge / 2) % wedge - wedge / 2)
    notch_x, notch_y = notch * np.cos(wedge / 2), notch * np.sin(wedge / 2)
    edge = np.hypot(1 - notch_x, notch_y)
    return (notch_y * (r * np.cos(theta) - 1) + (1 - notch_x) * r * np.sin(theta)) / edge


def _cover(distance_px: np.ndarray) -> np.ndarray:
    """Returns how much of a pixel lies inside an outline at this distance: anti-aliasing."""
    return np.clip(0.5 - distance_px, 0, 1)


def _grid(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y of the pixels' centres, float32 [H, W] each."""
    x = np.arange(size[0], dtype=np.float32) + 0.5
    y = np.arange(size[1], dtype=np.float32) + 0.5
    return np.meshgrid(x, y)


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32) / 255
