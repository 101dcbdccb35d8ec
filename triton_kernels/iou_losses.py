"""The box-regression losses, as their papers write them, over a prediction p and a target g. The gradient is derived by
the numbers. The list at the end is all that the kernels know."""

import triton
import triton.language as tl  # noqa: F401  Triton's interpreter looks for it in every module

from .box import centre_dx, centre_dy, enclosing_height, enclosing_width, height, similarity, union, width
from .number import (
    add,
    arctangent,
    area_of,
    chain_one,
    exponential,
    greater,
    magnitude,
    maximum,
    multiply,
    one_minus,
    ratio,
    scale,
    shift,
    square,
    subtract,
    variable,
)


@triton.jit
def iou(p, g, eps):
    """Yu et al. 2016, UnitBox (linear form)"""
    return one_minus(similarity(p, g, eps))


@triton.jit
def giou(p, g, eps):
    """Rezatofighi et al. 2019, Generalized IoU"""
    c = area_of(enclosing_width(p, g), enclosing_height(p, g))
    return add(iou(p, g, eps), ratio(subtract(c, union(p, g)), c, eps))


@triton.jit
def diou(p, g, eps):
    """Zheng et al. 2020, Distance IoU"""
    rho2 = add(square(centre_dx(p, g)), square(centre_dy(p, g)))
    c2 = add(square(enclosing_width(p, g)), square(enclosing_height(p, g)))
    return add(iou(p, g, eps), ratio(rho2, c2, eps))


@triton.jit
def ciou(p, g, eps):
    """Zheng et al. 2020, Complete IoU; alpha is constant under differentiation"""
    turn = subtract(arctangent(width(g), height(g), eps), arctangent(width(p), height(p), eps))
    # Differentiated with respect to the turn first, which depends on many variables.
    v = square(scale(variable(turn.value, 0, 1), 0.6366197723675814))  # 2/pi
    alpha = v.value / greater(iou(p, g, eps).value + v.value, eps)
    alpha_v = scale(v, alpha)
    return add(diou(p, g, eps), chain_one(alpha_v.value, alpha_v.partials[0], turn))


@triton.jit
def eiou(p, g, eps):
    """Zhang et al. 2021, Efficient IoU"""
    width_term = ratio(square(subtract(width(p), width(g))), square(enclosing_width(p, g)), eps)
    height_term = ratio(square(subtract(height(p), height(g))), square(enclosing_height(p, g)), eps)
    return add(diou(p, g, eps), add(width_term, height_term))


@triton.jit
def siou(p, g, eps):
    """Gevorgyan 2022, SCYLLA-IoU. The angle cost 1 - 2 sin2(asin(dy/sigma) - pi/4) is sin(2 asin(dy/sigma)), which is
    rational."""
    dx, dy = centre_dx(p, g), centre_dy(p, g)
    angle_cost = ratio(scale(magnitude(multiply(dx, dy)), 2.0), add(square(dx), square(dy)), eps)
    gamma = shift(scale(angle_cost, -1.0), 2.0)
    rho_x = ratio(square(dx), square(enclosing_width(p, g)), eps)
    rho_y = ratio(square(dy), square(enclosing_height(p, g)), eps)
    distance_cost = add(saturation(multiply(gamma, rho_x)), saturation(multiply(gamma, rho_y)))
    shape_cost = add(shape_term(width(p), width(g), eps), shape_term(height(p), height(g), eps))
    return add(iou(p, g, eps), scale(add(distance_cost, shape_cost), 0.5))


@triton.jit
def saturation(x):
    """1 - e^-x"""
    return one_minus(exponential(scale(x, -1.0)))


@triton.jit
def shape_term(a, b, eps):
    """(1 - e^-omega)^4, omega = |a - b| / max(a, b)"""
    return square(square(saturation(ratio(magnitude(subtract(a, b)), maximum(a, b), eps))))


LOSSES = [iou, giou, diou, ciou, eiou, siou]
