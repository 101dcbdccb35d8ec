// What the Hungarian matcher of a DETR minimises: the cost of a query's prediction for a target.
#pragma once

#include "pair_functions.h"

namespace {
namespace icr {

using icr_kernels::Cost;

// The cost of a task in the numbers of a kernel.
template <class S, class T = S>
ICR_INLINE Cost<S> cost_in(const Cost<double>& cost) {
  return {cost.box_format,
          cost.is_focal,
          cost.is_square,
          S(T(cost.class_weight)),
          S(T(cost.l1_weight)),
          S(T(cost.giou_weight)),
          S(T(cost.alpha)),
          S(T(cost.gamma)),
          S(T(cost.focal_eps)),
          S(T(cost.eps))};
}

// x^gamma for x in [0, 1]; the square, which nearly everyone takes, without a detour.
template <class S>
ICR_INLINE S power(S x, S gamma, bool is_square) {
  if (is_square) return x * x;
  return exp(gamma * log(greater(S(1e-30), x)));
}

// Carion et al. 2020, DETR: minus the probability of the class among all.
template <class S>
ICR_INLINE S softmax_cost(S logit, S log_normalizer) {
  return -exp(logit - log_normalizer);
}

// Zhu et al. 2021, Deformable DETR: the focal loss (Lin et al. 2017) as a positive less the one as a negative.
template <class S>
ICR_INLINE S focal_cost(const Cost<S>& cost, S logit) {
  const S one(1), zero(0);
  // The smaller of p and 1 - p keeps all its digits.
  const S e = exp(-abs(logit));
  const S larger = one / (one + e), smaller = e / (one + e);
  const auto is_likely = logit > zero;
  const S p = select(is_likely, larger, smaller), not_p = select(is_likely, smaller, larger);
  const S positive = cost.alpha * power(not_p, cost.gamma, cost.is_square) * -log(p + cost.focal_eps);
  return positive - (one - cost.alpha) * power(p, cost.gamma, cost.is_square) * -log(not_p + cost.focal_eps);
}

// Coordinates as they were given, and the corners that they stand for.
template <class S>
struct GivenBox {
  S coordinates[4];
  Box<S> box;
};

template <class S>
ICR_INLINE GivenBox<S> given(const S (&coordinates)[4], BoxFormat format) {
  return {{coordinates[0], coordinates[1], coordinates[2], coordinates[3]}, corners(coordinates, format)};
}

template <class S>
ICR_INLINE S matching_cost(const Cost<S>& cost, const GivenBox<S>& query, const GivenBox<S>& target, S logit,
                           S log_normalizer) {
  const S of_class = cost.is_focal ? focal_cost(cost, logit) : softmax_cost(logit, log_normalizer);
  S l1(0);
  for (int c = 0; c < 4; ++c) l1 = l1 + abs(query.coordinates[c] - target.coordinates[c]);
  const S giou = Similarity<GIoU>::value(query.box, target.box, cost.eps);
  return cost.class_weight * of_class + cost.l1_weight * l1 - cost.giou_weight * giou;
}

}  // namespace icr
}  // namespace
