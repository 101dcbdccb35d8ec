// What a dense head is trained by: classes by the cross-entropy of their logits, boxes by the distances of their sides
// from a point, each the mean of a distribution (Li et al. 2020, Generalized Focal Loss, arXiv 2006.04388).
#pragma once

#include "memory.h"
#include "pair.h"

namespace {
namespace icr {

using icr_kernels::DetectionFormula;
using icr_kernels::DetectionSums;
using icr_kernels::DetectionTask;
using icr_kernels::DetectionTerm;

// log(1 + exp(x)) - x target, and its derivative but for the target.
template <class S>
ICR_INLINE S cross_entropy(S x, S target) {
  return greater(S(0), x) - x * target + log1p(exp(-abs(x)));
}
template <class S>
ICR_INLINE S sigmoid(S x) {
  const S e = exp(-abs(x)), r = reciprocal(S(1) + e);
  return select(x < S(0), e * r, r);
}

// A place for a head's prediction, and how far a distance of 1 reaches from it.
template <class S>
struct Place {
  S x, y, stride;
};

// The distribution of a side, of limited logits: the probability of a bin is exp(logit - largest) / total, and the mean
// its distance. One bin is the distance itself.
template <class S>
struct Side {
  S largest, total, mean;
};
template <class S, class Logit>
ICR_INLINE Side<S> side_of(int bins, const Logit& logit) {
  Side<S> side{logit(0), S(1), S(0)};
  side.mean = side.largest;
  if (bins == 1) return side;
  for (int bin = 1; bin < bins; ++bin) side.largest = greater(side.largest, logit(bin));
  S total(0), moment(0);
  for (int bin = 0; bin < bins; ++bin) {
    const S e = exp(logit(bin) - side.largest);
    total = total + e;
    moment = moment + S(double(bin)) * e;
  }
  side.total = total;
  side.mean = moment / total;
  return side;
}

// What a point predicts: left, top, right and bottom.
template <class S>
struct Prediction {
  Side<S> sides[4];
  S corners[4];
};
template <class S, class Logit>
ICR_INLINE Prediction<S> predicted(int bins, const Place<S>& at, const Logit& logit) {
  Prediction<S> result;
  ICR_UNROLL
  for (int side = 0; side < 4; ++side) {
    result.sides[side] = side_of<S>(bins, [&](int bin) { return logit(side * bins + bin); });
    const S distance = result.sides[side].mean * at.stride, from = side % 2 == 0 ? at.x : at.y;
    result.corners[side] = side < 2 ? from - distance : from + distance;
  }
  return result;
}

// A target's distance and its share in a bin: all of it is in the two beside it.
template <class S>
ICR_INLINE S share_of_bin(S target, int bins, int bin) {
  constexpr double kLastBinMargin = 0.01;
  const S inside = lesser(S(bins - 1 - kLastBinMargin), greater(S(0), target));
  return greater(S(0), S(1) - abs(inside - S(double(bin))));
}

// A point and its target; the boxes as they are in memory.
template <class S, class M>
struct Assigned {
  Place<S> at;
  S target[4], anchor[4];
  M has_anchor;
};

template <class S>
struct PointTerms {
  S box, distribution, penalty;
};
template <class S>
ICR_INLINE PointTerms<S> operator*(const PointTerms<S>& a, const PointTerms<S>& b) {
  return {a.box * b.box, a.distribution * b.distribution, a.penalty * b.penalty};
}

// What the terms of a point count.
template <class S>
ICR_INLINE PointTerms<S> weights_of(const DetectionTask& task, S score) {
  return {score, score, task.is_uniform ? S(1) : score};
}

// The distances at which the target lies, in strides, and what an error of one counts where there are no bins.
template <class S>
struct Wanted {
  S distance[4], weight[4];
};
template <class F, class S>
ICR_INLINE Wanted<S> wanted(const DetectionFormula<S, F>& formula, const Place<S>& at, const Box<S>& target) {
  const S along_x = formula.has_size ? at.stride / formula.width : S(1);
  const S along_y = formula.has_size ? at.stride / formula.height : S(1);
  return {{(at.x - target.x1) / at.stride, (at.y - target.y1) / at.stride, (target.x2 - at.x) / at.stride,
           (target.y2 - at.y) / at.stride},
          {along_x, along_y, along_x, along_y}};
}

template <class F, class S, class M>
ICR_INLINE Boxes<S> boxes_of(const DetectionFormula<S, F>& formula, const S (&pred)[4], const Assigned<S, M>& point) {
  const auto format = BoxFormat(formula.pair.box_format);
  return {corners(pred, kXYXY), corners(point.target, format), corners(point.anchor, format)};
}

// The formula of a task in the numbers of a kernel, with boxes by F.
template <class F, class T, class S>
ICR_INLINE DetectionFormula<S, F> detection_formula_in(const DetectionTask& task) {
  DetectionFormula<S, F> formula{formula_in<F, T>(task.formula.pair), S(T(task.formula.height)),
                                 S(T(task.formula.width)), task.formula.has_size};
  return formula;
}

// What only memory knows of it.
template <class T, class S, class F>
ICR_INLINE void read_mean(const DetectionTask& task, DetectionFormula<S, F>& formula) {
  if constexpr (is_full<F>) formula.pair.wise_mean = S(value_or(T(1), task.wise_mean, 0));
}

// The terms of a point that has a target, without score and gains.
template <class F, class S, class M, class Logit>
ICR_INLINE PointTerms<S> point_terms(const DetectionFormula<S, F>& formula, int bins, const Assigned<S, M>& point,
                                     const Logit& logit) {
  const Prediction<S> prediction = predicted<S>(bins, point.at, logit);
  const Boxes<S> boxes = boxes_of(formula, prediction.corners, point);
  Gradients<S> none;
  PointTerms<S> terms{set_box_loss<0>(formula.pair, boxes, S(1), none), S(0), S(0)};
  if (formula.pair.penalty >= 0) {
    terms.penalty =
        formula.pair.numbers[kPenaltyWeight] * add_penalty<0>(formula.pair, boxes, point.has_anchor, S(1), none);
  }
  const Wanted<S> want = wanted(formula, point.at, boxes.target);
  ICR_UNROLL
  for (int s = 0; s < 4; ++s) {
    const Side<S>& side = prediction.sides[s];
    if (bins == 1) {
      terms.distribution = terms.distribution + want.weight[s] * abs(side.mean - want.distance[s]);
      continue;
    }
    const S log_total = log(side.total);
    for (int bin = 0; bin < bins; ++bin) {
      const S information = (side.largest - logit(s * bins + bin)) + log_total;
      terms.distribution = terms.distribution + share_of_bin(want.distance[s], bins, bin) * information;
    }
  }
  terms.distribution = terms.distribution * S(0.25);
  return terms;
}

// The gradient of the logits of a predicted box, given that of its corners and of its distributions: hands each to
// `store`, with its number.
template <class S, class Logit, class Extra, class Store>
ICR_INLINE void pull_back_to_logits(int bins, S stride, const Prediction<S>& prediction, const S (&of_corners)[4],
                                    const Logit& logit, Extra extra, Store store) {
  ICR_UNROLL
  for (int s = 0; s < 4; ++s) {
    const Side<S>& side = prediction.sides[s];
    const S of_distance = s < 2 ? -(of_corners[s] * stride) : of_corners[s] * stride;
    for (int bin = 0; bin < bins; ++bin) {
      const S limited_logit = logit(s * bins + bin);
      S gradient = of_distance;
      S probability(1);
      if (bins > 1) {
        probability = exp(limited_logit - side.largest) / side.total;
        gradient = of_distance * probability * (S(double(bin)) - side.mean);
      }
      gradient = gradient + extra(s, bin, probability);
      store(s * bins + bin, select(S(kCoordinateLimit) <= abs(limited_logit), S(0), gradient));
    }
  }
}

// The gradient of the sum of a point's terms, each times its coefficient.
template <class F, class S, class M, class Logit, class Store>
ICR_INLINE void point_gradient(const DetectionFormula<S, F>& formula, int bins, const Assigned<S, M>& point,
                               const PointTerms<S>& k, const Logit& logit, Store store) {
  const Prediction<S> prediction = predicted<S>(bins, point.at, logit);
  const Boxes<S> boxes = boxes_of(formula, prediction.corners, point);
  Gradients<S> gradients;
  set_box_loss<kPred>(formula.pair, boxes, k.box, gradients);
  if (formula.pair.penalty >= 0) {
    add_penalty<kPred>(formula.pair, boxes, point.has_anchor, formula.pair.numbers[kPenaltyWeight] * k.penalty,
                       gradients);
  }
  pull_back(prediction.corners, kXYXY, gradients.pred);
  const Wanted<S> want = wanted(formula, point.at, boxes.target);
  const S of_side = S(0.25) * k.distribution;
  const auto of_distribution = [&](int s, int bin, S probability) {
    if (bins > 1) return of_side * (probability - share_of_bin(want.distance[s], bins, bin));
    const S error = prediction.sides[s].mean - want.distance[s];
    return of_side * want.weight[s] * select(error < S(0), S(-1), select(S(0) < error, S(1), S(0)));
  };
  pull_back_to_logits(bins, point.at.stride, prediction, gradients.pred, logit, of_distribution, store);
}

// The terms of a task, and what they are divided by.
template <class T>
ICR_INLINE void store_terms(const DetectionTask& task, const DetectionSums& sums) {
  const double eps = task.formula.pair.numbers[kEps], at_least_one = sums.scores > 1 ? sums.scores : 1;
  const double given = value_or(task.given_normalizer, task.normalizer, 0);
  const bool is_given = task.given_normalizer > 0 || task.normalizer.data != nullptr;
  const double normalizer = is_given ? greater(eps, given) : at_least_one;
  const double pairs = sums.pairs > 1 ? sums.pairs : 1;
  static_cast<T*>(task.divisors)[0] = T(normalizer);
  static_cast<T*>(task.divisors)[1] = T(pairs);
  ICR_UNROLL
  for (int term = 0; term < icr_kernels::kTermCount; ++term) {
    const double divisor = term == icr_kernels::kPenalty && task.is_uniform ? pairs : normalizer;
    *static_cast<T*>(task.terms[term]) = T(task.gains[term] * sums.terms[term] / divisor);
  }
}

// What the gradient of a term is multiplied by; and those of a point's terms, beside what these count.
template <class T>
ICR_INLINE T factor_of_term(const DetectionTask& task, DetectionTerm term) {
  const Column& divisors = task.normalizer;
  const int64_t place = term == icr_kernels::kPenalty && task.is_uniform ? divisors.stride : 0;
  return value_or(T(0), task.upstream[term], 0) * T(task.gains[term]) / element<T>(divisors.data, divisors.type, place);
}
template <class S, class T = S>
ICR_INLINE PointTerms<S> factors_of_point(const DetectionTask& task) {
  return {S(factor_of_term<T>(task, icr_kernels::kBox)), S(factor_of_term<T>(task, icr_kernels::kDistribution)),
          S(factor_of_term<T>(task, icr_kernels::kPenalty))};
}

}  // namespace icr
}  // namespace
