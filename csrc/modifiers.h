// What modifies a loss L that has an IoU in it: L + IoU - f(IoU), times a factor that is constant under
// differentiation.
#pragma once

#include "box.h"

namespace {
namespace icr {

using icr_kernels::FullFormula;
using icr_kernels::kFocaler;
using icr_kernels::kFocalerHigh;
using icr_kernels::kFocalerLow;
using icr_kernels::kInner;
using icr_kernels::kInnerRatio;
using icr_kernels::kWise2;
using icr_kernels::kWise3;
using icr_kernels::kWiseA;
using icr_kernels::kWiseB;

// Zhang et al. 2023, Inner-IoU (arXiv 2311.02877): of both boxes with sides `ratio` times as long about their centres.
// With that length as the unit the sides are what they were and the centres 1/ratio as far apart: nothing overflows.
template <class P, class G, class S>
ICR_INLINE auto inner_iou(const P& p, const G& g, S eps, S ratio_of_sides) {
  const S per_side = reciprocal(ratio_of_sides);
  const auto apart = overlay(p, g, eps);
  const auto dx = apart.center_dx() * (per_side - S(1));
  const auto dy = apart.center_dy() * (per_side - S(1));
  const auto beyond_target = box_with(p.x1 - g.x1 + dx, p.y1 - g.y1 + dy, p.x2 - g.x2 + dx, p.y2 - g.y2 + dy);
  return displaced_iou(beyond_target, g, eps * (per_side * per_side));
}

// Zhang and Zhang 2024, Focaler-IoU (arXiv 2401.10525): min(max((IoU - d)/(u - d), 0), 1)
template <class X, class S>
ICR_INLINE auto focaler(const X& iou, S d, S u) {
  return relu(S(1) - relu((u - iou) * reciprocal(u - d)));
}

// What a loss has more: IoU - f(IoU).
template <class P, class G, class S>
ICR_INLINE auto modification(const FullFormula<S>& formula, const P& p, const G& g, S eps) {
  const auto iou = overlay(p, g, eps).iou();
  auto counted = iou;
  if (formula.modifiers & kInner) counted = inner_iou(p, g, eps, formula.of_loss[kInnerRatio]);
  if (formula.modifiers & kFocaler) {
    counted = focaler(counted, formula.of_loss[kFocalerLow], formula.of_loss[kFocalerHigh]);
  }
  return iou - counted;
}

// Tong et al. 2023, Wise-IoU v2 and v3 (arXiv 2301.10051): beta^gamma, and beta/(delta alpha^(beta - delta)). beta says
// how much worse than the mean a pair is.
template <class S>
ICR_INLINE S wise_factor(const FullFormula<S>& formula, S iou, S eps) {
  const S beta = (S(1) - iou) * reciprocal(greater(eps, formula.wise_mean));
  const S a = formula.of_loss[kWiseA], delta = formula.of_loss[kWiseB];
  if (formula.modifiers & kWise2) return power(beta, a);
  return beta * exp((delta - beta) * a) * reciprocal(delta);
}

}  // namespace icr
}  // namespace
