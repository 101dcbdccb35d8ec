"""Painting a street: background, vehicles with their plates, clutter that looks like plates, and what a camera does.

Everything is drawn at twice the size of the image and averaged, so that a plate of a few pixels has soft edges. Beside
the picture goes a map of which vehicle, and one of which plate, is seen at each of its pixels.
"""

import math
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

SUPERSAMPLING = 2
Colour = tuple[int, int, int]  # blue, green, red, as OpenCV has it
Picture = NDArray[Any]  # uint8, (height, width, 3) or a map (height, width)

RUBBER, GLASS = (30, 30, 30), (70, 55, 45)
PAINTS: tuple[Colour, ...] = (
    (235, 235, 235),
    (40, 40, 42),
    (120, 120, 125),
    (175, 178, 180),
    (40, 40, 170),
    (140, 70, 30),
    (60, 110, 50),
    (60, 150, 200),
    (90, 60, 20),
)
PLATE_GROUNDS: tuple[Colour, ...] = ((240, 240, 240), (240, 240, 240), (70, 200, 240), (235, 215, 190))
# Width over height, and the share of a car's width: long ones, and those of two lines.
PLATE_FORMS = ((4.4, 0.28), (3.0, 0.24), (2.0, 0.2), (1.5, 0.2))
WALLS: tuple[Colour, ...] = ((140, 150, 165), (110, 125, 150), (160, 160, 160), (90, 100, 120), (150, 175, 190))


class Canvas:
    """The picture and, of the same shape, the number of the vehicle and of the plate at each pixel, 0 for none."""

    def __init__(self, size: int) -> None:
        self.size = size * SUPERSAMPLING
        self.picture: Picture = np.zeros((self.size, self.size, 3), np.uint8)
        self.vehicles: Picture = np.zeros((self.size, self.size), np.uint8)
        self.plates: Picture = np.zeros((self.size, self.size), np.uint8)

    def polygon(self, points: list[tuple[float, float]], colour: Colour, vehicle: int = 0, plate: int = 0) -> None:
        """What belongs to a vehicle covers what was there, plates too."""
        corners = np.rint(np.asarray(points)).astype(np.int32)
        cv2.fillConvexPoly(self.picture, corners, colour)
        if vehicle:
            cv2.fillConvexPoly(self.vehicles, corners, (vehicle,))
            cv2.fillConvexPoly(self.plates, corners, (plate,))

    def rectangle(
        self, x: float, y: float, w: float, h: float, colour: Colour, vehicle: int = 0, plate: int = 0
    ) -> None:
        self.polygon([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], colour, vehicle, plate)


def shade(colour: Colour, factor: float) -> Colour:
    b, g, r = (int(min(max(channel * factor, 0), 255)) for channel in colour)
    return b, g, r


def street(canvas: Canvas, horizon: float, random: Generator) -> None:
    """Sky, houses with windows, pavement, and a road whose lanes meet at the horizon."""
    size = canvas.size
    top = np.array((235, 200, 160)) * random.uniform(0.6, 1.05)
    bottom = np.array((225, 220, 210)) * random.uniform(0.7, 1.05)
    blend = np.linspace(0, 1, size)[:, None, None]
    canvas.picture[:] = np.clip(top + (bottom - top) * blend, 0, 255)
    x = -random.uniform(0, 0.2) * size
    while x < size:
        w, h = size * random.uniform(0.12, 0.3), horizon * random.uniform(0.4, 1.2)
        wall = shade(WALLS[random.integers(len(WALLS))], random.uniform(0.6, 1.1))
        canvas.rectangle(x, horizon - h, w, h, wall)
        columns, rows = random.integers(2, 6), random.integers(2, 6)
        light = shade(wall, random.uniform(0.5, 1.5))
        for column in range(columns):
            for row in range(rows):
                canvas.rectangle(
                    x + w * (column + 0.25) / columns,
                    horizon - h * (1 - (row + 0.2) / rows),
                    w / columns / 2,
                    h / rows / 2,
                    light,
                )
        x += w
    grey = random.uniform(70, 130)
    canvas.rectangle(0, horizon, size, size - horizon, (int(grey * 1.2),) * 3)
    vanishing, left, right = (
        size * random.uniform(0.3, 0.7),
        -size * random.uniform(0.3, 1),
        size * random.uniform(1.3, 2),
    )
    canvas.polygon([(vanishing, horizon), (right, size), (left, size)], (int(grey), int(grey), int(grey * 0.97)))
    for lane in (0.3, 0.5, 0.7):
        foot = left + (right - left) * lane
        for start in np.arange(0.05, 1, 0.22):
            ends = [(1 - s) * np.array((vanishing, horizon)) + s * np.array((foot, size)) for s in (start, start + 0.1)]
            widths = [size * 0.012 * s for s in (start, start + 0.1)]
            canvas.polygon(
                [
                    (ends[0][0] - widths[0], ends[0][1]),
                    (ends[0][0] + widths[0], ends[0][1]),
                    (ends[1][0] + widths[1], ends[1][1]),
                    (ends[1][0] - widths[1], ends[1][1]),
                ],
                (210, 210, 210),
            )


def lettering(
    canvas: Canvas,
    x: float,
    y: float,
    w: float,
    h: float,
    random: Generator,
    ground: Colour,
    vehicle: int = 0,
    plate: int = 0,
) -> None:
    """A bordered board with dark bars for letters: a plate, and what is taken for one."""
    canvas.rectangle(x, y, w, h, shade(ground, 0.35), vehicle, plate)
    border = max(0.06 * h, 0.5)
    canvas.rectangle(x + border, y + border, w - 2 * border, h - 2 * border, ground, vehicle, plate)
    letters = int(random.integers(5, 8))
    step = 0.86 * w / letters
    for letter in range(letters):
        if letter == letters // 2 and letters > 5:
            continue
        canvas.rectangle(
            x + 0.08 * w + step * letter, y + 0.22 * h, 0.55 * step, 0.56 * h, (45, 40, 40), vehicle, plate
        )


def clutter(canvas: Canvas, horizon: float, random: Generator) -> None:
    """Shop signs, road signs on posts and boards of the size of plates, none of them on a vehicle."""
    size = canvas.size
    for _ in range(random.integers(1, 5)):
        h = size * random.uniform(0.012, 0.05)
        w = h * random.uniform(1.8, 5)
        x, y = random.uniform(0, size - w), random.uniform(0.3 * horizon, horizon + 0.2 * size)
        ground = (PLATE_GROUNDS + PAINTS)[random.integers(len(PLATE_GROUNDS) + len(PAINTS))]
        if random.random() < 0.4:
            canvas.rectangle(x + w / 2 - 0.1 * h, y + h, 0.2 * h + 1, size * random.uniform(0.05, 0.2), (110, 110, 110))
        lettering(canvas, x, y, w, h, random, ground)


class Vehicle(NamedTuple):
    """``x``, ``bottom``, ``w`` and ``h`` in pixels of the canvas; ``turned`` the share of the width that is its side,
    on the right if positive."""

    kind: str
    x: float
    bottom: float
    w: float
    h: float
    turned: float
    plates: int


def vehicle(canvas: Canvas, car: Vehicle, number: int, first_plate: int, random: Generator) -> None:
    """A car or truck from behind, in front, or from the side, where no plate is seen."""
    paint = shade(PAINTS[random.integers(len(PAINTS))], random.uniform(0.8, 1.1))
    x, w, h, bottom = car.x, car.w, car.h, car.bottom
    cv2.ellipse(
        canvas.picture, (int(x + w / 2), int(bottom)), (int(0.53 * w), int(0.06 * h) + 1), 0, 0, 360, (45, 45, 45), -1
    )
    if abs(car.turned) == 1:
        _side(canvas, car, number, paint, random)
        return
    side = abs(car.turned) * w
    face_x, face_w = (x, w - side) if car.turned >= 0 else (x + side, w - side)
    if side > 1:
        _flank(canvas, car, number, paint, face_x, face_w)
    _face(canvas, car, number, paint, face_x, face_w, random)
    aspect, share = PLATE_FORMS[random.integers(len(PLATE_FORMS))]
    plate_w = face_w * share * random.uniform(0.9, 1.1) * (0.8 if car.kind == "truck" else 1)
    plate_h = plate_w / aspect
    heights = (0.2, 0.2, 0.42) if car.kind == "car" else (0.15, 0.15, 0.25)
    for plate in range(car.plates):
        middle = 0.5 + (random.uniform(-0.06, 0.06) if plate == 0 else (-1) ** plate * random.uniform(0.27, 0.33))
        lettering(
            canvas,
            face_x + face_w * middle - plate_w / 2,
            bottom - h * heights[random.integers(3)] - plate_h / 2,
            plate_w,
            plate_h,
            random,
            PLATE_GROUNDS[random.integers(len(PLATE_GROUNDS))],
            number,
            first_plate + plate,
        )


def _face(canvas: Canvas, car: Vehicle, number: int, paint: Colour, x: float, w: float, random: Generator) -> None:
    """Front or rear: wheels, body with bumper and lights, cabin with its window."""
    h, bottom = car.h, car.bottom
    for wheel in (0.04, 0.78):
        canvas.rectangle(x + wheel * w, bottom - 0.2 * h, 0.18 * w, 0.2 * h, RUBBER, number)
    if car.kind == "truck":
        canvas.rectangle(x, bottom - h, w, 0.9 * h, paint, number)
        canvas.rectangle(
            x + 0.04 * w, bottom - 0.97 * h, 0.92 * w, 0.6 * h, shade(paint, random.uniform(0.75, 1.2)), number
        )
        canvas.rectangle(x + 0.02 * w, bottom - 0.3 * h, 0.96 * w, 0.2 * h, shade(paint, 0.5), number)
    else:
        roof = random.uniform(0.14, 0.22)
        cabin = [
            (x + roof * w, bottom - h),
            (x + (1 - roof) * w, bottom - h),
            (x + 0.95 * w, bottom - 0.55 * h),
            (x + 0.05 * w, bottom - 0.55 * h),
        ]
        canvas.polygon(cabin, shade(paint, 0.9), number)
        window = [
            (x + (roof + 0.04) * w, bottom - 0.95 * h),
            (x + (0.96 - roof) * w, bottom - 0.95 * h),
            (x + 0.88 * w, bottom - 0.6 * h),
            (x + 0.12 * w, bottom - 0.6 * h),
        ]
        canvas.polygon(window, shade(GLASS, random.uniform(0.6, 2.2)), number)
        canvas.rectangle(x, bottom - 0.58 * h, w, 0.48 * h, paint, number)
        canvas.rectangle(x, bottom - 0.28 * h, w, 0.17 * h, shade(paint, random.uniform(0.55, 0.95)), number)
    lights = (40, 40, 200) if random.random() < 0.6 else (235, 240, 245)
    low = 0.5 if car.kind == "car" else 0.28
    for lamp in (0.03, 0.81):
        canvas.rectangle(x + lamp * w, bottom - low * h, 0.16 * w, 0.1 * h, lights, number)


def _flank(canvas: Canvas, car: Vehicle, number: int, paint: Colour, face_x: float, face_w: float) -> None:
    """The side of a vehicle that is seen from a corner, running away from the camera."""
    h, bottom, dark = car.h, car.bottom, shade(paint, 0.7)
    near, far = (face_x + face_w, car.x + car.w) if car.turned > 0 else (face_x, car.x)
    at = near + 0.55 * (far - near)
    canvas.polygon(
        [(at, bottom - 0.22 * h), (far, bottom - 0.26 * h), (far, bottom - 0.12 * h), (at, bottom - 0.02 * h)],
        RUBBER,
        number,
    )
    top = 0.97 if car.kind == "truck" else 0.58
    canvas.polygon(
        [
            (near, bottom - top * h),
            (far, bottom - (top - 0.06) * h),
            (far, bottom - 0.18 * h),
            (near, bottom - 0.1 * h),
        ],
        dark,
        number,
    )
    if car.kind == "car":
        inner = near - 0.14 * face_w * math.copysign(1, far - near)
        canvas.polygon(
            [(inner, bottom - 0.98 * h), (at, bottom - 0.94 * h), (far, bottom - 0.55 * h), (near, bottom - 0.57 * h)],
            shade(GLASS, 0.9),
            number,
        )


def _side(canvas: Canvas, car: Vehicle, number: int, paint: Colour, random: Generator) -> None:
    x, w, h, bottom = car.x, car.w, car.h, car.bottom
    if car.kind == "truck":
        canvas.rectangle(x, bottom - h, 0.74 * w, 0.82 * h, paint, number)
        canvas.rectangle(x + 0.76 * w, bottom - 0.8 * h, 0.24 * w, 0.62 * h, shade(paint, 0.8), number)
        canvas.rectangle(x + 0.7 * w, bottom - 0.3 * h, 0.1 * w, 0.12 * h, shade(paint, 0.4), number)
        canvas.rectangle(x + 0.86 * w, bottom - 0.74 * h, 0.12 * w, 0.24 * h, GLASS, number)
    else:
        canvas.polygon(
            [
                (x + 0.26 * w, bottom - h),
                (x + 0.68 * w, bottom - h),
                (x + 0.84 * w, bottom - 0.58 * h),
                (x + 0.12 * w, bottom - 0.58 * h),
            ],
            paint,
            number,
        )
        for left, right in ((0.2, 0.46), (0.49, 0.76)):
            canvas.rectangle(
                x + left * w,
                bottom - 0.92 * h,
                (right - left) * w * 0.9,
                0.32 * h,
                shade(GLASS, random.uniform(0.8, 2)),
                number,
            )
        canvas.rectangle(x, bottom - 0.6 * h, w, 0.42 * h, paint, number)
    for middle in (0.2, 0.8):
        for reach, colour in ((0.2, RUBBER), (0.1, (150, 150, 150))):
            angles = np.linspace(0, 2 * math.pi, 24, endpoint=False)
            cx, cy = x + middle * w, bottom - 0.2 * h
            canvas.polygon(
                [(cx + reach * h * math.cos(a), cy + reach * h * math.sin(a)) for a in angles], colour, number
            )


def photographed(canvas: Canvas, random: Generator) -> Picture:
    """The picture in the image's size, with light from one side, dusk or night, blur, motion and noise."""
    size = canvas.size // SUPERSAMPLING
    image: Picture = cv2.resize(canvas.picture, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    brightness = random.choice((1.0, 0.8, 0.5), p=(0.6, 0.3, 0.1)) * random.uniform(0.85, 1.15)
    tint = np.array((1.0, 1.0, 1.0), np.float32) + random.uniform(-0.08, 0.08, 3).astype(np.float32)
    left, right = random.uniform(0.8, 1.2, 2)
    slope = np.linspace(left, right, size, dtype=np.float32)[None, :, None]
    image *= tint * brightness * slope
    if random.random() < 0.15:
        reach = int(random.integers(2, 4))
        image = cv2.blur(image, (reach, 1))
    sigma = random.uniform(0, 0.6)
    if sigma > 0.2:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    image += random.standard_normal((size, size, 3), np.float32) * random.uniform(1, 7)
    return np.clip(image, 0, 255).astype(np.uint8)
