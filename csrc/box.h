// Boxes: corners in any number type, the formats they come in, and the geometry that losses and penalties are made of.
#pragma once

#include "number.h"
#include "task.h"

namespace {
namespace icr {

enum BoxFormat { kXYXY = 0, kCXCYWH = 1, kXYWH = 2 };

// Coordinates beyond this magnitude count as this magnitude: areas then stay finite in float.
constexpr double kCoordinateLimit = 1e18;

template <class S>
ICR_INLINE S limited(S x) {
  const S limit(kCoordinateLimit);
  return lesser(limit, greater(-limit, x));
}

// Corners with x1 <= x2 and y1 <= y2. The coordinates differ in type when they are Duals of different variables.
template <class X1, class Y1 = X1, class X2 = X1, class Y2 = X1>
struct Box {
  X1 x1;
  Y1 y1;
  X2 x2;
  Y2 y2;
};

template <class X1, class Y1, class X2, class Y2>
ICR_INLINE Box<X1, Y1, X2, Y2> box_with(const X1& x1, const Y1& y1, const X2& x2, const Y2& y2) {
  return {x1, y1, x2, y2};
}

// Coordinates that are corners.
template <class S>
ICR_INLINE Box<S> box_of(const S (&c)[4]) {
  return {c[0], c[1], c[2], c[3]};
}

// The corners of four coordinates in a format, as they are: an inverted box stays one.
template <class S>
ICR_INLINE Box<S> plain_corners(const S (&c)[4], BoxFormat format) {
  const S half(0.5);
  if (format == kCXCYWH) return {c[0] - half * c[2], c[1] - half * c[3], c[0] + half * c[2], c[1] + half * c[3]};
  if (format == kXYWH) return {c[0], c[1], c[0] + c[2], c[1] + c[3]};
  return box_of(c);
}

// Those of a valid box, on which every formula may count: an inverted side becomes a side of length 0 at its first
// corner. NaN stays NaN.
template <class S>
ICR_INLINE Box<S> corners(const S (&coordinates)[4], BoxFormat format) {
  S c[4];
  for (int i = 0; i < 4; ++i) c[i] = limited(coordinates[i]);
  Box<S> box = plain_corners(c, format);
  box.x2 = greater(box.x1, box.x2);
  box.y2 = greater(box.y1, box.y2);
  return box;
}

// Where corners() and pull_back() leave rows of corners as they are: every side has some length, none is NaN, and all
// together are shorter than numbers of T are apart at the limit, so that no coordinate is beyond it.
template <class T, class S, class... More>
ICR_INLINE auto are_corners(const S (&first)[4], const More&... others) {
  const S apart(sizeof(T) == 4 ? T(0x1p36) : T(0x1p7));
  S shortest = lesser(first[2] - first[0], first[3] - first[1]);
  S together = (first[2] - first[0]) + (first[3] - first[1]);
  ((shortest = lesser(shortest, lesser(others[2] - others[0], others[3] - others[1])),
    together = together + ((others[2] - others[0]) + (others[3] - others[1]))),
   ...);
  return (S(0) < shortest) & (together < apart);
}

// The gradient with respect to corners() as one with respect to its coordinates: the transpose of its derivative. A
// side of exactly 0 is not inverted: it can grow.
template <class S>
ICR_INLINE void pull_back(const S (&coordinates)[4], BoxFormat format, S (&gradient)[4]) {
  const S limit(kCoordinateLimit), half(0.5), zero(0);
  S g[4] = {gradient[0], gradient[1], gradient[2], gradient[3]};
  for (int axis = 0; axis < 2; ++axis) {
    const S first = coordinates[axis], second = coordinates[axis + 2];
    const auto inverted = second < (format == kXYXY ? first : zero);
    g[axis] = select(inverted, g[axis] + g[axis + 2], g[axis]);
    g[axis + 2] = select(inverted, zero, g[axis + 2]);
    if (format != kXYXY) {
      const S side = format == kCXCYWH ? half * (g[axis + 2] - g[axis]) : g[axis + 2];
      g[axis] = g[axis] + g[axis + 2];
      g[axis + 2] = side;
    }
  }
  for (int i = 0; i < 4; ++i) {
    gradient[i] = select(limit <= abs(coordinates[i]), zero, g[i]);
  }
}

// The box as variables of differentiation, from variable First on.
template <int First, class S>
ICR_INLINE auto variables(const Box<S>& box) {
  return Box<Dual<S, 1u << First>, Dual<S, 2u << First>, Dual<S, 4u << First>, Dual<S, 8u << First>>{
      {box.x1, {S(1)}}, {box.y1, {S(1)}}, {box.x2, {S(1)}}, {box.y2, {S(1)}}};
}

template <class B>
ICR_INLINE auto width(const B& box) {
  return box.x2 - box.x1;
}
template <class B>
ICR_INLINE auto height(const B& box) {
  return box.y2 - box.y1;
}
template <class B>
ICR_INLINE auto area(const B& box) {
  return area_of(width(box), height(box));
}

// A box whose area is known already.
template <class S>
struct SizedBox : Box<S> {
  S size;
};
template <class S>
ICR_INLINE S area(const SizedBox<S>& box) {
  return box.size;
}

// Twice the offset between the centres of two intervals.
template <class A1, class A2, class B1, class B2>
ICR_INLINE auto twice_offset(const A1& a1, const A2& a2, const B1& b1, const B2& b2) {
  return (a1 - b1) + (a2 - b2);
}

// What two boxes share and what encloses both. Nothing that a formula does not use is computed: the compiler drops it.
template <class P, class Q, class S>
struct Overlay {
  P p;
  Q q;
  S eps;

  ICR_INLINE auto edges_x1() const { return ordered(p.x1, q.x1); }
  ICR_INLINE auto edges_y1() const { return ordered(p.y1, q.y1); }
  ICR_INLINE auto edges_x2() const { return ordered(p.x2, q.x2); }
  ICR_INLINE auto edges_y2() const { return ordered(p.y2, q.y2); }

  ICR_INLINE auto intersection() const {
    return overlap_area(edges_x2().low - edges_x1().high, edges_y2().low - edges_y1().high);
  }
  ICR_INLINE auto union_() const { return area(p) + area(q) - intersection(); }
  ICR_INLINE auto enclosing_width() const { return edges_x2().high - edges_x1().low; }
  ICR_INLINE auto enclosing_height() const { return edges_y2().high - edges_y1().low; }

  ICR_INLINE auto center_distance2() const { return square(center_dx()) + square(center_dy()); }
  ICR_INLINE auto enclosing_diagonal2() const { return square(enclosing_width()) + square(enclosing_height()); }

  ICR_INLINE auto iou() const { return ratio(intersection(), union_(), eps); }
  // |P intersected with Q| / |P|
  ICR_INLINE auto containment() const { return ratio(intersection(), area(p), eps); }

  ICR_INLINE auto center_dx() const { return twice_offset(p.x1, p.x2, q.x1, q.x2) * S(0.5); }
  ICR_INLINE auto center_dy() const { return twice_offset(p.y1, p.y2, q.y1, q.y2) * S(0.5); }
};

template <class P, class Q, class S>
ICR_INLINE Overlay<P, Q, S> overlay(const P& p, const Q& q, S eps) {
  return {p, q, eps};
}

// The IoU of q and a box whose edges lie `by` beyond its own. Which edge is inside is the sign of a difference: edges
// next to each other stay two. It is differentiated with respect to these differences and the sides first: of equal
// boxes that is exactly 0, and so is what it is multiplied by.
template <class D, class Q, class S>
ICR_INLINE auto displaced_iou(const D& by, const Q& q, S eps) {
  const auto apart = variables<0>(Box<S>{value_of(by.x1), value_of(by.y1), value_of(by.x2), value_of(by.y2)});
  const Dual<S, 1u << 4> w{value_of(width(q)), {S(1)}};
  const Dual<S, 1u << 5> h{value_of(height(q)), {S(1)}};
  const auto shared = overlap_area(w + (ordered(apart.x2, S(0)).low - ordered(apart.x1, S(0)).high),
                                   h + (ordered(apart.y2, S(0)).low - ordered(apart.y1, S(0)).high));
  const auto other = area_of(w + width(apart), h + height(apart));
  const auto iou = ratio(shared, area_of(w, h) + other - shared, eps);
  const auto along_x = chain(S(0), partial<0>(iou), by.x1, partial<2>(iou), by.x2);
  const auto along_y = chain(S(0), partial<1>(iou), by.y1, partial<3>(iou), by.y2);
  const auto along_sides = chain(S(0), partial<4>(iou), width(q), partial<5>(iou), height(q));
  return chain(value_of(iou), One{}, along_x, One{}, chain(S(0), One{}, along_y, One{}, along_sides));
}

// A list of losses or penalties; a variant's number is its place.
template <class...>
struct List {};
template <class... A, class... B>
List<A..., B...> joined(List<A...>, List<B...>);
template <class... Variants>
ICR_INLINE constexpr int count_of(List<Variants...>) {
  return int(sizeof...(Variants));
}
template <class... Variants>
ICR_INLINE constexpr auto places_of(List<Variants...>) {
  return std::make_integer_sequence<int, sizeof...(Variants)>{};
}
template <class A, class B>
using Joined = decltype(joined(A{}, B{}));

// A loss or penalty with parameters has their names, as icr_kernels/variants.py has them, and takes their numbers in
// that order, in the unit of the boxes: a length has the power 1, an area 2.
struct Parameter {
  const char* name;
  int power = 0;
};
template <class Variant, class = void>
constexpr int parameter_count = 0;
template <class Variant>
constexpr int parameter_count<Variant, std::void_t<decltype(Variant::parameters)>> =
    int(sizeof(Variant::parameters) / sizeof(Parameter));

// The numbers of a variant with parameters; one without has eps alone.
template <class S>
struct Numbers {
  S eps;
  S parameters[icr_kernels::kMostParameters];
};
template <class Variant, class S>
ICR_INLINE auto own_numbers(Variant, const Numbers<S>& n) {
  if constexpr (parameter_count<Variant> > 0) {
    return n;
  } else {
    return n.eps;
  }
}

// A variant's value over p and q, with its own numbers.
template <class Variant, class P, class Q, class S>
ICR_INLINE auto value_at(Variant, const P& p, const Q& q, S eps) {
  return Variant::value(p, q, eps);
}
template <class Variant, class P, class Q, class S>
ICR_INLINE auto value_at(Variant, const P& p, const Q& q, const Numbers<S>& n) {
  return Variant::value(p, q, n.eps, n.parameters);
}

}  // namespace icr
}  // namespace
