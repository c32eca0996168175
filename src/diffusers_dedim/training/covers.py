"""Things drawn over aligned faces, with the pixels they cover: what `training.visibility` learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from diffusers_dedim.models.blocks import CROP_SIZE

_FINE = 3  # drawn so many times as large: edges come out soft, as a camera sees them
_Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Scene:
    """What a cover is drawn for.

    Attributes:
        image: the face, ``[112, 112, 3]`` 0..255.
        other: another photo's crop, whose parts and colours may be borrowed; the same shape and range.
        points: ``[68, 2]`` landmarks, crop px.
        rng: source of the randomness.
    """

    image: _Floats
    other: _Floats
    points: NDArray[np.float64]
    rng: np.random.Generator

    @property
    def centre(self) -> NDArray[np.float64]:
        """Middle of the inner landmarks, crop px."""
        return np.asarray(self.points[17:].mean(0))

    def uniform(self, low: float, high: float, size: int | None = None) -> Any:
        """A number, or ``size`` of them."""
        return self.rng.uniform(low, high, size)

    def place(self, spread: float) -> NDArray[np.float64]:
        """A point near the middle of the face."""
        return self.centre + self.rng.normal(0, spread, 2)


Cover = tuple[_Floats, _Floats]
"""Colours ``[112, 112, 3]`` 0..255, and how much of each pixel is covered, ``[112, 112]`` 0..1."""


def shape(scene: Scene) -> Cover:
    """A polygon or an ellipse somewhere on the face."""
    place, size = scene.place(16), scene.uniform(8, 34)
    count = 24 if scene.rng.random() < 0.4 else int(scene.rng.integers(3, 8))
    angles = np.sort(scene.uniform(0, 2 * np.pi, count)) if count < 24 else np.linspace(0, 2 * np.pi, count)
    reach = size * (np.ones(count) if count == 24 else scene.uniform(0.6, 1.3, count))
    squeeze, turn = scene.uniform(0.35, 1), scene.uniform(0, np.pi)
    local = np.stack([reach * np.cos(angles), reach * squeeze * np.sin(angles)], 1)
    return texture(scene), polygon(place + _turned(local, turn))


def blob(scene: Scene) -> Cover:
    """An irregular patch of another photo, or of some texture."""
    y, x = np.mgrid[:CROP_SIZE, :CROP_SIZE] - scene.place(18)[::-1, None, None]
    size = scene.uniform(12, 32)
    field = smooth_field(scene.rng, int(scene.rng.integers(3, 7)))
    alpha = 1.5 + field * scene.uniform(0.5, 1.5) - np.hypot(x, y * scene.uniform(0.6, 1.6)) / size * 1.5
    return texture(scene), np.clip(alpha * size / 3, 0, 1).astype(np.float32)


def bar(scene: Scene) -> Cover:
    """A straight bar over eyes, nose or mouth, as censors draw it; or a pole."""
    part = scene.points[[slice(36, 48), slice(27, 36), slice(48, 68)][int(scene.rng.integers(3))]]
    length, height = scene.uniform(25, 75), scene.uniform(4, 15)
    turn = scene.rng.normal(0, 0.12) if scene.rng.random() < 0.7 else scene.uniform(0, np.pi)
    corners = np.array([[-length, -height], [length, -height], [length, height], [-length, height]])
    colour = flat(scene.uniform(0, 30, 3)) if scene.rng.random() < 0.4 else texture(scene)
    return colour, polygon(part.mean(0) + scene.rng.normal(0, 4, 2) + _turned(corners, turn))


def board(scene: Scene) -> Cover:
    """Something with a straight or wavy edge that hides the face from one side: a wall, a book, a head in front."""
    turn = scene.uniform(0, 2 * np.pi)
    normal = np.array([np.cos(turn), np.sin(turn)])
    y, x = np.mgrid[:CROP_SIZE, :CROP_SIZE]
    along = (x - scene.centre[0]) * normal[0] + (y - scene.centre[1]) * normal[1] - scene.uniform(-6, 32)
    if scene.rng.random() < 0.4:
        along = along + scene.uniform(1, 8) * smooth_field(scene.rng, 4)
    return texture(scene), np.clip(along + 0.5, 0, 1).astype(np.float32)


def fingers(scene: Scene) -> Cover:
    """One to five fingers of skin colour, mostly reaching over mouth, cheek or eyes, with a palm at times."""
    count, width = int(scene.rng.integers(1, 6)), scene.uniform(4.5, 9.5)
    base_turn = scene.uniform(0, 2 * np.pi)
    along = np.array([np.cos(base_turn), np.sin(base_turn)])
    across = np.array([-along[1], along[0]])
    middle = scene.place(15)
    skin = _skin(scene)
    colour = flat(skin) * (1 + 0.06 * smooth_field(scene.rng, 5)[..., None])
    alpha = np.zeros((CROP_SIZE, CROP_SIZE), np.float32)
    for number in range(count):
        side = (number - (count - 1) / 2) * width * scene.uniform(0.95, 1.15)
        tip = middle + across * side + along * scene.uniform(-14, 2)
        root = middle + across * side * scene.uniform(0.8, 1.3) + along * scene.uniform(55, 90)
        shade, cover = _finger(scene, tip, root, width / 2)
        colour = colour + (flat(skin) * shade[..., None] - colour) * cover[..., None]
        alpha = np.maximum(alpha, cover)
    if scene.rng.random() < 0.4:
        palm = ellipse(
            middle + along * scene.uniform(25, 45), scene.uniform(14, 24), scene.uniform(14, 24), base_turn
        )
        alpha = np.maximum(alpha, palm)
    return np.clip(colour, 0, 255).astype(np.float32), alpha


def surgical_mask(scene: Scene) -> Cover:
    """A mask over mouth and nose, hung at the ears, with pleats."""
    points = scene.points
    top = points[29] + (points[27] - points[30]) * scene.uniform(-0.5, 0.5)
    ends = int(scene.rng.integers(1, 4))
    jaw = points[ends : 17 - ends] + scene.rng.normal(0, 1.5, 2)
    chin = (points[8] - points[30]) * scene.uniform(-0.1, 0.12)
    jaw = jaw + chin * np.linspace(-1, 1, len(jaw))[:, None].clip(0)
    alpha = polygon(
        np.concatenate([jaw, [points[16 - ends] * 0.4 + top * 0.6, top, points[ends] * 0.4 + top * 0.6]])
    )
    usual = ([235, 240, 245], [150, 195, 225], [25, 25, 30], [190, 220, 210])
    colour = flat(np.array(usual[int(scene.rng.integers(4))]) + scene.rng.normal(0, 12, 3))
    if scene.rng.random() < 0.35:
        colour = texture(scene)
    y = np.mgrid[:CROP_SIZE, :CROP_SIZE][0]
    pleats = 0.07 * np.sin(y / scene.uniform(1.2, 3.5) + 0.4 * smooth_field(scene.rng, 3))
    colour = colour * (1 + pleats + 0.1 * smooth_field(scene.rng, 3))[..., None]
    for ear, corner in ((points[1], points[3]), (points[15], points[13])):
        alpha = np.maximum(alpha, line([ear, corner], 1.2)) if scene.rng.random() < 0.7 else alpha
    return colour.clip(0, 255).astype(np.float32), alpha


def sunglasses(scene: Scene) -> Cover:
    """Two dark or mirroring glasses with bridge and temples."""
    points, rng = scene.points, scene.rng
    eyes = [points[36:42].mean(0), points[42:48].mean(0)]
    apart = float(np.linalg.norm(eyes[1] - eyes[0]))
    wide, high = apart * scene.uniform(0.3, 0.46), apart * scene.uniform(0.2, 0.4)
    direction = eyes[1] - eyes[0]
    turn, drop = float(np.arctan2(direction[1], direction[0])), scene.uniform(-2, 5)
    corners = scene.uniform(2, 6)  # exponent of a superellipse: 2 is round
    frame, glass = np.zeros((2, CROP_SIZE, CROP_SIZE), np.float32)
    rim = scene.uniform(0, 2.5)
    for eye in eyes:
        middle = eye + np.array([0, drop])
        glass = np.maximum(glass, polygon(middle + _turned(_superellipse(wide, high, corners), turn)))
        frame = np.maximum(
            frame, polygon(middle + _turned(_superellipse(wide + rim, high + rim, corners), turn))
        )
    bridge = [eye + np.array([0, drop - high * 0.4]) for eye in eyes]
    outer = [
        (points[0], eyes[0] - np.array([wide, high * 0.4])),
        (points[16], eyes[1] + np.array([wide, -high * 0.4])),
    ]
    for ends in (bridge, *outer):
        frame = np.maximum(frame, line([np.asarray(end) for end in ends], scene.uniform(1.2, 4)))
    dark = flat(scene.uniform(0, 70, 3)) if rng.random() < 0.7 else texture(scene)
    y = np.mgrid[:CROP_SIZE, :CROP_SIZE][0] - eyes[0][1]
    dark = dark * (1 + scene.uniform(-0.3, 0.5) * y / 20)[..., None] + 25 * smooth_field(rng, 6)[
        ..., None
    ].clip(0)
    rims = flat(scene.uniform(0, 255, 3) if rng.random() < 0.3 else scene.uniform(0, 60, 3))
    colour = rims + (dark - rims) * glass[..., None]
    return colour.clip(0, 255).astype(np.float32), np.maximum(frame, glass)


def hair(scene: Scene) -> Cover:
    """Strands from above or beside, single or as a fringe."""
    rng = scene.rng
    tone = np.array([[20, 16, 14], [60, 40, 28], [110, 80, 50], [190, 160, 110], [150, 150, 150]])
    base = tone[int(rng.integers(5))] * scene.uniform(0.6, 1.3)
    start = np.array([scene.uniform(10, 102), scene.uniform(-10, 12)])
    end = scene.place(20) + np.array([0, scene.uniform(-20, 25)])
    bend = (start + end) / 2 + rng.normal(0, 14, 2)
    spread, count = scene.uniform(1.5, 14), int(rng.integers(6, 45))
    picture = Image.new("RGBA", (CROP_SIZE * _FINE,) * 2)
    draw = ImageDraw.Draw(picture)
    for _ in range(count):
        moves = rng.normal(0, spread, (3, 2))
        t = np.linspace(0, 1, 12)[:, None]
        way = (
            (1 - t) ** 2 * (start + moves[0]) + 2 * t * (1 - t) * (bend + moves[1]) + t**2 * (end + moves[2])
        )
        shade = tuple(int(v) for v in np.clip(base * scene.uniform(0.6, 1.5) + rng.normal(0, 4, 3), 0, 255))
        draw.line([(x * _FINE, y * _FINE) for x, y in way], fill=(*shade, 255), width=int(rng.integers(2, 9)))
    layer = np.asarray(picture.reduce(_FINE), np.float32)
    return layer[..., :3], (layer[..., 3] / 255).astype(np.float32)


def microphone(scene: Scene) -> Cover:
    """A round head of wire before the mouth, and its stick."""
    head = scene.points[48:68].mean(0) + scene.rng.normal(0, 7, 2)
    size, lean = scene.uniform(8, 15), scene.uniform(-1.1, 1.1)
    end = head + 120 * np.array([np.sin(lean), np.cos(lean)])
    y, x = np.mgrid[:CROP_SIZE, :CROP_SIZE]
    light = 1.2 - 0.7 * np.hypot(x - head[0] + size / 3, y - head[1] + size / 3) / size
    wire = 1 + 0.25 * np.sin(x * 1.9) * np.sin(y * 1.9)
    colour = flat(np.full(3, scene.uniform(30, 160))) * (light.clip(0.3) * wire)[..., None]
    alpha = np.maximum(ellipse(head, size, size * scene.uniform(0.85, 1.1), 0), line([head, end], size * 0.9))
    return colour.clip(0, 255).astype(np.float32), alpha


def cup(scene: Scene) -> Cover:
    """A cup at the mouth, with a rim and a handle."""
    mouth = scene.points[48:68].mean(0) + scene.rng.normal(0, 4, 2)
    wide, deep, turn = scene.uniform(12, 22), scene.uniform(18, 32), scene.rng.normal(0, 0.3)
    body = np.array([[-wide, 0], [wide, 0], [wide * 0.8, deep], [-wide * 0.8, deep]])
    alpha = np.maximum(polygon(mouth + _turned(body, turn)), ellipse(mouth, wide, wide * 0.3, turn))
    handle = mouth + _turned(np.array([[wide, 4], [wide * 1.6, deep / 2], [wide * 0.9, deep * 0.8]]), turn)
    x = np.mgrid[:CROP_SIZE, :CROP_SIZE][1]
    colour = flat(scene.uniform(40, 255, 3)) * (1 - 0.5 * ((x - mouth[0]) / wide).clip(-1, 1) ** 2)[..., None]
    return colour.clip(0, 255).astype(np.float32), np.maximum(alpha, line(list(handle), scene.uniform(2, 4)))


def scarf(scene: Scene) -> Cover:
    """Knitted cloth over chin and mouth, with a wavy upper edge."""
    x, y = np.mgrid[:CROP_SIZE, :CROP_SIZE][::-1]
    edge = scene.points[30, 1] + scene.uniform(2, 26) + 3 * smooth_field(scene.rng, 4)
    knit = 1 + 0.25 * np.sin(x * scene.uniform(0.8, 1.6)) * np.sin(y * scene.uniform(0.8, 1.6) + x * 0.4)
    colour = flat(scene.uniform(20, 235, 3)) * (knit + 0.15 * smooth_field(scene.rng, 4))[..., None]
    return colour.clip(0, 255).astype(np.float32), np.clip(y - edge + 0.5, 0, 1).astype(np.float32)


Draw = Callable[[Scene], Cover]
TRAINED: tuple[Draw, ...] = (shape, blob, bar, board, fingers, surgical_mask, sunglasses, hair)
HELD_BACK: tuple[Draw, ...] = (microphone, cup, scarf)
"""Kinds that no training sees: on them it is measured."""


def add_cover(scene: Scene, draw: Draw) -> tuple[_Floats, NDArray[np.bool_]]:
    """Draw a cover over the scene's face, with its shadow beside it at times.

    Args:
        scene: the face.
        draw: the kind of cover.

    Returns:
        The picture ``[112, 112, 3]`` 0..255, and which pixels are covered, ``[112, 112]``.

    Example:
        >>> blank = np.full((112, 112, 3), 128, np.float32)
        >>> scene = Scene(blank, blank, np.full((68, 2), 56.0), np.random.default_rng(0))
        >>> bool(add_cover(scene, bar)[1][56, 56])
        True
    """
    colour, alpha = draw(scene)
    under = scene.image
    if scene.rng.random() < 0.35:
        fall = [int(v) for v in scene.rng.integers(-4, 5, 2)]
        shadow = Image.fromarray((np.roll(alpha, fall, (0, 1)) * 255).astype(np.uint8)).reduce(4)
        soft = np.asarray(shadow.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BICUBIC), np.float32) / 255
        under = under * (1 - scene.uniform(0.15, 0.5) * soft)[..., None]
    return under + (colour - under) * alpha[..., None], alpha > 0.2


def texture(scene: Scene) -> _Floats:
    """Colours ``[112, 112, 3]``: flat, a pattern, or parts of the other photo, in another light."""
    rng, kind = scene.rng, scene.rng.random()
    if kind < 0.45:
        turned = np.rot90(scene.other, int(rng.integers(4)))
        side = int(rng.integers(20, CROP_SIZE))
        x, y = rng.integers(0, CROP_SIZE - side + 1, 2)
        part = Image.fromarray(np.ascontiguousarray(turned[y : y + side, x : x + side]).astype(np.uint8))
        colour = np.asarray(part.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BILINEAR), np.float32)
        colour = (colour - 128) * scene.uniform(0.6, 1.3) + 128 + rng.normal(0, 20, 3)
    else:
        colour = flat(scene.uniform(0, 255, 3) if rng.random() < 0.7 else _skin(scene))
        if kind < 0.75:
            second = flat(scene.uniform(0, 255, 3))
            y, x = np.mgrid[:CROP_SIZE, :CROP_SIZE]
            waves = np.sin((x * scene.uniform(-1, 1) + y * scene.uniform(-1, 1)) * scene.uniform(0.2, 1.5))
            mix = waves > scene.uniform(-0.5, 0.9) if kind < 0.6 else 0.5 + 0.5 * smooth_field(rng, 6)
            colour = colour + (second - colour) * np.asarray(mix, np.float32)[..., None]
    light = (
        1
        + scene.uniform(0, 0.25) * smooth_field(rng, 3)
        + scene.uniform(0, 0.05) * rng.standard_normal((CROP_SIZE, CROP_SIZE))
    )
    return np.asarray(np.clip(colour * light[..., None], 0, 255), np.float32)


def flat(colour: Any) -> _Floats:
    """One colour everywhere, ``[112, 112, 3]``."""
    clipped = np.asarray(colour, np.float32).clip(0, 255)
    return np.array(np.broadcast_to(clipped, (CROP_SIZE, CROP_SIZE, 3)), np.float32)


def smooth_field(rng: np.random.Generator, cells: int) -> _Floats:
    """Smooth noise ``[112, 112]`` of about unit spread with ``cells`` hills a side."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BICUBIC), np.float32)


def polygon(corners: NDArray[np.float64]) -> _Floats:
    """How much of each pixel lies in the polygon ``[K, 2]``."""
    return _drawn(lambda draw, fine: draw.polygon(fine(corners), fill=255))


def line(points: list[Any], width: float) -> _Floats:
    """A line of that width (px) with round joints."""
    return _drawn(
        lambda draw, fine: draw.line(fine(points), fill=255, width=round(width * _FINE), joint="curve")
    )


def ellipse(middle: Any, wide: float, high: float, turn: float) -> _Floats:
    """A turned ellipse by its half axes (px) and its angle (radians)."""
    return polygon(middle + _turned(_superellipse(wide, high, 2), turn))


def _drawn(paint: Callable[..., None]) -> _Floats:
    picture = Image.new("L", (CROP_SIZE * _FINE,) * 2)

    def fine(points: Any) -> list[tuple[float, float]]:
        return [((x + 0.5) * _FINE, (y + 0.5) * _FINE) for x, y in points]

    paint(ImageDraw.Draw(picture), fine)
    drawn = np.asarray(picture.reduce(_FINE), np.float32)
    return np.asarray(drawn / 255, np.float32)


def _turned(local: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.asarray(local @ np.array([[cos, sin], [-sin, cos]]))


def _superellipse(wide: float, high: float, exponent: float) -> NDArray[np.float64]:
    angle = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    power = 2 / exponent
    return np.stack([wide * np.sign(cos) * abs(cos) ** power, high * np.sign(sin) * abs(sin) ** power], 1)


def _skin(scene: Scene) -> NDArray[np.float64]:
    """Colour of a cheek, of this person or another, in a slightly other light."""
    source = scene.image if scene.rng.random() < 0.7 else scene.other
    x, y = (int(v) for v in scene.points[[2, 14][int(scene.rng.integers(2))]] * 0.5 + scene.points[30] * 0.5)
    patch = source[max(0, y - 4) : y + 4, max(0, x - 4) : x + 4].reshape(-1, 3)
    colour = patch.mean(0) if len(patch) else np.array([200.0, 160.0, 140.0])
    return np.asarray(colour * scene.uniform(0.75, 1.2) + scene.rng.normal(0, 6, 3))


def _finger(scene: Scene, tip: Any, root: Any, radius: float) -> tuple[_Floats, _Floats]:
    """Shade and cover of a rounded stick that is lit from one side, with a darker rim."""
    y, x = np.mgrid[:CROP_SIZE, :CROP_SIZE]
    way = root - tip
    length = float(np.hypot(*way))
    along = ((x - tip[0]) * way[0] + (y - tip[1]) * way[1]) / length**2
    across = ((x - tip[0]) * way[1] - (y - tip[1]) * way[0]) / length
    distance = np.hypot(x - tip[0] - along.clip(0, 1) * way[0], y - tip[1] - along.clip(0, 1) * way[1])
    share = (distance / radius).clip(0, 1)
    shade = 1.05 - 0.3 * share**3 + scene.uniform(-0.1, 0.1) * across / radius
    if scene.rng.random() < 0.3:
        shade = shade + 0.15 * (
            np.hypot(x - tip[0] - way[0] / length * radius * 0.3, y - tip[1] - way[1] / length * radius * 0.3)
            < radius * 0.6
        )
    return shade.astype(np.float32), np.clip(radius - distance + 0.5, 0, 1).astype(np.float32)
