// The box-regression losses, as their papers write them, over a prediction p and a target g. A loss is a type with a
// name and a formula; its gradient is derived by the number type. The list at the end is all that the kernels know.
#pragma once

#include "box.h"

namespace {
namespace icr {

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
    const auto rho2 = square(o.center_dx()) + square(o.center_dy());
    const auto c2 = square(o.enclosing_width()) + square(o.enclosing_height());
    return S(1) - o.iou() + ratio(rho2, c2, eps);
  }
};

// Zheng et al. 2020, Complete IoU; alpha is constant under differentiation
struct CIoU {
  static constexpr const char* name = "ciou";
  template <class P, class G, class S>
  ICR_INLINE static auto value(const P& p, const G& g, S eps) {
    const S iou = constant(overlay(p, g, eps).iou());
    const auto turn = arctangent(width(g), height(g), eps) - arctangent(width(p), height(p), eps);
    const auto alpha_v = composed(
        [&](auto turn) ICR_INLINE_LAMBDA {
          const auto v = square(turn * S(0.63661977236758134308));  // 2/pi
          const S alpha = ratio(constant(v), S(1) - iou + constant(v), eps);
          return v * alpha;
        },
        turn);
    return DIoU::value(p, g, eps) + alpha_v;
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
    const auto shape_cost = shape_term(width(p), width(g), eps) + shape_term(height(p), height(g), eps);
    return S(1) - o.iou() + (distance_cost + shape_cost) * S(0.5);
  }

 private:
  // (1 - e^-omega)^4, omega = |a - b| / max(a, b)
  template <class A, class B, class S>
  ICR_INLINE static auto shape_term(const A& a, const B& b, S eps) {
    const auto omega = ratio(magnitude(a - b), maximum(a, b), eps);
    return square(square(S(1) - exponential(-omega)));
  }
};

using Losses = List<IoU, GIoU, DIoU, CIoU, EIoU, SIoU>;

}  // namespace icr
}  // namespace
