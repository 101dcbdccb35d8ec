// The loops of a dense head: its boxes, its loss and the gradients of its logits, for a part of the points of an image
// at a time. Points are in the lanes; of classes what lies side by side in memory. Compiled once per instruction set,
// as loops.h.
#pragma once

#include <stdlib.h>

#include "../detection.h"
#include "loops.h"

namespace {
namespace icr {

using icr_kernels::DecodingTask;

struct HeadPart {
  int64_t image, begin, end;
};
ICR_INLINE HeadPart head_part(const DecodingTask& head, int64_t number) {
  const int64_t parts = divided(head.points, kChunk), begin = number % parts * kChunk;
  return {number / parts, begin, begin + kChunk < head.points ? begin + kChunk : head.points};
}

// Of a column `count` numbers that follow each other.
template <class T, int N>
ICR_INLINE Pack<T, N> load_lanes(const Column& column, int64_t first, int count) {
  if (column.stride != 1 || count < N) return load_column<T, N>(column, first, count, T(0));
  if (column.type == type_of<T>) return Pack<T, N>::load(static_cast<const T*>(column.data) + first);
  T buffer[N];
  convert(column.data, column.type, first, N, buffer);
  return Pack<T, N>::load(buffer);
}

template <class T, int N>
ICR_INLINE void store_lanes(void* data, Type type, int64_t first, int64_t stride, int count, Pack<T, N> x) {
  if (stride == 1 && count == N && type == type_of<T>) return x.store(static_cast<T*>(data) + first);
  T buffer[N];
  x.store(buffer);
  for (int i = 0; i < count; ++i) store_element(data, type, first + i * stride, buffer[i]);
}

// Of the points a channel.
ICR_INLINE Column channel_of(const Matrices& logits, int64_t image, int64_t channel) {
  const Column row = row_of(logits, image, 0, channel);
  return {row.data, row.type, logits.row_stride};
}

template <class T, int N>
ICR_INLINE Place<Pack<T, N>> load_place(const DecodingTask& head, const int32_t* points) {
  T x[N], y[N], stride[N];
  for (int i = 0; i < N; ++i) {
    const Column row = row_of(head.positions, 0, points[i]);
    x[i] = element<T>(row.data, row.type, 0);
    y[i] = element<T>(row.data, row.type, row.stride);
    stride[i] = value_or(T(1), head.strides, points[i]);
  }
  using P = Pack<T, N>;
  return {P::load(x), P::load(y), P::load(stride)};
}

// How many bytes before their use those of the next points are asked for.
constexpr int64_t kAhead = 512;

// The logits of N points, limited, channel by channel. Those of points that follow each other are read side by side.
template <class T, int N>
class Logits {
 public:
  explicit Logits(const DecodingTask& head)
      : head_(head), buffer_(static_cast<T*>(malloc(sizeof(T) * 4 * head.bins * N))) {}
  ~Logits() { free(buffer_); }
  Logits(const Logits&) = delete;

  void load(int64_t image, int64_t first, int count) {
    for (int channel = 0; channel < 4 * head_.bins; ++channel) {
      const Column logits = channel_of(head_.logits, image, channel);
      // So many channels at once are more than the processor looks ahead in by itself.
      const int64_t ahead = (first * logits.stride) * bytes_of(logits.type) + kAhead;
      __builtin_prefetch(static_cast<const char*>(logits.data) + ahead);
      limited(load_lanes<T, N>(logits, first, count)).store(buffer_ + channel * N);
    }
  }
  void gather(int64_t image, const int32_t* points) {
    for (int channel = 0; channel < 4 * head_.bins; ++channel) {
      const Column logits = channel_of(head_.logits, image, channel);
      for (int i = 0; i < N; ++i) {
        buffer_[channel * N + i] = limited(element<T>(logits.data, logits.type, points[i] * logits.stride));
      }
    }
  }
  Pack<T, N> operator()(int channel) const { return Pack<T, N>::load(buffer_ + channel * N); }

 private:
  const DecodingTask& head_;
  T* const buffer_;  // no std::vector, of which another instruction set's copy might be taken
};

// N points from `first` on, the last one again where there are none left.
template <int N>
ICR_INLINE int following(int64_t first, int64_t end, int32_t (&points)[N]) {
  const int count = end - first < N ? int(end - first) : N;
  for (int i = 0; i < N; ++i) points[i] = int32_t(first + (i < count ? i : count - 1));
  return count;
}

template <class T, int N>
void decode_parts(const DecodingTask& head, int64_t begin, int64_t end) {
  using P = Pack<T, N>;
  Logits<T, N> logits(head);
  for (int64_t number = begin; number < end; ++number) {
    const HeadPart part = head_part(head, number);
    for (int64_t first = part.begin; first < part.end; first += N) {
      int32_t points[N];
      const int count = following(first, part.end, points);
      logits.load(part.image, first, count);
      const Place<P> place = load_place<T, N>(head, points);
      Prediction<P> prediction = predicted(head.bins, place, logits);
      const int64_t row = part.image * head.points + first;
      if (head.boxes != nullptr) {
        store_rows(RowsOut{head.boxes, type_of<T>}, row, count, prediction.corners);
        continue;
      }
      P of_corners[4];
      load_rows(head.grad_boxes, direct<T>(head.grad_boxes), row, count, of_corners);
      const MatricesOut& out = head.grad_logits;
      const auto none = [](int, int, P) { return P(T(0)); };
      const auto store = [&](int channel, P gradient) {
        store_lanes(out.data, out.type, place_of(out, part.image, first, channel), out.row_stride, count, gradient);
      };
      pull_back_to_logits(head.bins, place.stride, prediction, of_corners, logits, none, store);
    }
  }
}

// The points of a part: the class that each is trained towards (-1: none) with its score, and those that have a target.
template <class T, int N>
struct PartPoints {
  T label[kChunk + N], score[kChunk + N];
  int32_t with_target[kChunk + N];
  int64_t count = 0;
  double scores = 0;

  PartPoints(const DetectionTask& task, const HeadPart& part) {
    for (int64_t point = part.begin; point < part.end; ++point) {
      const int64_t i = point - part.begin, at = part.image * task.head.points + point;
      const int64_t row = named_row(task.index, at, task.rows);
      label[i] = row < 0 ? T(-1) : T(value_or(int64_t(-1), task.labels, row));
      score[i] = row < 0 ? T(0) : value_or(T(0), task.score, at);
      scores += double(score[i]);
      if (row >= 0) with_target[count++] = int32_t(point);
    }
    for (int i = 0; i < N; ++i) {
      label[part.end - part.begin + i] = T(-1), score[part.end - part.begin + i] = T(0);
      with_target[count + i] = count > 0 ? with_target[count - 1] : 0;
    }
  }
};

// Calls f with logits, targets and weights of the elements of a part, N at a time; and how many they are, the first
// point and class, and whether the lanes are points.
template <class T, int N, class F>
void over_classes(const DetectionTask& task, const HeadPart& part, const PartPoints<T, N>& points, F f) {
  using P = Pack<T, N>;
  const Matrices& logits = task.class_logits;
  const P zero(T(0));
  if (logits.row_stride < logits.column_stride) {
    for (int64_t label = 0; label < task.classes; ++label) {
      const Column channel = channel_of(logits, part.image, label);
      const P of_class{T(label)}, weight(value_or(T(1), task.class_weight, label));
      for (int64_t first = part.begin; first < part.end; first += N) {
        const int count = part.end - first < N ? int(part.end - first) : N;
        const int64_t i = first - part.begin;
        // Of the next class, which begins on another page.
        const int64_t ahead = first * channel.stride + logits.column_stride;
        __builtin_prefetch(static_cast<const char*>(channel.data) + ahead * bytes_of(channel.type));
        const P target = select(P::load(points.label + i) == of_class, P::load(points.score + i), zero);
        f(load_lanes<T, N>(channel, first, count), target, weight, count, first, label, true);
      }
    }
    return;
  }
  const P lanes = P::lane_numbers(std::make_integer_sequence<int, N>{});
  for (int64_t point = part.begin; point < part.end; ++point) {
    const Column row = row_of(logits, part.image, point);
    const P label(points.label[point - part.begin]), score(points.score[point - part.begin]);
    for (int64_t first = 0; first < task.classes; first += N) {
      const int count = task.classes - first < N ? int(task.classes - first) : N;
      const P target = select(lanes + P(T(first)) == label, score, zero);
      const P weight = load_column<T, N>(task.class_weight, first, count, T(1));
      f(load_lanes<T, N>(row, first, count), target, weight, count, point, first, false);
    }
  }
}

template <class T, int N>
double sum_of_classes(const DetectionTask& task, const HeadPart& part, const PartPoints<T, N>& points) {
  using P = Pack<T, N>;
  P lanes(T(0));
  double sum = 0;
  int added = 0;
  const auto flush = [&] {
    for (int i = 0; i < N; ++i) sum += double(lanes.v[i]);
    lanes = P(T(0));
    added = 0;
  };
  over_classes(task, part, points, [&](P logit, P target, P weight, int count, int64_t, int64_t, bool) {
    const P loss = weight * cross_entropy(limited(logit), target);
    lanes = lanes + (count == N ? loss : select(P::first_lanes(count), loss, P(T(0))));
    // Few enough additions in float, then double.
    if (++added == 16) flush();
  });
  flush();
  return sum;
}

// N points that have a target, the last one again where there are none left.
template <class T, int N>
Assigned<Pack<T, N>, typename Pack<T, N>::Mask> load_assigned(const DetectionTask& task, int64_t image,
                                                              const int32_t* points) {
  using P = Pack<T, N>;
  T target[4][N], anchor[4][N], has_anchor[N];
  for (int i = 0; i < N; ++i) {
    const int64_t row = named_row(task.index, image * task.head.points + points[i], task.rows);
    const int64_t of_anchor = named_row(task.anchor_index, row, task.rows);
    has_anchor[i] = T(of_anchor >= 0);
    for (int c = 0; c < 4; ++c) {
      const auto coordinate = [&](int64_t row) {
        return element<T>(task.truth.data, task.truth.type, row * task.truth.row_stride + c * task.truth.column_stride);
      };
      target[c][i] = coordinate(row);
      anchor[c][i] = of_anchor >= 0 ? coordinate(of_anchor) : T(c / 2);
    }
  }
  Assigned<P, typename P::Mask> result{load_place<T, N>(task.head, points), {}, {}, P::load(has_anchor) > P(T(0))};
  for (int c = 0; c < 4; ++c) result.target[c] = P::load(target[c]), result.anchor[c] = P::load(anchor[c]);
  return result;
}

// Calls f with the points of a part that have a target, N at a time: how many they are, their numbers and scores, and
// how they are assigned. Their logits are loaded.
template <class T, int N, class F>
void over_targets(const DetectionTask& task, const HeadPart& part, const PartPoints<T, N>& points, Logits<T, N>& logits,
                  F f) {
  for (int64_t first = 0; first < points.count; first += N) {
    const int32_t* const numbers = points.with_target + first;
    T score[N];
    for (int i = 0; i < N; ++i) score[i] = points.score[numbers[i] - part.begin];
    logits.gather(part.image, numbers);
    const int count = points.count - first < N ? int(points.count - first) : N;
    f(count, numbers, Pack<T, N>::load(score), load_assigned<T, N>(task, part.image, numbers));
  }
}

template <class T, int N, template <class> class F>
void sum_parts(const DetectionTask& task, int64_t begin, int64_t end, DetectionSums* sums) {
  using P = Pack<T, N>;
  auto formula = detection_formula_in<F<P>, T, P>(task);
  read_mean<T>(task, formula);
  Logits<T, N> logits(task.head);
  for (int64_t number = begin; number < end; ++number) {
    const HeadPart part = head_part(task.head, number);
    const PartPoints<T, N> points(task, part);
    DetectionSums& sum = sums[number];
    sum.scores = points.scores;
    sum.terms[icr_kernels::kClassification] = sum_of_classes(task, part, points);
    over_targets(task, part, points, logits, [&](int count, const int32_t*, P score, const auto& assigned) {
      const PointTerms<P> terms = weights_of(task, score) * point_terms(formula, task.head.bins, assigned, logits);
      const P pairs = select(assigned.has_anchor, P(T(1)), P(T(0)));
      for (int i = 0; i < count; ++i) {
        sum.terms[icr_kernels::kBox] += double(terms.box.v[i]);
        sum.terms[icr_kernels::kDistribution] += double(terms.distribution.v[i]);
        sum.terms[icr_kernels::kPenalty] += double(terms.penalty.v[i]);
        sum.pairs += double(pairs.v[i]);
      }
    });
  }
}

// Zeros for a part of the points: what lies side by side at once.
inline void clear(const MatricesOut& out, const HeadPart& part, int64_t channels) {
  const int64_t bytes = bytes_of(out.type), count = part.end - part.begin;
  char* const first = static_cast<char*>(out.data) + bytes * place_of(out, part.image, part.begin, 0);
  if (out.column_stride == 1) {
    memset(first, 0, bytes * count * channels);
    return;
  }
  for (int64_t channel = 0; channel < channels; ++channel) {
    memset(first + bytes * channel * out.column_stride, 0, bytes * count);
  }
}

template <class T, int N, template <class> class F>
void gradient_parts(const DetectionTask& task, int64_t begin, int64_t end) {
  using P = Pack<T, N>;
  auto formula = detection_formula_in<F<P>, T, P>(task);
  read_mean<T>(task, formula);
  Logits<T, N> logits(task.head);
  const auto factors = factors_of_point<P, T>(task);
  const P of_classes(factor_of_term<T>(task, icr_kernels::kClassification)), zero(T(0));
  for (int64_t number = begin; number < end; ++number) {
    const HeadPart part = head_part(task.head, number);
    const PartPoints<T, N> points(task, part);
    if (const MatricesOut& out = task.grad_class_logits; out.data != nullptr) {
      over_classes(task, part, points, [&](P logit, P target, P weight, int count, int64_t point, int64_t label,
                                           bool are_points) {
        const P gradient = (sigmoid(logit) - target) * (weight * of_classes);
        const int64_t at = place_of(out, part.image, point, label);
        store_lanes(out.data, out.type, at, are_points ? out.row_stride : out.column_stride, count,
                    select(P(T(kCoordinateLimit)) <= abs(logit), zero, gradient));
      });
    }
    const MatricesOut& out = task.head.grad_logits;
    if (out.data == nullptr) continue;
    clear(out, part, 4 * task.head.bins);
    over_targets(task, part, points, logits, [&](int count, const int32_t* numbers, P score, const auto& assigned) {
      const PointTerms<P> k = weights_of(task, score) * factors;
      point_gradient(formula, task.head.bins, assigned, k, logits, [&](int channel, P gradient) {
        for (int i = 0; i < count; ++i) {
          store_element(out.data, out.type, place_of(out, part.image, numbers[i], channel), T(gradient.v[i]));
        }
      });
    });
  }
}

template <int Floats, int Doubles>
void decode(const DecodingTask& head, int64_t begin, int64_t end) {
  head.in_double ? decode_parts<double, Doubles>(head, begin, end) : decode_parts<float, Floats>(head, begin, end);
}
template <template <class> class F, int Floats, int Doubles>
void sums_with(const DetectionTask& task, int64_t begin, int64_t end, DetectionSums* sums) {
  task.head.in_double ? sum_parts<double, Doubles, F>(task, begin, end, sums)
                      : sum_parts<float, Floats, F>(task, begin, end, sums);
}
template <int Floats, int Doubles>
void detection_sums(const DetectionTask& task, int64_t begin, int64_t end, DetectionSums* sums) {
  is_common(task.formula.pair) ? sums_with<Formula, Floats, Doubles>(task, begin, end, sums)
                               : sums_with<FullFormula, Floats, Doubles>(task, begin, end, sums);
}
template <template <class> class F, int Floats, int Doubles>
void gradient_with(const DetectionTask& task, int64_t begin, int64_t end) {
  task.head.in_double ? gradient_parts<double, Doubles, F>(task, begin, end)
                      : gradient_parts<float, Floats, F>(task, begin, end);
}
template <int Floats, int Doubles>
void detection_gradient(const DetectionTask& task, int64_t begin, int64_t end) {
  is_common(task.formula.pair) ? gradient_with<Formula, Floats, Doubles>(task, begin, end)
                               : gradient_with<FullFormula, Floats, Doubles>(task, begin, end);
}

}  // namespace icr
}  // namespace
