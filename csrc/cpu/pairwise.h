// The loops over all pairs of two sets of boxes. The boxes of one side lie in the lanes, those of the other pass by one
// after the other. Compiled once per instruction set, as loops.h.
#pragma once

#include "../matching_cost.h"
#include "assignment.h"
#include "detection.h"

namespace {
namespace icr {

using icr_cpu::GroupRange;
using icr_cpu::kColumns;
using icr_cpu::kQueries;
using icr_cpu::kRows;
using icr_cpu::kTile;
using icr_kernels::CostTask;
using icr_kernels::kMostSelected;
using icr_kernels::PairFunction;
using icr_kernels::PairwiseTask;
using icr_kernels::SelectionTask;

template <class P>
using NumberOf = std::decay_t<decltype(P().v[0])>;
template <class P>
constexpr int lanes_of = sizeof(P) / sizeof(NumberOf<P>);

ICR_INLINE int at_most(int64_t count, int most) { return count < most ? int(count) : most; }

// The corners and areas of up to `Size` boxes, one column each; a box of no size in the lanes beyond.
template <class P, int Size>
struct Corners {
  alignas(64) NumberOf<P> c[5][Size];

  void fill(const Rows& rows, const PairFunction<double>& function, int64_t first, int count) {
    const bool is_direct = direct<NumberOf<P>>(rows);
    for (int i = 0; i < count; i += lanes_of<P>) {
      P x[4];
      load_rows(rows, is_direct, first + i, at_most(count - i, lanes_of<P>), x);
      const auto box = corners(x, BoxFormat(function.box_format));
      const P columns[5] = {box.x1, box.y1, box.x2, box.y2, area(box)};
      for (int column = 0; column < 5; ++column) columns[column].store(c[column] + i);
    }
  }
  ICR_INLINE SizedBox<P> lanes(int i) const {
    return {{P::load(c[0] + i), P::load(c[1] + i), P::load(c[2] + i), P::load(c[3] + i)}, P::load(c[4] + i)};
  }
  ICR_INLINE SizedBox<P> one(int i) const {
    return {{P(c[0][i]), P(c[1][i]), P(c[2][i]), P(c[3][i])}, P(c[4][i])};
  }
};

// A compiler may fuse a product with a sum, in one loop this way and in another that way, and the largest value of a
// row would not be the largest of the matrix. So all loops call the same copy of a formula; plain overlaps, in which
// every product is rounded, each takes into itself.
template <class Kind>
constexpr bool is_inlined = false;
template <>
constexpr bool is_inlined<Similarity<IoU>> = true;
template <>
constexpr bool is_inlined<Similarity<GIoU>> = true;
template <>
constexpr bool is_inlined<Inside> = true;

template <class Kind, class P, class N>
ICR_APART P shared_value(const Box<P>& p, const Box<P>& q, N n) {
  return value_at(Kind{}, p, q, n);
}
template <class Kind, class P, class N>
ICR_INLINE P value_of_pair(Kind kind, const SizedBox<P>& p, const SizedBox<P>& q, const N& n) {
  if constexpr (is_inlined<Kind>) {
    return value_at(kind, p, q, n);
  } else {
    return shared_value<Kind, P>(p, q, n);
  }
}

// One of the further kinds, all of which share their loops.
template <class P>
struct FurtherKind {
  template <unsigned Vars>
  using Function = Dual<P, Vars> (*)(const Box<P>&, const Box<P>&, const Numbers<P>&);

  P (*value)(const Box<P>&, const Box<P>&, const Numbers<P>&);
  Function<0x0f> by_first;
  Function<0xf0> by_second;
};
template <bool First, class Kind, class P>
ICR_APART auto value_apart(const Box<P>& p, const Box<P>& q, const Numbers<P>& n) {
  return evaluate<First, !First>(Kind{}, p, q, own_numbers(Kind{}, n));
}
template <class Kind, class P>
ICR_APART P value_apart(const Box<P>& p, const Box<P>& q, const Numbers<P>& n) {
  return value_at(Kind{}, p, q, own_numbers(Kind{}, n));
}
template <class P, class... Kinds>
FurtherKind<P> further_kind(List<Kinds...>, int place) {
  static constexpr FurtherKind<P> kinds[] = {
      {value_apart<Kinds, P>, value_apart<true, Kinds, P>, value_apart<false, Kinds, P>}...};
  return kinds[place < int(sizeof...(Kinds)) ? place : int(sizeof...(Kinds)) - 1];
}

template <class P>
ICR_INLINE const Numbers<P>& own_numbers(const FurtherKind<P>&, const Numbers<P>& n) {
  return n;
}
template <class P>
ICR_INLINE P value_of_pair(const FurtherKind<P>& kind, const SizedBox<P>& p, const SizedBox<P>& q,
                           const Numbers<P>& n) {
  return kind.value(p, q, n);
}
template <bool First, class Kind, class P, class N>
ICR_INLINE auto differentiated(Kind kind, const Box<P>& p, const Box<P>& q, const N& n) {
  return evaluate<First, !First>(kind, p, q, n);
}
template <bool First, class P>
ICR_INLINE auto differentiated(const FurtherKind<P>& kind, const Box<P>& p, const Box<P>& q, const Numbers<P>& n) {
  if constexpr (First) {
    return kind.by_first(p, q, n);
  } else {
    return kind.by_second(p, q, n);
  }
}

// Calls f with the kind at a place.
template <class Kinds, class P, class F>
ICR_INLINE void with_kind(int place, F f) {
  if constexpr (std::is_same_v<Kinds, CommonKinds>) {
    visit(typename Kinds::Functions{}, place, f);
  } else {
    f(further_kind<P>(typename Kinds::Functions{}, place));
  }
}

// The part of a matrix that a thread takes at a time.
struct Part {
  int64_t batch, row, column;
  int rows, columns;
};
ICR_INLINE Part part_of(const PairwiseTask& task, int64_t number) {
  const int64_t across = divided(task.second.count, kColumns), down = divided(task.first.count, kRows);
  const int64_t row = number / across % down * kRows, column = number % across * kColumns;
  return {number / across / down, row, column, at_most(task.first.count - row, kRows),
          at_most(task.second.count - column, kColumns)};
}

// These loops stand apart, so that those of common kinds are compiled as if there were no further ones.

template <class T, int N, class Kinds>
ICR_APART void pairwise(Kinds, int place, const PairwiseTask& task, int64_t begin, int64_t end) {
  using P = Pack<T, N>;
  const auto numbers = numbers_in<P, T>(task.function);
  Corners<P, kRows> first;
  Corners<P, kColumns> second;
  for (int64_t number = begin; number < end; ++number) {
    const Part part = part_of(task, number);
    first.fill(rows_of(task.first, part.batch), task.function, part.row, part.rows);
    second.fill(rows_of(task.second, part.batch), task.function, part.column, part.columns);
    T* const out = static_cast<T*>(task.out) +
                   (part.batch * task.first.count + part.row) * task.second.count + part.column;
    with_kind<Kinds, P>(place, [&](auto kind) {
      const auto& n = own_numbers(kind, numbers);
      for (int i = 0; i < part.rows; ++i) {
        const auto p = first.one(i);
        T* const row = out + i * task.second.count;
        int j = 0;
        for (; j + N <= part.columns; j += N) value_of_pair(kind, p, second.lanes(j), n).store(row + j);
        if (j < part.columns) store_column(row, j, part.columns - j, value_of_pair(kind, p, second.lanes(j), n));
      }
    });
  }
}

template <class T, int N>
ICR_INLINE void add_lanes(const Pack<T, N> (&x)[4], double (&total)[4]) {
  for (int c = 0; c < 4; ++c) {
    for (int i = 0; i < N; ++i) total[c] += double(x[c].v[i]);
  }
}

template <class T>
void store_gradient(const RowsOut& out, const Rows& boxes, const PairFunction<double>& function, int64_t batch,
                    int64_t count, int64_t box, const double (&total)[4]) {
  T coordinates[4], gradient[4];
  for (int c = 0; c < 4; ++c) {
    coordinates[c] = element<T>(boxes.data, boxes.type, box * boxes.row_stride + c * boxes.column_stride);
    gradient[c] = T(total[c]);
  }
  pull_back(coordinates, BoxFormat(function.box_format), gradient);
  round_to(out, batch * count + box, 1, gradient);
}

// The gradient of the first boxes [begin, end) of all batches: each sums up its row. Few enough additions in float,
// then double.
template <class T, int N, class Kinds>
ICR_APART void first_gradient(Kinds, int place, const PairwiseTask& task, int64_t begin, int64_t end) {
  using P = Pack<T, N>;
  const auto numbers = numbers_in<P, T>(task.function);
  const P zero(T(0));
  Corners<P, kRows> first;
  Corners<P, kColumns> second;
  for (int64_t at = begin; at < end;) {
    const int64_t batch = at / task.first.count, row = at % task.first.count;
    const int rows = at_most(end - at < task.first.count - row ? end - at : task.first.count - row, kRows);
    const Rows first_rows = rows_of(task.first, batch), second_rows = rows_of(task.second, batch);
    double total[kRows][4] = {};
    first.fill(first_rows, task.function, row, rows);
    for (int64_t column = 0; column < task.second.count; column += kColumns) {
      const int columns = at_most(task.second.count - column, kColumns);
      second.fill(second_rows, task.function, column, columns);
      with_kind<Kinds, P>(place, [&](auto kind) {
        const auto& n = own_numbers(kind, numbers);
        for (int i = 0; i < rows; ++i) {
          const Column upstream = row_of(task.gradient, batch, row + i, column);
          const Box<P> p = first.one(i);
          P sum[4] = {zero, zero, zero, zero};
          for (int j = 0; j < columns; j += N) {
            const int count = at_most(columns - j, N);
            const P g = select(P::first_lanes(count), load_column<T, N>(upstream, j, count, T(0)), zero);
            const auto y = differentiated<true>(kind, p, Box<P>(second.lanes(j)), n);
            add_partials<0>(y, g, sum);
          }
          add_lanes(sum, total[i]);
        }
      });
    }
    for (int i = 0; i < rows; ++i) {
      store_gradient<T>(task.grad_first, first_rows, task.function, batch, task.first.count, row + i, total[i]);
    }
    at += rows;
  }
}

// The gradient of the second boxes: each sums up its column, in its own lane.
template <class T, int N, class Kinds>
ICR_APART void second_gradient(Kinds, int place, const PairwiseTask& task, int64_t begin, int64_t end) {
  using P = Pack<T, N>;
  const auto numbers = numbers_in<P, T>(task.function);
  const P zero(T(0));
  Corners<P, kRows> first;
  Corners<P, N> second;
  for (int64_t at = begin; at < end;) {
    const int64_t batch = at / task.second.count, column = at % task.second.count;
    const int columns = at_most(end - at < task.second.count - column ? end - at : task.second.count - column, N);
    const Rows first_rows = rows_of(task.first, batch), second_rows = rows_of(task.second, batch);
    double total[N][4] = {};
    second.fill(second_rows, task.function, column, columns);
    const Box<P> q = second.lanes(0);
    for (int64_t row = 0; row < task.first.count; row += kRows) {
      const int rows = at_most(task.first.count - row, kRows);
      first.fill(first_rows, task.function, row, rows);
      P sum[4] = {zero, zero, zero, zero};
      with_kind<Kinds, P>(place, [&](auto kind) {
        const auto& n = own_numbers(kind, numbers);
        for (int i = 0; i < rows; ++i) {
          const Column upstream = row_of(task.gradient, batch, row + i, column);
          const P g = load_column<T, N>(upstream, 0, columns, T(0));
          add_partials<4>(differentiated<false>(kind, Box<P>(first.one(i)), q, n), g, sum);
        }
      });
      for (int c = 0; c < 4; ++c) {
        for (int j = 0; j < N; ++j) total[j][c] += double(sum[c].v[j]);
      }
    }
    for (int j = 0; j < columns; ++j) {
      store_gradient<T>(task.grad_second, second_rows, task.function, batch, task.second.count, column + j, total[j]);
    }
    at += columns;
  }
}

// Selection: the queries are in the lanes.

// A whole number per lane.
template <class P>
using IntegerOf = std::decay_t<decltype(typename P::Integers{}[0])>;
template <class P>
ICR_INLINE typename P::Integers integers(IntegerOf<P> x) {
  return typename P::Integers{} + x;
}
template <class P>
ICR_INLINE typename P::Integers load_integers(const IntegerOf<P>* from) {
  typename P::Integers x;
  memcpy(&x, from, sizeof(x));
  return x;
}

template <class P>
struct Candidates {
  Corners<P, kTile> corners;
  IntegerOf<P> group[kTile];
  NumberOf<P> offset[kTile];

  void fill(const SelectionTask& task, int64_t batch, int64_t first, int count) {
    corners.fill(rows_of(task.candidates, batch), task.function, first, count);
    const int64_t at = batch * task.candidates.count + first;
    if (task.candidate_group.data != nullptr) {
      for (int j = 0; j < count; ++j) group[j] = group_of(task.candidate_group, at + j);
    }
    if (task.offset.data != nullptr) {
      for (int j = 0; j < count; ++j) offset[j] = value_or(NumberOf<P>(0), task.offset, at + j);
    }
  }
};

// The queries of a block, and the best that each has found: one, or the k best in their order.
template <class P>
struct Queries {
  using T = NumberOf<P>;

  Corners<P, kQueries> corners;
  IntegerOf<P> group[kQueries];
  T at_least[kQueries];
  GroupRange groups;
  T to_exceed[kQueries];  // the best score so far, or the k-th best
  IntegerOf<P> index[kQueries];
  T scores[kQueries][kMostSelected];
  int64_t indices[kQueries][kMostSelected];

  void fill(const SelectionTask& task, int64_t batch, int64_t first, int count) {
    const T none = -std::numeric_limits<T>::infinity();
    corners.fill(rows_of(task.queries, batch), task.function, first, count);
    for (int i = 0; i < kQueries; ++i) {
      const int64_t at = batch * task.queries.count + first + i;
      const bool is_there = i < count;
      group[i] = is_there ? group_of(task.query_group, at) : -1;
      at_least[i] = is_there ? value_or(T(0), task.at_least, at) : T(0);
      if (is_there) add_group(groups, int32_t(group[i]));
      to_exceed[i] = none;
      index[i] = -1;
      for (int place = 0; place < task.k; ++place) {
        scores[i][place] = none;
        indices[i][place] = -1;
      }
    }
  }
  void insert(int query, T score, int64_t found, int k) {
    T* const of_query = scores[query];
    int64_t* const index_of = indices[query];
    int place = k - 1;
    for (; place > 0 && of_query[place - 1] < score; --place) {
      of_query[place] = of_query[place - 1];
      index_of[place] = index_of[place - 1];
    }
    of_query[place] = score;
    index_of[place] = found;
    to_exceed[query] = of_query[k - 1];
  }
  void store(const SelectionTask& task, int64_t batch, int64_t first, int count) const {
    const int each = task.k > 0 ? task.k : 1;
    const int64_t at = (batch * task.queries.count + first) * each;
    T* const values = static_cast<T*>(task.values) + at;
    for (int i = 0; i < count; ++i) {
      for (int place = 0; place < each; ++place) {
        values[i * each + place] = task.k > 0 ? scores[i][place] : to_exceed[i];
        task.indices[at + i * each + place] = task.k > 0 ? indices[i][place] : int64_t(index[i]);
      }
    }
  }
};

// The common case: every pair counts, and the largest value is the best. Of equals the first stays; NaN is never
// larger.
template <bool CandidateFirst, class Kind, class P, class N>
void pass_all(Kind kind, const Candidates<P>& candidates, int64_t first, int count, Queries<P>& queries, int i, N n) {
  const auto query = queries.corners.lanes(i);
  P best = P::load(queries.to_exceed + i);
  auto index = load_integers<P>(queries.index + i);
  auto number = integers<P>(IntegerOf<P>(first));
  for (int j = 0; j < count; ++j) {
    const auto candidate = candidates.corners.one(j);
    const P value = CandidateFirst ? value_of_pair(kind, candidate, query, n)
                                   : value_of_pair(kind, query, candidate, n);
    const auto is_better = value > best;
    best = select(is_better, value, best);
    index = is_better.m ? number : index;
    number = number + integers<P>(1);
  }
  best.store(queries.to_exceed + i);
  memcpy(queries.index + i, &index, sizeof(index));
}

// Every other case.
template <class Kind, class P, class N>
void pass_some(Kind kind, const SelectionTask& task, const Candidates<P>& candidates, int64_t first, int count,
               bool all_of_one_group, Queries<P>& queries, int i, N n) {
  constexpr int lanes = lanes_of<P>;
  const auto query = queries.corners.lanes(i);
  const P query_area = area(query), at_least = P::load(queries.at_least + i);
  const auto group = load_integers<P>(queries.group + i);
  for (int j = 0; j < count; ++j) {
    const auto candidate = candidates.corners.one(j);
    P value = task.candidate_first ? value_of_pair(kind, candidate, query, n)
                                   : value_of_pair(kind, query, candidate, n);
    if (task.offset.data != nullptr) value = value - P(candidates.offset[j]);
    auto counts = value == value;
    if (!all_of_one_group) {
      if (candidates.group[j] < 0) continue;
      counts = counts & typename P::Mask{group == integers<P>(candidates.group[j])};
    }
    if (task.larger) counts = counts & (area(candidate) > query_area);
    if (task.at_least.data != nullptr) {
      counts = counts & (at_least <= value);
      value = -area(candidate);
    }
    const auto is_better = counts & (value > P::load(queries.to_exceed + i));
    if (!any_lane<NumberOf<P>, lanes>(is_better.m)) continue;
    for (int lane = 0; lane < lanes; ++lane) {
      if (is_better.m[lane] == 0) continue;
      if (task.k > 0) {
        queries.insert(i + lane, value.v[lane], first + j, task.k);
      } else {
        queries.to_exceed[i + lane] = value.v[lane];
        queries.index[i + lane] = IntegerOf<P>(first + j);
      }
    }
  }
}

// Of a tile of candidates, the part from the first to the last whose group the queries have.
struct PartOfTile {
  int64_t first;
  int count;
  bool is_of_one_group;
};
inline PartOfTile part_of_tile(const SelectionTask& task, int64_t batch, int64_t first, int count,
                               const GroupRange& wanted) {
  const int64_t at = batch * task.candidates.count + first;
  int begin = count, end = 0;
  int counted = 0;
  for (int j = 0; j < count; ++j) {
    const int32_t group = group_of(task.candidate_group, at + j);
    if (group < wanted.first || group > wanted.last) continue;
    begin = end == 0 ? j : begin;
    end = j + 1;
    ++counted;
  }
  return {first + begin, end - begin, is_one(wanted) && counted == end - begin};
}

// The blocks of queries [begin, end) of all batches.
template <class P, class Kinds>
ICR_APART void select(Kinds, int place, const SelectionTask& task, const GroupRange* ranges, int64_t begin,
                      int64_t end) {
  constexpr int lanes = lanes_of<P>;
  const auto numbers = numbers_in<P, NumberOf<P>>(task.function);
  const int64_t blocks = divided(task.queries.count, kQueries), tiles = divided(task.candidates.count, kTile);
  const bool is_plain =
      task.k == 0 && !task.larger && task.at_least.data == nullptr && task.offset.data == nullptr;
  Candidates<P> candidates;
  Queries<P> queries;
  for (int64_t number = begin; number < end; ++number) {
    const int64_t batch = number / blocks, first_query = number % blocks * kQueries;
    const int count = at_most(task.queries.count - first_query, kQueries);
    queries.groups = {};
    queries.fill(task, batch, first_query, count);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      PartOfTile part{tile * kTile, at_most(task.candidates.count - tile * kTile, kTile), true};
      if (ranges != nullptr) {
        if (!meet(ranges[batch * tiles + tile], queries.groups)) continue;
        part = part_of_tile(task, batch, part.first, part.count, queries.groups);
        if (part.count <= 0) continue;
      }
      candidates.fill(task, batch, part.first, part.count);
      with_kind<Kinds, P>(place, [&](auto kind) {
        const auto& n = own_numbers(kind, numbers);
        for (int i = 0; i < count; i += lanes) {
          if (!is_plain || !part.is_of_one_group) {
            pass_some(kind, task, candidates, part.first, part.count, part.is_of_one_group, queries, i, n);
          } else if (task.candidate_first) {
            pass_all<true>(kind, candidates, part.first, part.count, queries, i, n);
          } else {
            pass_all<false>(kind, candidates, part.first, part.count, queries, i, n);
          }
        }
      });
    }
    queries.store(task, batch, first_query, count);
  }
}

// The targets [begin, end), each with the queries of its image.
template <class T, int N>
void cost(const CostTask& task, int64_t begin, int64_t end) {
  using P = Pack<T, N>;
  const Cost<P> weights = cost_in<P, T>(task.cost);
  const auto format = BoxFormat(weights.box_format);
  for (int64_t target = begin; target < end; ++target) {
    T* const out = static_cast<T*>(task.out) + target * task.boxes.count;
    const int64_t image = element<int64_t>(task.image.data, task.image.type, target * task.image.stride);
    const int64_t label = element<int64_t>(task.labels.data, task.labels.type, target * task.labels.stride);
    if (image < 0 || image >= task.images || label < 0 || label >= task.classes) {
      for (int64_t i = 0; i < task.boxes.count; ++i) out[i] = std::numeric_limits<T>::quiet_NaN();
      continue;
    }
    const Rows& targets = task.target_boxes;
    P coordinates[4];
    for (int c = 0; c < 4; ++c) {
      coordinates[c] =
          P(element<T>(targets.data, targets.type, target * targets.row_stride + c * targets.column_stride));
    }
    const GivenBox<P> wanted = given(coordinates, format);
    const Rows boxes = rows_of(task.boxes, image);
    const bool is_direct = direct<T>(boxes);
    Column logits = row_of(task.logits, image, 0, label);
    logits.stride = task.logits.row_stride;
    for (int64_t first = 0; first < task.boxes.count; first += N) {
      const int count = at_most(task.boxes.count - first, N);
      load_rows(boxes, is_direct, first, count, coordinates);
      const P logit = load_column<T, N>(logits, first, count, T(0));
      const P normalizer = load_column<T, N>(task.log_normalizer, image * task.boxes.count + first, count, T(0));
      store_column(out, first, count, matching_cost(weights, given(coordinates, format), wanted, logit, normalizer));
    }
  }
}

// By the numbers that a task asks for.

template <int Floats, int Doubles>
struct AllPairs {
  static void pairwise(const PairwiseTask& task, int64_t begin, int64_t end) {
    with_kinds(task.function.kind, [&](auto kinds, int place) {
      task.in_double ? icr::pairwise<double, Doubles>(kinds, place, task, begin, end)
                     : icr::pairwise<float, Floats>(kinds, place, task, begin, end);
    });
  }
  static void first_gradient(const PairwiseTask& task, int64_t begin, int64_t end) {
    with_kinds(task.function.kind, [&](auto kinds, int place) {
      task.in_double ? icr::first_gradient<double, Doubles>(kinds, place, task, begin, end)
                     : icr::first_gradient<float, Floats>(kinds, place, task, begin, end);
    });
  }
  static void second_gradient(const PairwiseTask& task, int64_t begin, int64_t end) {
    with_kinds(task.function.kind, [&](auto kinds, int place) {
      task.in_double ? icr::second_gradient<double, Doubles>(kinds, place, task, begin, end)
                     : icr::second_gradient<float, Floats>(kinds, place, task, begin, end);
    });
  }
  static void select(const SelectionTask& task, const GroupRange* ranges, int64_t begin, int64_t end) {
    with_kinds(task.function.kind, [&](auto kinds, int place) {
      task.in_double ? icr::select<Pack<double, Doubles>>(kinds, place, task, ranges, begin, end)
                     : icr::select<Pack<float, Floats>>(kinds, place, task, ranges, begin, end);
    });
  }
  static void cost(const CostTask& task, int64_t begin, int64_t end) {
    task.in_double ? icr::cost<double, Doubles>(task, begin, end) : icr::cost<float, Floats>(task, begin, end);
  }
};

// The loops of an instruction set whose registers hold so many numbers.
template <int Floats, int Doubles>
constexpr icr_cpu::InstructionSet instruction_set(const char* name) {
  using Pairs = AllPairs<Floats, Doubles>;
  return {name, run<Floats, Doubles>, scale, Pairs::pairwise, Pairs::first_gradient, Pairs::second_gradient,
          Pairs::select, Pairs::cost, measure<Floats>, overlaps<Floats>, decode<Floats, Doubles>,
          detection_sums<Floats, Doubles>, detection_gradient<Floats, Doubles>};
}

}  // namespace icr
}  // namespace
