// The box-regression losses, as their papers write them, over a prediction p and a target g. A loss is a type with a
// name and a formula; its gradient is derived by the number type. The lists at the end are all that the kernels know.
#pragma once

#include "box.h"

namespace {
namespace icr {

// Beyond this an exponential of the negative is 0, and a square is still finite.
constexpr double kFar = 1e4;

// Yu et al. 2016, UnitBox (linear form)
struct IoU {
  static constexpr const char* name = "iou";
  template <class P, class G, class S>
  ICR_INLINE static auto value(const P& p, const G& g, S eps) {
    return S(1) - overlay(p, g, eps).iou();
  }
};

// Rezatofighi et al. 2019, Generalized IoU
struct GIoU {
  static constexpr const char* name = "giou";
  template <class P, class G, class S>
  ICR_INLINE static auto value(const P& p, const G& g, S eps) {
    const auto o = overlay(p, g, eps);
    const auto c = area_of(o.enclosing_width(), o.enclosing_height());
    return S(1) - o.iou() + ratio(c - o.union_(), c, eps);
  }
};

// Zheng et al. 2020, Distance IoU
struct DIoU {
  static constexpr const char* name = "diou";
  template <class P, class G, class S>
  ICR_INLINE static auto value(const P& p, const G& g, S eps) {
    const auto o = overlay(p, g, eps);
    const auto rho2 = o.center_distance2();
    const auto c2 = o.enclosing_diagonal2();
    return S(1) - o.iou() + ratio(rho2, c2, eps);
  }
};

// Zheng et al. 2020, Complete IoU; alpha is constant under differentiation
struct CIoU {
  static constexpr const char* name = "ciou";
  template <class P, class G, class S>
  ICR_INLINE static auto value(const P& p, const G& g, S eps) {
    const auto alpha_v = aspect(p, g, eps);
    return DIoU::value(p, g, eps) + alpha_v;
  }
  // alpha v
  template <class P, class G, class S>
  ICR_INLINE static auto aspect(const P& p, const G& g, S eps) {
    const S iou = constant(overlay(p, g, eps).iou());
    const auto turn = arctangent(width(g), height(g), eps) - arctangent(width(p), height(p), eps);
    return composed(
        [&](auto turn) ICR_INLINE_LAMBDA {
          const auto v = square(turn * S(0.63661977236758134308));  // 2/pi
          const S alpha = ratio(constant(v), S(1) - iou + constant(v), eps);
          return v * alpha;
        },
        turn);
  }
};

// Zhang et al. 2021, Efficient IoU
struct EIoU {
  static constexpr const char* name = "eiou";
  template <class P, class G, class S>
  ICR_INLINE static auto value(const P& p, const G& g, S eps) {
    const auto o = overlay(p, g, eps);
    return DIoU::value(p, g, eps) + ratio(square(width(p) - width(g)), square(o.enclosing_width()), eps) +
           ratio(square(height(p) - height(g)), square(o.enclosing_height()), eps);
  }
};

// Gevorgyan 2022, SCYLLA-IoU. The angle cost 1 - 2 sin2(asin(dy/sigma) - pi/4) is sin(2 asin(dy/sigma)), which is
// rational.
struct SIoU {
  static constexpr const char* name = "siou";
  template <class P, class G, class S>
  ICR_INLINE static auto value(const P& p, const G& g, S eps) {
    const auto o = overlay(p, g, eps);
    const auto dx = o.center_dx();
    const auto dy = o.center_dy();
    const auto angle_cost = ratio(magnitude(dx * dy) * S(2), square(dx) + square(dy), eps);
    const auto gamma = S(2) - angle_cost;
    const auto rho_x = ratio(square(dx), square(o.enclosing_width()), eps);
    const auto rho_y = ratio(square(dy), square(o.enclosing_height()), eps);
    const auto distance_cost = (S(1) - exponential(-(gamma * rho_x))) + (S(1) - exponential(-(gamma * rho_y)));
    const auto shape_cost = shape_term(side_error(width(p), width(g), eps)) +
                            shape_term(side_error(height(p), height(g), eps));
    return S(1) - o.iou() + (distance_cost + shape_cost) * S(0.5);
  }
  // |a - b| / max(a, b)
  template <class A, class B, class S>
  ICR_INLINE static auto side_error(const A& a, const B& b, S eps) {
    return ratio(magnitude(a - b), maximum(a, b), eps);
  }
  // (1 - e^-omega)^4
  template <class X>
  ICR_INLINE static auto shape_term(const X& omega) {
    using S = decltype(value_of(omega));
    return square(square(S(1) - exponential(-omega)));
  }
};

// He et al. 2021, Alpha-IoU: a power of every term
struct AlphaIoU {
  static constexpr const char* name = "alpha_iou";
  static constexpr Parameter parameters[] = {{"alpha"}};
  template <class P, class G, class S>
  ICR_INLINE static auto value(const P& p, const G& g, S eps, const S* n) {
    return S(1) - power(overlay(p, g, eps).iou(), n[0]);
  }
};

struct AlphaGIoU {
  static constexpr const char* name = "alpha_giou";
  static constexpr Parameter parameters[] = {{"alpha"}};
  template <class P, class G, class S>
  ICR_INLINE static auto value(const P& p, const G& g, S eps, const S* n) {
    const auto o = overlay(p, g, eps);
    const auto c = area_of(o.enclosing_width(), o.enclosing_height());
    return AlphaIoU::value(p, g, eps, n) + power(ratio(c - o.union_(), c, eps), n[0]);
  }
};

struct AlphaDIoU {
  static constexpr const char* name = "alpha_diou";
  static constexpr Parameter parameters[] = {{"alpha"}};
  template <class P, class G, class S>
  ICR_INLINE static auto value(const P& p, const G& g, S eps, const S* n) {
    const auto o = overlay(p, g, eps);
    return AlphaIoU::value(p, g, eps, n) + power(ratio(o.center_distance2(), o.enclosing_diagonal2(), eps), n[0]);
  }
};

struct AlphaCIoU {
  static constexpr const char* name = "alpha_ciou";
  static constexpr Parameter parameters[] = {{"alpha"}};
  template <class P, class G, class S>
  ICR_INLINE static auto value(const P& p, const G& g, S eps, const S* n) {
    return AlphaDIoU::value(p, g, eps, n) + power(CIoU::aspect(p, g, eps), n[0]);
  }
};

// Ma and Xu 2023, minimum point distance; width and height are those of the input image
struct MPDIoU {
  static constexpr const char* name = "mpdiou";
  static constexpr Parameter parameters[] = {{"width", 1}, {"height", 1}};
  template <class P, class G, class S>
  ICR_INLINE static auto value(const P& p, const G& g, S eps, const S* n) {
    const auto first = square(p.x1 - g.x1) + square(p.y1 - g.y1);
    const auto second = square(p.x2 - g.x2) + square(p.y2 - g.y2);
    const auto distance = bounded((first + second) * reciprocal(n[0] * n[0] + n[1] * n[1]), S(1e30));
    return S(1) - overlay(p, g, eps).iou() + distance;
  }
};

// Zhang and Zhang 2023, Shape-IoU. The weight of x belongs to the target's height, and that of y to its width.
struct ShapeIoU {
  static constexpr const char* name = "shape";
  static constexpr Parameter parameters[] = {{"exponent"}};
  template <class P, class G, class S>
  ICR_INLINE static auto value(const P& p, const G& g, S eps, const S* n) {
    const auto o = overlay(p, g, eps);
    const auto lean = bounded(logarithm(ratio(guard(width(g), eps), height(g), eps)) * n[0], S(40));
    const auto along_x = weight(lean);
    const auto along_y = weight(-lean);
    const auto c2 = o.enclosing_diagonal2();
    // Each part by c2 first: the derivative of a weight times a squared distance would overflow.
    const auto distance =
        along_x * ratio(square(o.center_dx()), c2, eps) + along_y * ratio(square(o.center_dy()), c2, eps);
    const auto omega_w = along_x * SIoU::side_error(width(p), width(g), eps);
    const auto omega_h = along_y * SIoU::side_error(height(p), height(g), eps);
    return S(1) - o.iou() + distance + (SIoU::shape_term(omega_w) + SIoU::shape_term(omega_h)) * S(0.5);
  }

 private:
  // 2 hg^s/(wg^s + hg^s), with x = ln (wg/hg)^s
  template <class X>
  ICR_INLINE static auto weight(const X& x) {
    using S = decltype(value_of(x));
    return ratio(S(2), S(1) + exponential(x), S(1));
  }
};

// Liu et al. 2024, Powerful-IoU
struct PIoU {
  static constexpr const char* name = "piou";
  template <class P, class G, class S>
  ICR_INLINE static auto value(const P& p, const G& g, S eps) {
    return S(1) - overlay(p, g, eps).iou() + (S(1) - exponential(-square(corner_error(p, g, eps))));
  }
  // How far the edges are from the target's, in sides of it.
  template <class P, class G, class S>
  ICR_INLINE static auto corner_error(const P& p, const G& g, S eps) {
    const auto x = ratio(magnitude(p.x1 - g.x1) + magnitude(p.x2 - g.x2), width(g), eps);
    const auto y = ratio(magnitude(p.y1 - g.y1) + magnitude(p.y2 - g.y2), height(g), eps);
    return bounded((x + y) * S(0.25), S(kFar));
  }
};

// The same, with attention to boxes of middling quality
struct PIoU2 {
  static constexpr const char* name = "piou2";
  static constexpr Parameter parameters[] = {{"attention"}};
  template <class P, class G, class S>
  ICR_INLINE static auto value(const P& p, const G& g, S eps, const S* n) {
    const auto attention = composed(
        [&](auto error) ICR_INLINE_LAMBDA {
          const auto q = exponential(-error) * n[0];
          return q * exponential(-square(q)) * S(3);
        },
        PIoU::corner_error(p, g, eps));
    return attention * PIoU::value(p, g, eps);
  }
};

// Tong et al. 2023, Wise-IoU v1; the diagonal is constant under differentiation
struct WIoU {
  static constexpr const char* name = "wiou";
  template <class P, class G, class S>
  ICR_INLINE static auto value(const P& p, const G& g, S eps) {
    const auto o = overlay(p, g, eps);
    const S c2 = constant(o.enclosing_diagonal2());
    return exponential(ratio(o.center_distance2(), c2, eps)) * (S(1) - o.iou());
  }
};

// Liu and Watanabe 2025, InterpIoU: the IoU of a box between prediction and target, too
struct InterpIoU {
  static constexpr const char* name = "interp";
  static constexpr Parameter parameters[] = {{"interpolation"}};
  template <class P, class G, class S>
  ICR_INLINE static auto value(const P& p, const G& g, S eps, const S* n) {
    const S rest = S(1) - n[0];
    const auto beyond_target = box_with((p.x1 - g.x1) * rest, (p.y1 - g.y1) * rest,
                                        (p.x2 - g.x2) * rest, (p.y2 - g.y2) * rest);
    return S(1) - overlay(p, g, eps).iou() + (S(1) - displaced_iou(beyond_target, g, eps));
  }
};

// Yang et al. 2025, scale-based dynamic loss: the smaller the target, the more its distance counts, and the less its
// overlap. The weights are constant under differentiation.
struct SDIoU {
  static constexpr const char* name = "sd";
  static constexpr Parameter parameters[] = {{"delta"}, {"area", 2}};
  template <class P, class G, class S>
  ICR_INLINE static auto value(const P& p, const G& g, S eps, const S* n) {
    const S delta = n[0], b = lesser(delta, delta * (constant(area(g)) * reciprocal(n[1])));
    const auto o = overlay(p, g, eps);
    const auto of_overlap = S(1) - o.iou() + CIoU::aspect(p, g, eps);
    const auto of_distance = ratio(o.center_distance2(), o.enclosing_diagonal2(), eps);
    return of_overlap * (S(1) - delta + b) + of_distance * (S(1) + delta - b);
  }
};

// Wang et al. 2021, normalized Wasserstein distance of Gaussians
struct NWD {
  static constexpr const char* name = "nwd";
  static constexpr Parameter parameters[] = {{"constant", 1}};
  template <class P, class G, class S>
  ICR_INLINE static auto value(const P& p, const G& g, S eps, const S* n) {
    const auto sides = square(width(p) - width(g)) + square(height(p) - height(g));
    const auto distance = root(overlay(p, g, eps).center_distance2() + sides * S(0.25));
    return S(1) - exponential(-(distance * reciprocal(n[0])));
  }
};

// Guan et al. 2025, Gaussian combined distance
struct GCD {
  static constexpr const char* name = "gcd";
  template <class P, class G, class S>
  ICR_INLINE static auto value(const P& p, const G& g, S eps) {
    return S(1) - exponential(-root((distance2(p, g, p, eps) + distance2(p, g, g, eps)) * S(0.5)));
  }

 private:
  // In sides of one of the boxes.
  template <class P, class G, class B, class S>
  ICR_INLINE static auto distance2(const P& p, const G& g, const B& of, S eps) {
    const auto o = overlay(p, g, eps);
    const auto w = width(of);
    const auto h = height(of);
    const auto along = [&](const auto& distance, const auto& side) ICR_INLINE_LAMBDA {
      return square(bounded(ratio(distance, side, eps), S(kFar)));
    };
    return along(o.center_dx(), w) + along(o.center_dy(), h) +
           (along(width(p) - width(g), w) + along(height(p) - height(g), h)) * S(0.25);
  }
};

// Yang et al. 2021, Kullback-Leibler divergence of Gaussians, of boxes that are not rotated
struct KLD {
  static constexpr const char* name = "kld";
  static constexpr Parameter parameters[] = {{"tau"}};
  template <class P, class G, class S>
  ICR_INLINE static auto value(const P& p, const G& g, S eps, const S* n) {
    return S(1) - ratio(S(1), logarithm(S(1) + divergence(p, g, eps)) + n[0], S(0.5));
  }

 private:
  // KL(P || Q)
  template <class P, class Q, class S>
  ICR_INLINE static auto divergence(const P& p, const Q& q, S eps) {
    const auto o = overlay(p, q, eps);
    const auto along = [&](const auto& distance, const auto& any_side, const auto& other) ICR_INLINE_LAMBDA {
      const S most(1e9);  // whose square is finite
      const auto side = guard(any_side, eps);
      const auto offset = bounded(ratio(distance * S(2), other, eps), most);
      const auto sides = ratio(side, other, eps);
      return square(offset) * S(0.5) + ((square(bounded(sides, most)) - S(1)) * S(0.5) - logarithm(sides));
    };
    return along(o.center_dx(), width(p), width(q)) + along(o.center_dy(), height(p), height(q));
  }
};

struct ReverseKLD {
  static constexpr const char* name = "reverse_kld";
  static constexpr Parameter parameters[] = {{"tau"}};
  template <class P, class G, class S>
  ICR_INLINE static auto value(const P& p, const G& g, S eps, const S* n) {
    return KLD::value(g, p, eps, n);
  }
};

// Every loop and kernel has the common ones inside. The further ones are functions of their own, so that another one
// changes nothing for the others.
using CommonLosses = List<IoU, GIoU, DIoU, CIoU, EIoU, SIoU>;
using FurtherLosses = List<AlphaIoU, AlphaGIoU, AlphaDIoU, AlphaCIoU, MPDIoU, ShapeIoU, PIoU, PIoU2, WIoU, InterpIoU,
                           SDIoU, NWD, GCD, KLD, ReverseKLD>;
using Losses = Joined<CommonLosses, FurtherLosses>;

}  // namespace icr
}  // namespace
