// What a matrix of all pairs of boxes can hold: a similarity, which is 1 - loss; containment; or a penalty. A
// function's number is its place in the list, and icr_kernels/variants.py has them in the same order.
#pragma once

#include "pair.h"

namespace {
namespace icr {

template <class Loss>
struct Similarity {
  template <class P, class Q, class S>
  ICR_INLINE static auto value(const P& p, const Q& q, S eps) {
    return S(1) - Loss::value(p, q, eps);
  }
};

// Without a detour, so that the smallest overlaps keep their order.
template <>
struct Similarity<IoU> {
  template <class P, class Q, class S>
  ICR_INLINE static auto value(const P& p, const Q& q, S eps) {
    return overlay(p, q, eps).iou();
  }
};

// |P intersected with Q| / |P|
struct Inside {
  template <class P, class Q, class S>
  ICR_INLINE static auto value(const P& p, const Q& q, S eps) {
    return overlay(p, q, eps).containment();
  }
};

template <class... L, class... P>
List<Similarity<L>..., Inside, P...> pair_functions_of(List<L...>, List<P...>);
using PairFunctions = decltype(pair_functions_of(Losses{}, Penalties{}));

}  // namespace icr
}  // namespace
