"""The box-regression losses, as their papers write them, over a prediction p and a target g. The gradient is derived by
the numbers. The list at the end is all that the kernels know. After eps come the parameters of a loss, plain numbers,
in the order of icr_kernels/variants.py."""

import triton
import triton.language as tl

from .box import (
    Box,
    centre_dx,
    centre_dy,
    displaced_similarity,
    enclosing_height,
    enclosing_width,
    height,
    similarity,
    union,
    width,
)
from .number import (
    add,
    arctangent,
    area_of,
    chain_one,
    constant,
    exponential,
    greater,
    guard,
    lesser,
    literal,
    logarithm,
    magnitude,
    maximum,
    multiply,
    one_minus,
    power,
    ratio,
    root,
    scale,
    shift,
    sigmoid,
    square,
    subtract,
    variable,
    within,
)

# Beyond this the exponential of the negative is 0, and nothing depends on a number any more; its square is finite.
FAR = tl.constexpr(1e4)
# A side counts as at most so many of another one, and so does a distance: the square is finite in float32.
MOST_SIDES = tl.constexpr(1e9)


@triton.jit
def iou(p, g, eps):
    """Yu et al. 2016, UnitBox (linear form)"""
    return one_minus(similarity(p, g, eps))


@triton.jit
def giou(p, g, eps):
    """Rezatofighi et al. 2019, Generalized IoU"""
    return add(iou(p, g, eps), enclosing_term(p, g, eps))


@triton.jit
def enclosing_term(p, g, eps):
    """(C - U)/C"""
    c = area_of(enclosing_width(p, g), enclosing_height(p, g))
    return ratio(subtract(c, union(p, g)), c, eps)


@triton.jit
def diou(p, g, eps):
    """Zheng et al. 2020, Distance IoU"""
    return add(iou(p, g, eps), centre_term(p, g, eps))


@triton.jit
def centre_term(p, g, eps):
    """rho2/c2"""
    return ratio(squared_distance(p, g), squared_diagonal(p, g), eps)


@triton.jit
def squared_distance(p, g):
    """rho2, of the centres"""
    return add(square(centre_dx(p, g)), square(centre_dy(p, g)))


@triton.jit
def squared_diagonal(p, g):
    """c2, of the smallest enclosing box"""
    return add(square(enclosing_width(p, g)), square(enclosing_height(p, g)))


@triton.jit
def ciou(p, g, eps):
    """Zheng et al. 2020, Complete IoU; alpha is constant under differentiation"""
    alpha_v = aspect_term(p, g, eps)
    return add(diou(p, g, eps), alpha_v)


@triton.jit
def aspect_term(p, g, eps):
    """alpha v"""
    turn = subtract(arctangent(width(g), height(g), eps), arctangent(width(p), height(p), eps))
    # Differentiated with respect to the turn first, which depends on many variables.
    v = square(scale(variable(turn.value, 0, 1), 0.6366197723675814))  # 2/pi
    alpha = v.value / greater(iou(p, g, eps).value + v.value, eps)
    alpha_v = scale(v, alpha)
    return chain_one(alpha_v.value, alpha_v.partials[0], turn)


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
    shape_cost = add(shape_term(side_error(width(p), width(g), eps)), shape_term(side_error(height(p), height(g), eps)))
    return add(iou(p, g, eps), scale(add(distance_cost, shape_cost), 0.5))


@triton.jit
def saturation(x):
    """1 - e^-x"""
    return one_minus(exponential(scale(x, -1.0)))


@triton.jit
def side_error(a, b, eps):
    """How much two sides differ, in the longer one."""
    return ratio(magnitude(subtract(a, b)), maximum(a, b), eps)


@triton.jit
def shape_term(omega):
    """(1 - e^-omega)^4"""
    return square(square(saturation(omega)))


@triton.jit
def alpha_iou(p, g, eps, alpha):
    """He et al. 2021, Alpha-IoU, as are the next three"""
    return one_minus(power(similarity(p, g, eps), alpha))


@triton.jit
def alpha_giou(p, g, eps, alpha):
    return add(alpha_iou(p, g, eps, alpha), power(enclosing_term(p, g, eps), alpha))


@triton.jit
def alpha_diou(p, g, eps, alpha):
    return add(alpha_iou(p, g, eps, alpha), power(centre_term(p, g, eps), alpha))


@triton.jit
def alpha_ciou(p, g, eps, alpha):
    return add(alpha_diou(p, g, eps, alpha), power(aspect_term(p, g, eps), alpha))


@triton.jit
def mpdiou(p, g, eps, image_width, image_height):
    """Ma and Xu 2023, MPDIoU: by the distances of the corners"""
    first = add(square(subtract(p.x1, g.x1)), square(subtract(p.y1, g.y1)))
    second = add(square(subtract(p.x2, g.x2)), square(subtract(p.y2, g.y2)))
    of_image = image_width * image_width + image_height * image_height
    return add(iou(p, g, eps), within(scale(add(first, second), 1.0 / of_image), 1e30))


@triton.jit
def shape(p, g, eps, exponent):
    """Zhang and Zhang 2023, Shape-IoU"""
    # 2 wg^s/(wg^s + hg^s), without powers that overflow.
    lean = scale(logarithm(ratio(guard(width(g), eps), height(g), eps)), exponent)
    along_y, along_x = scale(sigmoid(lean), 2.0), scale(sigmoid(scale(lean, -1.0)), 2.0)
    c2 = squared_diagonal(p, g)
    distance_x = multiply(along_x, ratio(square(centre_dx(p, g)), c2, eps))
    distance_y = multiply(along_y, ratio(square(centre_dy(p, g)), c2, eps))
    of_width = shape_term(multiply(along_x, side_error(width(p), width(g), eps)))
    of_height = shape_term(multiply(along_y, side_error(height(p), height(g), eps)))
    return add(iou(p, g, eps), add(add(distance_x, distance_y), scale(add(of_width, of_height), 0.5)))


@triton.jit
def corner_error(p, g, eps):
    """How far the edges are from the target's, in sides of it; up to where it matters."""
    of_x = ratio(add(magnitude(subtract(p.x1, g.x1)), magnitude(subtract(p.x2, g.x2))), width(g), eps)
    of_y = ratio(add(magnitude(subtract(p.y1, g.y1)), magnitude(subtract(p.y2, g.y2))), height(g), eps)
    return within(scale(add(of_x, of_y), 0.25), FAR)


@triton.jit
def piou(p, g, eps):
    """Liu et al. 2024, Powerful-IoU"""
    return add(iou(p, g, eps), saturation(square(corner_error(p, g, eps))))


@triton.jit
def piou2(p, g, eps, attention):
    """Liu et al. 2024, Powerful-IoU v2: 3 q exp(-q2) piou"""
    q = scale(exponential(scale(corner_error(p, g, eps), -1.0)), attention)
    return multiply(multiply(scale(q, 3.0), exponential(scale(square(q), -1.0))), piou(p, g, eps))


@triton.jit
def wiou(p, g, eps):
    """Tong et al. 2023, Wise-IoU v1; c2 is constant under differentiation"""
    distance = ratio(squared_distance(p, g), constant(squared_diagonal(p, g)), eps)
    return multiply(exponential(distance), iou(p, g, eps))


@triton.jit
def interp(p, g, eps, interpolation):
    """Liu and Watanabe 2025, InterpIoU: with the IoU of a box between both"""
    rest = 1.0 - interpolation
    beyond_target = Box(
        scale(subtract(p.x1, g.x1), rest),
        scale(subtract(p.y1, g.y1), rest),
        scale(subtract(p.x2, g.x2), rest),
        scale(subtract(p.y2, g.y2), rest),
    )
    return add(iou(p, g, eps), one_minus(displaced_similarity(beyond_target, g, eps)))


@triton.jit
def sd(p, g, eps, delta, area):
    """Yang et al. 2025, scale-based dynamic loss; what depends on the size is constant under differentiation"""
    b = lesser(delta * (width(g).value * height(g).value) / area, delta)
    of_overlap, of_distance = 1.0 - delta + b, 1.0 + delta - b
    overlap = add(iou(p, g, eps), aspect_term(p, g, eps))
    return add(scale(overlap, of_overlap), scale(centre_term(p, g, eps), of_distance))


@triton.jit
def nwd(p, g, eps, unit):
    """Wang et al. 2021, normalized Wasserstein distance"""
    sides = add(square(subtract(width(p), width(g))), square(subtract(height(p), height(g))))
    return saturation(scale(root(add(squared_distance(p, g), scale(sides, 0.25))), 1.0 / unit))


@triton.jit
def gcd(p, g, eps):
    """Guan et al. 2025, Gaussian combined distance"""
    return saturation(root(scale(add(distance_in(p, p, g, eps), distance_in(g, p, g, eps)), 0.5)))


@triton.jit
def distance_in(box, p, g, eps):
    """The squared distance of p and g in sides of a box."""
    of_x = squared_share(centre_dx(p, g), width(box), eps)
    of_y = squared_share(centre_dy(p, g), height(box), eps)
    of_width = squared_share(subtract(width(p), width(g)), width(box), eps)
    of_height = squared_share(subtract(height(p), height(g)), height(box), eps)
    return add(add(of_x, of_y), scale(add(of_width, of_height), 0.25))


@triton.jit
def squared_share(distance, side, eps):
    return square(within(ratio(distance, side, eps), FAR))


@triton.jit
def kld(p, g, eps, tau):
    """Yang et al. 2021, Kullback-Leibler divergence, without rotation"""
    return of_divergence(divergence(p, g, eps), tau)


@triton.jit
def reverse_kld(p, g, eps, tau):
    """The same with the divergence of g from p"""
    return of_divergence(divergence(g, p, eps), tau)


@triton.jit
def of_divergence(x, tau):
    """1 - 1/(tau + ln(1 + x))"""
    y = shift(logarithm(shift(x, 1.0)), tau)
    return one_minus(ratio(literal(1.0, y), y, 0.0))


@triton.jit
def divergence(p, q, eps):
    """KL(P || Q) of Gaussians with the centres and half the sides of both boxes"""
    of_x = divergence_along(centre_dx(p, q), width(p), width(q), eps)
    return add(of_x, divergence_along(centre_dy(p, q), height(p), height(q), eps))


@triton.jit
def divergence_along(distance, side, other, eps):
    sides = ratio(guard(side, eps), other, eps)
    spread = subtract(scale(shift(square(within(sides, MOST_SIDES)), -1.0), 0.5), logarithm(sides))
    offset = within(ratio(scale(distance, 2.0), other, eps), MOST_SIDES)
    return add(scale(square(offset), 0.5), spread)


LOSSES = [iou, giou, diou, ciou, eiou, siou]
LOSSES += [alpha_iou, alpha_giou, alpha_diou, alpha_ciou, mpdiou, shape, piou, piou2, wiou, interp, sd]
LOSSES += [nwd, gcd, kld, reverse_kld]
