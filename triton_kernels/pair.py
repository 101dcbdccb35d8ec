"""The program of one pair: box loss of prediction and target plus weighted penalty of prediction and anchor object."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .box import Box, containment, similarity
from .modifiers import Modifiers, modified
from .number import add, choose, constant, literal, relu, scale, subtract


class Numbers(NamedTuple):
    """Those of the formula: the parameters of the loss, as many as it has, and the numbers of its modifiers."""

    penalty_weight: Any
    eps: Any
    clamp: Any
    parameters: Any
    modifiers: Any


class Boxes(NamedTuple):
    """Something of each box of a pair."""

    pred: Any
    target: Any
    anchor_objects: Any


class Terms(NamedTuple):
    loss: Any
    iou: Any
    containment: Any
    penalty: Any


@triton.jit
def parameters_of(given, COUNT: tl.constexpr, DTYPE: tl.constexpr):
    """As many as a function has."""
    parameters = ()
    for i in tl.static_range(COUNT):
        parameters += (tl.full((), given[i], DTYPE),)
    return parameters


@triton.jit
def applied(p, q, eps, parameters, FUNCTION: tl.constexpr):
    """A function of two boxes and its parameters."""
    if len(parameters) == 0:
        return FUNCTION(p, q, eps)
    elif len(parameters) == 1:
        return FUNCTION(p, q, eps, parameters[0])
    else:
        return FUNCTION(p, q, eps, parameters[0], parameters[1])


@triton.jit
def numbers_of(penalty_weight, eps, clamp, parameters, modifiers, wise_mean, COUNT: tl.constexpr, DTYPE: tl.constexpr):
    """From those that icr_kernels/calls.py packs, in its order, and the mean of a wise factor in memory."""
    ratio, low, high, wise_a, wise_b = modifiers
    mean = tl.full((), 0.0, DTYPE) if wise_mean is None else tl.load(wise_mean).to(DTYPE)
    of_modifiers = Modifiers(
        tl.full((), ratio, DTYPE),
        tl.full((), high, DTYPE),
        tl.full((), high - low, DTYPE),
        tl.full((), wise_a, DTYPE),
        tl.full((), wise_b, DTYPE),
        mean,
    )
    return Numbers(
        tl.full((), penalty_weight, DTYPE),
        tl.full((), eps, DTYPE),
        tl.full((), clamp, DTYPE),
        parameters_of(parameters, COUNT, DTYPE),
        of_modifiers,
    )


@triton.jit
def in_boxes_unit(numbers, pixels, POWERS: tl.constexpr):
    """With the parameters of the loss where a unit of the boxes has so many pixels."""
    parameters = ()
    for i in tl.static_range(len(numbers.parameters)):
        x = numbers.parameters[i]
        for _ in tl.static_range((POWERS >> (2 * i)) & 3):
            x = x / pixels
        parameters += (x,)
    return Numbers(numbers.penalty_weight, numbers.eps, numbers.clamp, parameters, numbers.modifiers)


@triton.jit
def constant_box(b):
    return Box(constant(b.x1), constant(b.y1), constant(b.x2), constant(b.y2))


@triton.jit
def penalty_of(boxes, has_anchor, numbers, PENALTY: tl.constexpr, RELATIVE: tl.constexpr):
    """The penalty before weighting; 0 without an anchor object. A relative one is its excess over the target's."""
    penalty = PENALTY(boxes.pred, boxes.anchor_objects, numbers.eps, numbers.clamp)
    if RELATIVE:
        target, anchor_objects = constant_box(boxes.target), constant_box(boxes.anchor_objects)
        of_target = PENALTY(target, anchor_objects, numbers.eps, numbers.clamp)
        penalty = relu(subtract(penalty, of_target))
    return choose(has_anchor, penalty, literal(0.0, penalty))


@triton.jit
def box_loss(p, g, numbers, LOSS: tl.constexpr, MODIFIERS: tl.constexpr):
    """With its parameters and modifiers."""
    loss = applied(p, g, numbers.eps, numbers.parameters, LOSS)
    return modified(loss, p, g, numbers.eps, numbers.modifiers, MODIFIERS) if MODIFIERS else loss


@triton.jit
def pair_loss(
    boxes,
    has_anchor,
    numbers,
    LOSS: tl.constexpr,
    MODIFIERS: tl.constexpr,
    PENALTY: tl.constexpr,
    RELATIVE: tl.constexpr,
):
    """L(P, G) + penalty_weight * penalty(P, A)"""
    loss = box_loss(boxes.pred, boxes.target, numbers, LOSS, MODIFIERS)
    if PENALTY is not None:
        loss = add(loss, scale(penalty_of(boxes, has_anchor, numbers, PENALTY, RELATIVE), numbers.penalty_weight))
    return loss


@triton.jit
def pair_terms(
    boxes,
    has_anchor,
    numbers,
    LOSS: tl.constexpr,
    MODIFIERS: tl.constexpr,
    PENALTY: tl.constexpr,
    RELATIVE: tl.constexpr,
):
    """All terms of the pair."""
    loss = box_loss(boxes.pred, boxes.target, numbers, LOSS, MODIFIERS)
    iou = similarity(boxes.pred, boxes.target, numbers.eps)
    if PENALTY is None:
        return Terms(loss, iou, literal(1.0, loss), literal(0.0, loss))
    else:
        penalty = penalty_of(boxes, has_anchor, numbers, PENALTY, RELATIVE)
        inside = choose(has_anchor, containment(boxes.pred, boxes.anchor_objects, numbers.eps), literal(1.0, loss))
        return Terms(add(loss, scale(penalty, numbers.penalty_weight)), iou, inside, penalty)


@triton.jit
def derivative(y, i: tl.constexpr):
    return 0.0 if y.partials[i].dtype == tl.int1 else y.partials[i]


@triton.jit
def gradient(y, first: tl.constexpr):
    """The derivative of y with respect to the box at the variable ``first``."""
    return Box(derivative(y, first), derivative(y, first + 1), derivative(y, first + 2), derivative(y, first + 3))
