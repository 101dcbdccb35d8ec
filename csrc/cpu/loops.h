// The loops: groups of N pairs in SIMD lanes, from rows in memory to losses, sums and gradient rows. Compiled once per
// instruction set; everything in here has internal linkage, so that no copy runs on a machine that lacks its
// instructions.
#pragma once

#include "../memory.h"
#include "../pair.h"
#include "instruction_sets.h"
#include "pack.h"

namespace {
namespace icr {

using icr_cpu::kChunk;

// `count` elements that lie one after the other. One loop per type, so that each is vectorised.
template <class T>
ICR_INLINE void convert(const void* data, Type type, int64_t first, int count, T* to) {
  if (type == Type::kHalf) {
    const auto* from = static_cast<const uint16_t*>(data) + first;
    for (int i = 0; i < count; ++i) to[i] = T(half_to_float(from[i]));
  } else if (type == Type::kBFloat16) {
    const auto* from = static_cast<const uint16_t*>(data) + first;
    for (int i = 0; i < count; ++i) to[i] = T(bfloat16_to_float(from[i]));
  } else if (type == Type::kFloat) {
    const auto* from = static_cast<const float*>(data) + first;
    for (int i = 0; i < count; ++i) to[i] = T(from[i]);
  } else {
    for (int i = 0; i < count; ++i) to[i] = element<T>(data, type, first + i);
  }
}

// How many bytes ahead of its use a row is asked for.
constexpr int64_t kPrefetch = 2048;

// Rows that lie one after the other, as T.
template <class T>
bool direct(const Rows& rows) {
  return rows.type == type_of<T> && rows.index == nullptr && rows.column_stride == 1 && rows.row_stride == 4;
}

template <class T, int N>
ICR_INLINE void load(const T* from, Pack<T, N> (&x)[4]) {
  x[0] = Pack<T, N>::load(from);
  x[1] = Pack<T, N>::load(from + N);
  x[2] = Pack<T, N>::load(from + 2 * N);
  x[3] = Pack<T, N>::load(from + 3 * N);
  rows_to_columns(x, std::make_integer_sequence<int, N>{});
}

// Rows of any kind into `buffer`, a box like any other beyond `count` and for pairs without a row. Returns which pairs
// have one.
template <class T, int N>
typename Pack<T, N>::Mask collect(const Rows& rows, int64_t first, int count, T* buffer) {
  if (rows.index == nullptr && rows.column_stride == 1 && rows.row_stride == 4 && count == N) {
    convert(rows.data, rows.type, 4 * first, 4 * N, buffer);
    return Pack<T, N>::first_lanes(N);
  }
  T found[N];
  for (int i = 0; i < N; ++i) {
    const int64_t row = i < count ? row_of(rows, first + i) : -1;
    found[i] = T(row >= 0);
    for (int c = 0; c < 4; ++c) {
      const int64_t at = row * rows.row_stride + c * rows.column_stride;
      buffer[4 * i + c] = row >= 0 ? element<T>(rows.data, rows.type, at) : T(c / 2);
    }
  }
  return Pack<T, N>::load(found) > Pack<T, N>(T(0));
}

// The coordinates of the pairs [first, first + count), one column each. Returns which pairs have a row.
template <class T, int N>
ICR_INLINE typename Pack<T, N>::Mask load_rows(const Rows& rows, bool is_direct, int64_t first, int count,
                                               Pack<T, N> (&x)[4]) {
  if (is_direct && count == N) {
    const T* from = static_cast<const T*>(rows.data) + 4 * first;
    // The processor's own prefetching stops at the end of every page.
    for (int64_t byte = 0; byte < int64_t(4 * N * sizeof(T)); byte += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(from) + kPrefetch + byte);
    }
    load(from, x);
    return Pack<T, N>::first_lanes(N);
  }
  T buffer[4 * N];
  const auto has_row = collect<T, N>(rows, first, count, buffer);
  load(buffer, x);
  return has_row;
}

// One value per pair, or `otherwise` where there are none.
template <class T, int N>
ICR_INLINE Pack<T, N> load_column(const Column& column, int64_t first, int count, T otherwise) {
  using P = Pack<T, N>;
  if (column.data == nullptr) return P(otherwise);
  if (column.stride == 0) return P(element<T>(column.data, column.type, 0));
  if (column.stride == 1 && count == N && column.type == type_of<T>) {
    return P::load(static_cast<const T*>(column.data) + first);
  }
  T buffer[N] = {};
  for (int i = 0; i < count; ++i) buffer[i] = element<T>(column.data, column.type, (first + i) * column.stride);
  return P::load(buffer);
}

// The lanes of the pairs [first, first + count) that the mask keeps.
template <class T, int N>
ICR_INLINE typename Pack<T, N>::Mask load_mask(const Column& mask, int64_t first, int count) {
  const auto lanes = Pack<T, N>::first_lanes(count);
  if (mask.data == nullptr) return lanes;
  const auto* from = static_cast<const uint8_t*>(mask.data);
  T keep[N] = {};
  if (mask.stride == 1 && count == N) {
    for (int i = 0; i < N; ++i) keep[i] = T(from[first + i]);
  } else {
    for (int i = 0; i < count; ++i) keep[i] = T(from[(first + i) * mask.stride]);
  }
  return lanes & (Pack<T, N>::load(keep) > Pack<T, N>(T(0)));
}

// Elements to memory

// `count` rows from a buffer of T into memory, rounded to its type.
template <class T>
void round_to(const RowsOut& rows, int64_t first, int64_t count, const T* buffer) {
  if (rows.type == Type::kHalf) {
    auto* to = static_cast<uint16_t*>(rows.data) + 4 * first;
    for (int64_t i = 0; i < 4 * count; ++i) to[i] = float_to_half(float(buffer[i]));
  } else if (rows.type == Type::kBFloat16) {
    auto* to = static_cast<uint16_t*>(rows.data) + 4 * first;
    for (int64_t i = 0; i < 4 * count; ++i) to[i] = float_to_bfloat16(float(buffer[i]));
  } else if (rows.type == Type::kFloat) {
    auto* to = static_cast<float*>(rows.data) + 4 * first;
    for (int64_t i = 0; i < 4 * count; ++i) to[i] = float(buffer[i]);
  } else {
    auto* to = static_cast<double*>(rows.data) + 4 * first;
    for (int64_t i = 0; i < 4 * count; ++i) to[i] = double(buffer[i]);
  }
}

template <class T, int N>
ICR_INLINE void store(T* to, const Pack<T, N> (&x)[4]) {
  x[0].store(to);
  x[1].store(to + N);
  x[2].store(to + 2 * N);
  x[3].store(to + 3 * N);
}

template <class T, int N>
ICR_INLINE void store_rows(const RowsOut& rows, int64_t first, int count, Pack<T, N> (&x)[4]) {
  columns_to_rows(x, std::make_integer_sequence<int, N>{});
  if (rows.type == type_of<T> && count == N) return store(static_cast<T*>(rows.data) + 4 * first, x);
  T buffer[4 * N];
  store(buffer, x);
  round_to(rows, first, count, buffer);
}

template <class T, int N>
ICR_INLINE void store_column(void* to, int64_t first, int count, Pack<T, N> x) {
  if (to == nullptr) return;
  T buffer[N];
  T* target = static_cast<T*>(to) + first;
  x.store(count == N ? target : buffer);
  if (count != N) memcpy(target, buffer, count * sizeof(T));
}

// All results of pairs that do not count.
template <class T>
void store_zeros(const Task& task, int64_t first, int64_t count) {
  for (void* column : {task.loss_out, task.iou_out, task.containment_out, task.penalty_out}) {
    if (column != nullptr) memset(static_cast<T*>(column) + first, 0, count * sizeof(T));
  }
  for (const RowsOut& rows : {task.grad_pred, task.grad_target, task.grad_anchor_objects}) {
    const int64_t bytes = 4 * bytes_of(rows.type);
    if (rows.data != nullptr) memset(static_cast<char*>(rows.data) + first * bytes, 0, count * bytes);
  }
}

// One group of pairs

template <class T, int N, class M>
ICR_INLINE void store_gradient(const RowsOut& rows, int64_t first, int count, BoxFormat format, bool are_corners,
                               bool keep_all, M keep, Pack<T, N> factor, const Pack<T, N> (&coordinates)[4],
                               Pack<T, N> (&gradient)[4]) {
  if (rows.data == nullptr) return;
  gradient[0] = gradient[0] * factor;
  gradient[1] = gradient[1] * factor;
  gradient[2] = gradient[2] * factor;
  gradient[3] = gradient[3] * factor;
  if (!keep_all) {
    const Pack<T, N> zero(T(0));
    gradient[0] = select(keep, gradient[0], zero);
    gradient[1] = select(keep, gradient[1], zero);
    gradient[2] = select(keep, gradient[2], zero);
    gradient[3] = select(keep, gradient[3], zero);
  }
  if (!are_corners) pull_back(coordinates, format, gradient);
  store_rows(rows, first, count, gradient);
}

// The pairs [begin, end), N at a time, with the gradients in Want: the sum of their weighted losses. An instruction set
// has one of these per set of wanted gradients; loss and penalty are chosen inside, by branches that never change
// within a task.
template <class T, int N, unsigned Want, bool AllTerms, template <class> class F>
double run_pairs(const Task& task, int64_t begin, int64_t end) {
  using P = Pack<T, N>;
  auto formula = formula_in<F<P>, T>(task.formula);
  if constexpr (is_full<F<P>>) formula.wise_mean = P(value_or(T(1), task.wise_mean, 0));
  const auto format = BoxFormat(formula.box_format);
  const P zero(T(0)), scale(T(task.scale));
  const bool direct_pred = direct<T>(task.pred), direct_target = direct<T>(task.target);
  const bool direct_anchor_objects = direct<T>(task.anchor_objects);
  double sum = 0;
  P lanes = zero;
  for (int64_t first = begin; first < end; first += N) {
    const int count = end - first < N ? int(end - first) : N;
    P pred[4], target[4], anchor[4];
    load_rows(task.pred, direct_pred, first, count, pred);
    const auto has_target = load_rows(task.target, direct_target, first, count, target);
    auto has_anchor = zero < zero;
    if (formula.penalty >= 0) {
      has_anchor = load_rows(task.anchor_objects, direct_anchor_objects, first, count, anchor);
    } else {
      anchor[0] = anchor[1] = zero;
      anchor[2] = anchor[3] = P(T(1));
    }
    const bool are_corners = format == kXYXY && !any_lane<T, N>((!icr::are_corners<T>(pred, target, anchor)).m);
    Boxes<P> boxes{box_of(pred), box_of(target), box_of(anchor)};
    if (!are_corners) boxes = {corners(pred, format), corners(target, format), corners(anchor, format)};
    const bool keep_all = !is_masked(task) && count == N;
    const auto keep = has_target & load_mask<T, N>(task.mask, first, count);
    if constexpr (is_full<F<P>>) {
      formula.per_pixel = reciprocal(load_column<T, N>(task.pixels, first, count, T(1)));
    }
    Gradients<P> gradients;
    gradients.anchor[0] = gradients.anchor[1] = gradients.anchor[2] = gradients.anchor[3] = zero;
    P factor = scale;
    if constexpr (AllTerms) {
      const Terms<P> k{load_column<T, N>(task.grad_loss, first, count, T(0)),
                       load_column<T, N>(task.grad_iou, first, count, T(0)),
                       load_column<T, N>(task.grad_containment, first, count, T(0)),
                       load_column<T, N>(task.grad_penalty, first, count, T(0))};
      const Terms<P> terms = pair_terms<Want>(formula, boxes, has_anchor, k, gradients);
      store_column(task.loss_out, first, count, select(keep, terms.loss, zero));
      store_column(task.iou_out, first, count, select(keep, terms.iou, zero));
      store_column(task.containment_out, first, count, select(keep, terms.containment, zero));
      store_column(task.penalty_out, first, count, select(keep, terms.penalty, zero));
    } else {
      const P weight = load_column<T, N>(task.weight, first, count, T(1));
      const P loss = weight * pair_loss<Want>(formula, boxes, has_anchor, gradients);
      const P kept = keep_all ? loss : select(keep, loss, zero);
      store_column(task.loss_out, first, count, kept * scale);
      lanes = lanes + kept;
      factor = factor * weight * load_column<T, N>(task.grad_loss, first, count, T(1));
    }
    if constexpr (Want & kPred)
      store_gradient(task.grad_pred, first, count, format, are_corners, keep_all, keep, factor, pred,
                     gradients.pred);
    if constexpr (Want & kTarget)
      store_gradient(task.grad_target, first, count, format, are_corners, keep_all, keep, factor, target,
                     gradients.target);
    if constexpr (Want & kAnchorObject)
      store_gradient(task.grad_anchor_objects, first, count, format, are_corners, keep_all, keep, factor, anchor,
                     gradients.anchor);
    // Few enough additions in float, then double.
    if (((first / N) & 15) == 15 || first + N >= end) {
      for (int i = 0; i < N; ++i) sum += double(lanes.v[i]);
      lanes = zero;
    }
  }
  return sum;
}

template <int N>
bool keeps_any(const Column& mask, int64_t first, int64_t end) {
  const auto* from = static_cast<const uint8_t*>(mask.data);
  uint8_t any = 0;
  for (int64_t i = first; i < first + N && i < end; ++i) any |= from[i * mask.stride];
  return any != 0;
}

// The sum of the pairs [begin, end) of which some do not count. Where N in a row do not, none of their boxes are read.
template <class T, int N, unsigned Want, bool AllTerms, template <class> class F, class Counts>
double run_those_that_count(const Task& task, int64_t begin, int64_t end, Counts any_counts) {
  double sum = 0;
  for (int64_t first = begin, next = begin; first < end; first = next) {
    const bool any = any_counts(first);
    do {
      next += N;
    } while (next < end && any_counts(next) == any);
    if (next > end) next = end;
    if (any) {
      sum += run_pairs<T, N, Want, AllTerms, F>(task, first, next);
    } else {
      store_zeros<T>(task, first, next - first);
    }
  }
  return sum;
}

// The chunks [begin, end).
template <class T, int N, unsigned Want, bool AllTerms, template <class> class F>
void run_chunks(const Task& task, double* chunk_sums, int64_t begin, int64_t end) {
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t chunk_begin = chunk * kChunk;
    const int64_t chunk_end = chunk_begin + kChunk < task.pairs ? chunk_begin + kChunk : task.pairs;
    double sum = 0;
    if (!is_masked(task)) {
      sum = run_pairs<T, N, Want, AllTerms, F>(task, chunk_begin, chunk_end);
    } else if (task.target.index == nullptr) {
      sum = run_those_that_count<T, N, Want, AllTerms, F>(
          task, chunk_begin, chunk_end, [&](int64_t first) { return keeps_any<N>(task.mask, first, chunk_end); });
    } else {
      sum = run_those_that_count<T, N, Want, AllTerms, F>(task, chunk_begin, chunk_end, [&](int64_t first) {
        bool any = false;
        for (int64_t i = first; i < first + N && i < chunk_end; ++i) any |= counts(task, i);
        return any;
      });
    }
    if (chunk_sums != nullptr) chunk_sums[chunk] = sum;
  }
}

template <class T>
void scale_rows(const Scaling& scaling, int64_t begin, int64_t end) {
  const T* gradient = static_cast<const T*>(scaling.gradient.data);
  const bool same_factor = scaling.factor.stride == 0;
  if (same_factor && scaling.out.type == type_of<T>) {
    const T factor = begin < end ? factor_of<T>(scaling, 0) : T(0);
    T* out = static_cast<T*>(scaling.out.data);
    for (int64_t i = 4 * begin; i < 4 * end; ++i) out[i] = scaled(gradient[i], factor);
    return;
  }
  constexpr int kRows = 64;
  T rows[4 * kRows];
  for (int64_t first = begin; first < end; first += kRows) {
    const int count = end - first < kRows ? int(end - first) : kRows;
    for (int i = 0; i < count; ++i) {
      const T factor = factor_of<T>(scaling, first + i);
      for (int c = 0; c < 4; ++c) rows[4 * i + c] = scaled(gradient[4 * (first + i) + c], factor);
    }
    round_to(scaling.out, first, count, rows);
  }
}

// Gradients for more boxes than are wanted are computed only where that saves a copy of the loop that few would use.
template <class T, int N, template <class> class F>
void run(const Task& task, double* chunk_sums, int64_t begin, int64_t end) {
  constexpr bool rare = sizeof(T) == sizeof(double);
  const bool pred = task.grad_pred.data != nullptr;
  const bool target = task.grad_target.data != nullptr, anchor = task.grad_anchor_objects.data != nullptr;
  const bool any = pred || target || anchor;
  if (task.terms) {
    if (any) return run_chunks<T, N, kPred | kTarget | kAnchorObject, true, F>(task, chunk_sums, begin, end);
    return run_chunks<T, N, 0, true, F>(task, chunk_sums, begin, end);
  }
  if (!any) return run_chunks<T, N, 0, false, F>(task, chunk_sums, begin, end);
  if constexpr (!rare) {
    if (!anchor && !target) return run_chunks<T, N, kPred, false, F>(task, chunk_sums, begin, end);
    if (!anchor) return run_chunks<T, N, kPred | kTarget, false, F>(task, chunk_sums, begin, end);
  }
  return run_chunks<T, N, kPred | kTarget | kAnchorObject, false, F>(task, chunk_sums, begin, end);
}

template <template <class> class F, int Floats, int Doubles>
void run_with(const Task& task, double* chunk_sums, int64_t begin, int64_t end) {
  task.in_double ? run<double, Doubles, F>(task, chunk_sums, begin, end)
                 : run<float, Floats, F>(task, chunk_sums, begin, end);
}
template <int Floats, int Doubles>
void run(const Task& task, double* chunk_sums, int64_t begin, int64_t end) {
  is_common(task.formula) ? run_with<Formula, Floats, Doubles>(task, chunk_sums, begin, end)
                          : run_with<FullFormula, Floats, Doubles>(task, chunk_sums, begin, end);
}

void scale(const Scaling& scaling, int64_t begin, int64_t end) {
  scaling.in_double ? scale_rows<double>(scaling, begin, end) : scale_rows<float>(scaling, begin, end);
}

}  // namespace icr
}  // namespace
