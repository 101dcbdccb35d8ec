// What a matrix of all pairs of boxes can hold: a similarity, which is 1 - loss; containment; or a penalty. A
// function's number is its place in the list, and icr_kernels/variants.py has them in the same order.
#pragma once

#include "pair.h"

namespace {
namespace icr {

template <class Loss>
struct Similarity {
  template <class P, class Q, class S, class... N>
  ICR_INLINE static auto value(const P& p, const Q& q, S eps, N... n) {
    return S(1) - Loss::value(p, q, eps, n...);
  }
};
template <class Loss>
constexpr int parameter_count<Similarity<Loss>> = parameter_count<Loss>;

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
template <class... L>
List<Similarity<L>...> similarities_of(List<L...>);

// Those that all loops and kernels have inside, and the others, which have loops and kernels of their own.
struct CommonKinds {
  using Functions = decltype(pair_functions_of(CommonLosses{}, Penalties{}));
};
struct FurtherKinds {
  using Functions = decltype(similarities_of(FurtherLosses{}));
};

// The numbers of a function in those of a kernel.
template <class S, class T>
ICR_INLINE Numbers<S> numbers_in(const icr_kernels::PairFunction<double>& function) {
  Numbers<S> n{S(T(function.eps)), {}};
  for (int i = 0; i < icr_kernels::kMostParameters; ++i) n.parameters[i] = S(T(function.parameters[i]));
  return n;
}

// Calls f with the kinds that have the function, and its place among them.
template <class F>
auto with_kinds(int function, F f) {
  constexpr int common = count_of(CommonKinds::Functions{});
  return function < common ? f(CommonKinds{}, function) : f(FurtherKinds{}, function - common);
}

}  // namespace icr
}  // namespace
