// The loops of an assignment: which predictions overlap a box of the ground truth in whose reach their points lie. The
// predictions are in the lanes. Compiled once per instruction set, as loops.h.
#pragma once

#include <algorithm>

#include "../assignment.h"
#include "loops.h"

namespace {
namespace icr {

using icr_cpu::Grid;
using icr_cpu::Overlap;
using icr_cpu::Predictions;
using icr_cpu::TruthBox;

// The boxes of an image as columns; in the place of their angles the ratios of their sides.
template <int N>
void measure(const Rows& boxes, int format, int64_t count, const Predictions& out) {
  using P = Pack<float, N>;
  const bool is_direct = direct<float>(boxes);
  for (int64_t i = 0; i < count; i += N) {
    P x[4];
    load_rows(boxes, is_direct, i, count - i < N ? int(count - i) : N, x);
    const Box<P> box = plain_corners(x, BoxFormat(format));
    const P columns[] = {box.x1, box.y1, box.x2, box.y2, padded_area(box), side_ratio(box)};
    float* const to[] = {out.x1, out.y1, out.x2, out.y2, out.area, out.angle};
    for (int c = 0; c < 6; ++c) columns[c].store(to[c] + i);
  }
}

// Of ascending numbers, the places of those so far inside the bounds.
struct Span {
  int64_t begin, end;
};
ICR_INLINE Span inside(const float* numbers, int64_t stride, int64_t count, float low, float high, float eps) {
  // Binary search: rounding keeps the order.
  const auto first = [&](auto holds) {
    int64_t begin = 0, end = count;
    while (begin < end) {
      const int64_t middle = (begin + end) / 2;
      if (holds(numbers[middle * stride])) {
        end = middle;
      } else {
        begin = middle + 1;
      }
    }
    return begin;
  };
  return {first([&](float x) { return is_beyond(x, low, eps); }),
          first([&](float x) { return !is_beyond(high, x, eps); })};
}

// The points within reach of the box whose predictions overlap it, in their order. Returns how many there are.
template <int N>
int64_t overlaps(const Predictions& predictions, const Grid* grids, int64_t count, const TruthBox& truth, float eps,
                 Overlap* out) {
  using P = Pack<float, N>;
  const P corners[4] = {P(truth.corners[0]), P(truth.corners[1]), P(truth.corners[2]), P(truth.corners[3])};
  const MeasuredBox<P> wanted{box_of(corners), P(truth.area), P(truth.angle)};
  const Box<float> reach = box_of(truth.reach);
  Overlap* found = out;
  for (const Grid* grid = grids; grid < grids + count; ++grid) {
    const Span columns = inside(grid->x, 1, grid->width, reach.x1, reach.x2, eps);
    if (columns.begin >= columns.end) continue;
    const Span rows = inside(grid->y, grid->width, grid->height, reach.y1, reach.y2, eps);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const int64_t of_row = grid->first + row * grid->width;
      for (int64_t at = of_row + columns.begin; at < of_row + columns.end; at += N) {
        const auto lanes = [&](const float* column) { return P::load(column + at); };
        const Box<P> pred{lanes(predictions.x1), lanes(predictions.y1), lanes(predictions.x2), lanes(predictions.y2)};
        float values[N];
        overlap_of(wanted, MeasuredBox<P>{pred, lanes(predictions.area), lanes(predictions.angle)}).store(values);
        const int64_t left = of_row + columns.end - at;
        for (int lane = 0; lane < (left < N ? left : N); ++lane) {
          *found = {int32_t(at + lane), values[lane]};
          found += values[lane] != 0;
        }
      }
    }
  }
  return found - out;
}

}  // namespace icr
}  // namespace
