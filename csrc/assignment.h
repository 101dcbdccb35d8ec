// Task-aligned assignment (TOOD: Feng et al. 2021, arXiv 2108.07755): what makes a point of a dense head suit a box of the
// ground truth. Detectors compute it by single operations of PyTorch, and so every one is rounded here: nothing is fused,
// no quotient is an estimate, and the results are the same to the bit.
#pragma once

#include "box.h"
#include "memory.h"

namespace {
namespace icr {

// What this CIoU adds to heights and denominators, where the losses guard theirs.
constexpr double kOverlapEps = 1e-7;

// The image of a row of the truth; -1 where that, or its class, does not exist.
ICR_INLINE int64_t image_of(const icr_kernels::AssignmentTask& task, int64_t row) {
  const int64_t image = value_or(int64_t(-1), task.image, row), label = value_or(int64_t(-1), task.labels, row);
  return image >= 0 && image < task.images && label >= 0 && label < task.classes ? image : -1;
}

// Sides of at least so much, about the centre. A negative number leaves the box as it is; any other takes it to the
// centre and back, which may move an edge by a last bit.
template <class S>
ICR_INLINE Box<S> enlarged(const Box<S>& box, S smallest_side) {
  if (smallest_side < S(0)) return box;
  const S half(0.5), x = (box.x1 + box.x2) * half, y = (box.y1 + box.y2) * half;
  const S w = width(box) < smallest_side ? smallest_side : width(box);
  const S h = height(box) < smallest_side ? smallest_side : height(box);
  return {x - w * half, y - h * half, x + w * half, y + h * half};
}

// Whether a point is so far from each side of the box that it lies in.
template <class S>
ICR_INLINE bool is_beyond(S x, S bound, S eps) {
  return x - bound > eps;
}
template <class S>
ICR_INLINE bool contains(const Box<S>& box, S x, S y, S eps) {
  return is_beyond(x, box.x1, eps) && is_beyond(y, box.y1, eps) && is_beyond(box.x2, x, eps) &&
         is_beyond(box.y2, y, eps);
}

// The height that a box has in its area and in its angle, the arctangent of width by height.
template <class S>
ICR_INLINE S padded_height(const Box<S>& box) {
  return height(box) + S(kOverlapEps);
}
template <class S>
ICR_INLINE S padded_area(const Box<S>& box) {
  return rounded_product(width(box), padded_height(box));
}
template <class S>
ICR_INLINE S side_ratio(const Box<S>& box) {
  return width(box) / padded_height(box);
}

template <class S>
struct MeasuredBox {
  Box<S> box;
  S area, angle;
};

template <class S>
ICR_INLINE S rounded_square(S x) {
  return rounded_product(x, x);
}

// max(CIoU(g, p), 0); NaN stays NaN.
template <class S>
ICR_INLINE S overlap_of(const MeasuredBox<S>& truth, const MeasuredBox<S>& pred) {
  const S zero(0), one(1), eps(kOverlapEps), of_angles(0.40528473456935109);  // 4 / pi^2
  const Box<S>&g = truth.box, &p = pred.box;
  const S intersection = rounded_product(greater(zero, lesser(g.x2, p.x2) - greater(g.x1, p.x1)),
                                         greater(zero, lesser(g.y2, p.y2) - greater(g.y1, p.y1)));
  const S iou = intersection / (truth.area + pred.area - intersection + eps);
  const S cw = greater(g.x2, p.x2) - lesser(g.x1, p.x1), ch = greater(g.y2, p.y2) - lesser(g.y1, p.y1);
  const S c2 = rounded_square(cw) + rounded_square(ch) + eps;
  const S x = p.x1 + p.x2 - g.x1 - g.x2, y = p.y1 + p.y2 - g.y1 - g.y2;  // twice the distance of the centres
  const S rho2 = (rounded_square(x) + rounded_square(y)) * S(0.25);
  const S v = rounded_product(of_angles, rounded_square(pred.angle - truth.angle));
  const S alpha = v / (one - iou + v + eps);
  const S ciou = iou - (rho2 / c2 + rounded_product(v, alpha));
  return select(ciou <= zero, zero, ciou);
}

// Whole numbers in the order of those that are not negative, NaN above all. A number's rank is its bits.
ICR_INLINE uint32_t rank_of(float x) { return x != x ? 0x7fc00000u : bits_of(x + 0.0f); }

// A probability as the metric takes it.
ICR_INLINE float score_of(float x) { return x <= 0.0f ? 0.0f : x; }

// As it is in a tensor of that type.
ICR_INLINE float rounded_to(icr_kernels::Type type, float x) {
  if (type == icr_kernels::Type::kHalf) return half_to_float(float_to_half(x));
  if (type == icr_kernels::Type::kBFloat16) return bfloat16_to_float(float_to_bfloat16(x));
  return x;
}

}  // namespace icr
}  // namespace
