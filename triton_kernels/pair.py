"""The program of one pair: box loss of prediction and target plus weighted penalty of prediction and anchor object."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .box import Box, containment, similarity
from .number import add, choose, constant, literal, relu, scale, subtract


class Numbers(NamedTuple):
    """Those of the formula, in the order in which icr_kernels/calls.py packs them."""

    penalty_weight: Any
    eps: Any


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
def constant_box(b):
    return Box(constant(b.x1), constant(b.y1), constant(b.x2), constant(b.y2))


@triton.jit
def penalty_of(boxes, has_anchor, numbers, PENALTY: tl.constexpr, RELATIVE: tl.constexpr):
    """The penalty before weighting; 0 without an anchor object. A relative one is its excess over the target's."""
    penalty = PENALTY(boxes.pred, boxes.anchor_objects, numbers.eps)
    if RELATIVE:
        of_target = PENALTY(constant_box(boxes.target), constant_box(boxes.anchor_objects), numbers.eps)
        penalty = relu(subtract(penalty, of_target))
    return choose(has_anchor, penalty, literal(0.0, penalty))


@triton.jit
def pair_loss(boxes, has_anchor, numbers, LOSS: tl.constexpr, PENALTY: tl.constexpr, RELATIVE: tl.constexpr):
    """L(P, G) + penalty_weight * penalty(P, A)"""
    loss = LOSS(boxes.pred, boxes.target, numbers.eps)
    if PENALTY is not None:
        loss = add(loss, scale(penalty_of(boxes, has_anchor, numbers, PENALTY, RELATIVE), numbers.penalty_weight))
    return loss


@triton.jit
def pair_terms(boxes, has_anchor, numbers, LOSS: tl.constexpr, PENALTY: tl.constexpr, RELATIVE: tl.constexpr):
    """All terms of the pair."""
    loss = LOSS(boxes.pred, boxes.target, numbers.eps)
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
