// The inter-class relational penalties, over a prediction p and its anchor object a: 0 when p lies in a. The idea is
// that of Ning and Han 2025 (arXiv 2508.14343), who describe it in words; each form is named after what it computes.
#pragma once

#include "box.h"

namespace {
namespace icr {

// 1 - |P intersected with A| / |P|
struct Containment {
  static constexpr const char* name = "containment";
  template <class P, class A, class S>
  ICR_INLINE static auto value(const P& p, const A& a, S eps) {
    return S(1) - overlay(p, a, eps).containment();
  }
};

struct Inverse {
  static constexpr const char* name = "inverse";
  static constexpr Parameter parameters[] = {{"clamp"}};
  template <class P, class A, class S>
  ICR_INLINE static auto value(const P& p, const A& a, S eps, const S* n) {
    return ratio(S(1), overlay(p, a, eps).containment(), n[0]) - S(1);
  }
};

struct Log {
  static constexpr const char* name = "log";
  static constexpr Parameter parameters[] = {{"clamp"}};
  template <class P, class A, class S>
  ICR_INLINE static auto value(const P& p, const A& a, S eps, const S* n) {
    return -logarithm(guard(overlay(p, a, eps).containment(), n[0]));
  }
};

// T / (1 + T), T how far p reaches out of a in its own sides. It moves the box and does not resize it.
struct Pull {
  static constexpr const char* name = "pull";
  template <class P, class A, class S>
  ICR_INLINE static auto value(const P& p, const A& a, S eps) {
    const auto t = overhang(p.x1, p.x2, a.x1, a.x2, eps) + overhang(p.y1, p.y2, a.y1, a.y2, eps);
    return ratio(t, S(1) + t, S(0));
  }

 private:
  // relu(|c_P - c_A| + half_P - half_A) / side_P with half_P at most half_A, in edges: |u| + v = max(v + u, v - u). So
  // it is exactly 0 for an interval that lies inside. The edges of p move with its centre, their distance is constant.
  template <class P1, class P2, class A1, class A2, class S>
  ICR_INLINE static auto overhang(const P1& p1, const P2& p2, const A1& a1, const A2& a2, S eps) {
    const auto center = (p1 + p2) * S(0.5);
    const auto off_edge = maximum(moved_by(center, p2) - a2, a1 - moved_by(center, p1));
    const auto off_center = magnitude(twice_offset(p1, p2, a1, a2) * S(0.5));
    const S length = constant(p2) - constant(p1);
    const auto fits = length <= constant(a2) - constant(a1);
    return ratio(relu(choose(fits, off_edge, off_center)), length, eps);
  }

  // The value of an edge with the derivative of the centre.
  template <class C, class E>
  ICR_INLINE static auto moved_by(const C& center, const E& edge) {
    return chain(constant(edge), One{}, center);
  }
};

struct ContainmentPull {
  static constexpr const char* name = "containment+pull";
  template <class P, class A, class S>
  ICR_INLINE static auto value(const P& p, const A& a, S eps) {
    return Containment::value(p, a, eps) + Pull::value(p, a, eps);
  }
};

using Penalties = List<Containment, Inverse, Log, Pull, ContainmentPull>;

}  // namespace icr
}  // namespace
