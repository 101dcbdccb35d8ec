"""What modifies a loss L that has an IoU in it: L + IoU - f(IoU), times a factor that is constant under
differentiation."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from icr_kernels import specifications

from .box import Box, centre_dx, centre_dy, displaced_similarity, similarity
from .number import add, constant, literal, one_minus, power, ratio, relu, scale, shift, subtract

INNER, FOCALER = tl.constexpr(specifications.INNER), tl.constexpr(specifications.FOCALER)
WISE2, WISE3 = tl.constexpr(specifications.WISE2), tl.constexpr(specifications.WISE3)


class Modifiers(NamedTuple):
    """Their numbers: the ratio of inner boxes; where the IoU of a focaler ends, and how far that is from where it
    begins; gamma of a wise factor, or ln(alpha) and delta; the mean of 1 - IoU."""

    inner: Any
    high: Any
    span: Any
    wise_a: Any
    wise_b: Any
    mean: Any


@triton.jit
def modified(loss, p, g, eps, numbers, MODIFIERS: tl.constexpr):
    iou = similarity(p, g, eps)
    counted = iou
    if INNER & MODIFIERS:
        counted = inner(p, g, eps, numbers.inner)
    if FOCALER & MODIFIERS:
        counted = focaler(counted, numbers.high, numbers.span)
    if (INNER | FOCALER) & MODIFIERS:
        loss = add(loss, subtract(iou, counted))
    if (WISE2 | WISE3) & MODIFIERS:
        loss = scale(loss, wise(iou, eps, numbers, MODIFIERS))
    return loss


@triton.jit
def inner(p, g, eps, sides):
    """Zhang et al. 2023, Inner-IoU: of both boxes with so many times their sides about their centres. With sides for a
    unit these are what they were, and the centres are 1/sides as far apart: nothing overflows, and of two equal boxes
    none moves."""
    further = 1.0 / sides - 1.0
    dx, dy = scale(centre_dx(p, g), further), scale(centre_dy(p, g), further)
    beyond_target = Box(
        add(subtract(p.x1, g.x1), dx),
        add(subtract(p.y1, g.y1), dy),
        add(subtract(p.x2, g.x2), dx),
        add(subtract(p.y2, g.y2), dy),
    )
    return displaced_similarity(beyond_target, g, eps / (sides * sides))


@triton.jit
def focaler(iou, high, span):
    """Zhang and Zhang 2024, Focaler-IoU: (IoU - low) / span from 0 to 1"""
    return relu(one_minus(relu(scale(shift(scale(iou, -1.0), high), 1.0 / span))))


@triton.jit
def wise(iou, eps, numbers, MODIFIERS: tl.constexpr):
    """Tong et al. 2023, Wise-IoU v2 and v3: how much a pair counts that is beta times as bad as the mean"""
    beta = ratio(constant(one_minus(iou)), literal(numbers.mean, iou), eps)
    if WISE2 & MODIFIERS:
        return power(beta, numbers.wise_a).value
    else:
        return beta.value / (numbers.wise_b * tl.exp(numbers.wise_a * (beta.value - numbers.wise_b)))
