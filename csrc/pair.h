// The program of one pair: box loss of prediction and target plus weighted penalty of prediction and anchor object,
// with the gradient with respect to any of the three boxes. CPU lanes, CUDA threads and the single pair of the Python
// module run this same code.
#pragma once

#include "iou_losses.h"
#include "modifiers.h"
#include "penalties.h"

namespace {
namespace icr {

using icr_kernels::Formula;
using icr_kernels::kAnchorObject;
using icr_kernels::kClamp;
using icr_kernels::kEps;
using icr_kernels::kPenaltyWeight;
using icr_kernels::kPred;
using icr_kernels::kTarget;

// The formula of a task in the numbers of a kernel: of the common losses, or of all.
template <class S, class T>
ICR_INLINE void set_formula(Formula<S>& to, const FullFormula<double>& from) {
  to.loss = from.loss;
  to.penalty = from.penalty;
  to.relative = from.relative;
  to.box_format = from.box_format;
  for (int i = 0; i < icr_kernels::kNumberCount; ++i) to.numbers[i] = S(T(from.numbers[i]));
}
template <class S, class T>
ICR_INLINE void set_formula(FullFormula<S>& to, const FullFormula<double>& from) {
  set_formula<S, T>(static_cast<Formula<S>&>(to), from);
  to.modifiers = from.modifiers;
  to.per_pixel = to.wise_mean = S(T(1));
  for (int i = 0; i < icr_kernels::kLossNumberCount; ++i) to.of_loss[i] = S(T(from.of_loss[i]));
}
template <class F, class T>
ICR_INLINE F formula_in(const FullFormula<double>& formula) {
  F result;
  set_formula<decltype(result.numbers[0] + result.numbers[0]), T>(result, formula);
  return result;
}

template <class F>
constexpr bool is_full = false;
template <class S>
constexpr bool is_full<FullFormula<S>> = true;

// Whether a kernel with the common losses inside does.
inline bool is_common(const FullFormula<double>& formula) {
  return formula.loss < count_of(CommonLosses{}) && formula.modifiers == 0;
}

template <class S>
struct Boxes {
  Box<S> pred, target, anchor;
};

template <class S>
struct Terms {
  S loss, iou, containment, penalty;
};

// Gradients of the pair; those that are not wanted are not touched, nor is that of the anchor object without a penalty.
template <class S>
struct Gradients {
  S pred[4], target[4], anchor[4];
};

// Calls f with the variant of that number; the last one stands for all beyond.
template <class First, class... Rest, class F>
ICR_INLINE void visit(List<First, Rest...>, int number, F f) {
  if constexpr (sizeof...(Rest) == 0) {
    f(First{});
  } else {
    number == 0 ? f(First{}) : visit(List<Rest...>{}, number - 1, f);
  }
}

template <bool Differentiate, int First, class S>
ICR_INLINE auto maybe_variables(const Box<S>& box) {
  if constexpr (Differentiate) {
    return variables<First>(box);
  } else {
    return box;
  }
}

// The derivative of y with respect to the box at variable First, times k.
template <int First, class S, class Y>
ICR_INLINE void set_partials(const Y& y, S k, S (&gradient)[4]) {
  gradient[0] = S(k * partial<First + 0>(y));
  gradient[1] = S(k * partial<First + 1>(y));
  gradient[2] = S(k * partial<First + 2>(y));
  gradient[3] = S(k * partial<First + 3>(y));
}
template <int First, class S, class Y>
ICR_INLINE void add_partials(const Y& y, S k, S (&gradient)[4]) {
  gradient[0] = gradient[0] + k * partial<First + 0>(y);
  gradient[1] = gradient[1] + k * partial<First + 1>(y);
  gradient[2] = gradient[2] + k * partial<First + 2>(y);
  gradient[3] = gradient[3] + k * partial<First + 3>(y);
}

// The variant's value over p and q, as a function of those that a gradient is wanted for.
template <bool WantP, bool WantQ, class Variant, class S, class N>
ICR_INLINE auto evaluate(Variant variant, const Box<S>& p, const Box<S>& q, const N& n) {
  return value_at(variant, maybe_variables<WantP, 0>(p), maybe_variables<WantQ, 4>(q), n);
}

// The box loss; k times its gradient becomes that of prediction and target.
template <unsigned Want, class S>
ICR_INLINE S set_box_loss(const Formula<S>& formula, const Boxes<S>& boxes, S k, Gradients<S>& gradients) {
  S value;
  visit(CommonLosses{}, formula.loss, [&](auto loss) ICR_INLINE_LAMBDA {
    const auto y =
        evaluate<(Want & kPred) != 0, (Want & kTarget) != 0>(loss, boxes.pred, boxes.target, formula.numbers[kEps]);
    value = value_of(y);
    if constexpr ((Want & kPred) != 0) set_partials<0>(y, k, gradients.pred);
    if constexpr ((Want & kTarget) != 0) set_partials<4>(y, k, gradients.target);
  });
  return value;
}

// A parameter in pixels in the unit of the boxes.
template <int Power, class S>
ICR_INLINE S in_unit(S parameter, S per_pixel) {
  if constexpr (Power == 0) {
    return parameter;
  } else {
    return in_unit<Power - 1>(parameter, per_pixel) * per_pixel;
  }
}
template <class Loss, class S, int... I>
ICR_INLINE Numbers<S> numbers_of(const FullFormula<S>& formula, std::integer_sequence<int, I...>) {
  return {formula.numbers[kEps], {in_unit<Loss::parameters[I].power>(formula.of_loss[I], formula.per_pixel)...}};
}

// One loss of the others, by itself: k times its gradient is added.
template <unsigned Want, class Loss, class S>
ICR_APART S add_loss(Loss loss, const FullFormula<S>& formula, const Boxes<S>& boxes, S k, Gradients<S>& gradients) {
  const auto n = own_numbers(loss, numbers_of<Loss>(formula, std::make_integer_sequence<int, parameter_count<Loss>>{}));
  const auto y = evaluate<(Want & kPred) != 0, (Want & kTarget) != 0>(loss, boxes.pred, boxes.target, n);
  if constexpr ((Want & kPred) != 0) add_partials<0>(y, k, gradients.pred);
  if constexpr ((Want & kTarget) != 0) add_partials<4>(y, k, gradients.target);
  return value_of(y);
}

// What its modifiers add, likewise: k times its gradient becomes that of prediction and target.
template <unsigned Want, class S>
ICR_APART S set_modification(const FullFormula<S>& formula, const Boxes<S>& boxes, S k, Gradients<S>& gradients) {
  const auto y = modification(formula, maybe_variables<(Want & kPred) != 0, 0>(boxes.pred),
                              maybe_variables<(Want & kTarget) != 0, 4>(boxes.target), formula.numbers[kEps]);
  if constexpr ((Want & kPred) != 0) set_partials<0>(y, k, gradients.pred);
  if constexpr ((Want & kTarget) != 0) set_partials<4>(y, k, gradients.target);
  return value_of(y);
}

// The same of any loss, modified.
template <unsigned Want, class S>
ICR_INLINE S set_box_loss(const FullFormula<S>& formula, const Boxes<S>& boxes, S k, Gradients<S>& gradients) {
  constexpr unsigned want = Want & (kPred | kTarget);
  S factor(1), value(0);
  if (formula.modifiers & (kWise2 | kWise3)) {
    const S eps = formula.numbers[kEps];
    factor = wise_factor(formula, overlay(boxes.pred, boxes.target, eps).iou(), eps);
    k = k * factor;
  }
  if (formula.modifiers & (kInner | kFocaler)) {
    value = set_modification<want>(formula, boxes, k, gradients);
  } else {
    gradients.pred[0] = gradients.pred[1] = gradients.pred[2] = gradients.pred[3] = S(0);
    gradients.target[0] = gradients.target[1] = gradients.target[2] = gradients.target[3] = S(0);
  }
  visit(Losses{}, formula.loss, [&](auto loss) ICR_INLINE_LAMBDA {
    value = value + add_loss<want>(loss, formula, boxes, k, gradients);
  });
  return factor * value;
}

// The penalty before weighting; 0 where there is no anchor object. A relative one is what exceeds the target's own.
// k times its gradient is added to that of the prediction and becomes that of the anchor object.
template <unsigned Want, class S, class M>
ICR_INLINE S add_penalty(const Formula<S>& formula, const Boxes<S>& boxes, M has_anchor, S k, Gradients<S>& gradients) {
  S value;
  visit(Penalties{}, formula.penalty, [&](auto penalty) ICR_INLINE_LAMBDA {
    const auto n = own_numbers(penalty, Numbers<S>{formula.numbers[kEps], {formula.numbers[kClamp]}});
    const auto y =
        evaluate<(Want & kPred) != 0, (Want & kAnchorObject) != 0>(penalty, boxes.pred, boxes.anchor, n);
    value = value_of(y);
    M counts = has_anchor;
    if (formula.relative) {
      value = value - evaluate<false, false>(penalty, boxes.target, boxes.anchor, n);
      counts = counts & !(value <= S(0));
    }
    value = select(counts, value, S(0));
    const S k_here = select(counts, k, S(0));
    if constexpr ((Want & kPred) != 0) add_partials<0>(y, k_here, gradients.pred);
    if constexpr ((Want & kAnchorObject) != 0) set_partials<4>(y, k_here, gradients.anchor);
  });
  return value;
}

// Loops that call their loss call their penalty too.
template <unsigned Want, class S, class M>
ICR_APART S penalty_apart(const Formula<S>& formula, const Boxes<S>& boxes, M has_anchor, S k,
                          Gradients<S>& gradients) {
  return add_penalty<Want>(formula, boxes, has_anchor, k, gradients);
}
template <unsigned Want, class S, class M>
ICR_INLINE S add_penalty(const FullFormula<S>& formula, const Boxes<S>& boxes, M has_anchor, S k,
                         Gradients<S>& gradients) {
  return penalty_apart<Want & (kPred | kAnchorObject)>(static_cast<const Formula<S>&>(formula), boxes, has_anchor, k,
                                                       gradients);
}

// L(P, G) + penalty_weight * penalty(P, A), and its gradient.
template <unsigned Want, class F, class S, class M>
ICR_INLINE S pair_loss(const F& formula, const Boxes<S>& boxes, M has_anchor, Gradients<S>& gradients) {
  const S loss = set_box_loss<Want>(formula, boxes, S(1), gradients);
  if (formula.penalty < 0) return loss;
  const S weight = formula.numbers[kPenaltyWeight];
  return loss + weight * add_penalty<Want>(formula, boxes, has_anchor, weight, gradients);
}

// All terms of the pair, and the gradient of their sum, each times its coefficient.
template <unsigned Want, class F, class S, class M>
ICR_INLINE Terms<S> pair_terms(const F& formula, const Boxes<S>& boxes, M has_anchor, const Terms<S>& k,
                               Gradients<S>& gradients) {
  const S eps = formula.numbers[kEps], weight = formula.numbers[kPenaltyWeight];
  constexpr bool pred = (Want & kPred) != 0, target = (Want & kTarget) != 0, anchor = (Want & kAnchorObject) != 0;
  Terms<S> terms;
  terms.loss = set_box_loss<Want>(formula, boxes, k.loss, gradients);
  const auto iou = overlay(maybe_variables<pred, 0>(boxes.pred), maybe_variables<target, 4>(boxes.target), eps).iou();
  terms.iou = value_of(iou);
  if constexpr (pred) add_partials<0>(iou, k.iou, gradients.pred);
  if constexpr (target) add_partials<4>(iou, k.iou, gradients.target);
  terms.containment = S(1);
  terms.penalty = S(0);
  if (formula.penalty >= 0) {
    terms.penalty = add_penalty<Want>(formula, boxes, has_anchor, weight * k.loss + k.penalty, gradients);
    terms.loss = terms.loss + weight * terms.penalty;
    const auto inside =
        overlay(maybe_variables<pred, 0>(boxes.pred), maybe_variables<anchor, 4>(boxes.anchor), eps).containment();
    terms.containment = select(has_anchor, value_of(inside), S(1));
    const S k_here = select(has_anchor, k.containment, S(0));
    if constexpr (pred) add_partials<0>(inside, k_here, gradients.pred);
    if constexpr (anchor) add_partials<4>(inside, k_here, gradients.anchor);
  }
  return terms;
}

}  // namespace icr
}  // namespace
