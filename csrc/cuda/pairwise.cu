// The kernels over all pairs: their matrix, what its gradient is for the boxes, the best in its rows, matching costs. A
// box is read and converted once per block, not once per pair, and waits in shared memory.
#include "pairwise.h"

#include <algorithm>

#include "../pair_functions.h"
#include "../matching_cost.h"
#include "rows.h"

namespace icr_cuda {
namespace {

using icr_kernels::BoxSet;
using icr_kernels::Column;
using icr_kernels::kMostSelected;
using icr_kernels::PairFunction;

template <class T>
__device__ icr::Box<T> load_box(const Rows& rows, int64_t row, int format) {
  T coordinates[4];
  load_row(rows, row, coordinates);
  return icr::corners(coordinates, icr::BoxFormat(format));
}

template <class T>
__device__ icr::SizedBox<T> sized(const icr::Box<T>& box) {
  return {box, icr::area(box)};
}

// The matrix

// A thread has so many columns: what it stores at once.
template <class T>
constexpr int kColumns = 16 / sizeof(T);
// For the boxes of a tile: all that its threads may have as columns, and rows.
template <class T>
constexpr int kPlaces = (kColumns<T> + 1) * kThreads;
template <class T>
struct alignas(16) Values {
  T columns[kColumns<T>];
};

// How the matrices are divided among blocks: tiles of `width` threads side by side, each of which has its columns side
// by side where rows can be stored `whole`, and otherwise `width` apart. The threads that this leaves have the same
// columns of the next rows.
struct Tiles {
  int width, rows;
  bool whole;
  int64_t across, down, count;
};

template <class T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 4 : 1)
    matrix_kernel(const __grid_constant__ PairwiseTask task, const __grid_constant__ Tiles tiles, T eps) {
  constexpr int per_thread = kColumns<T>;
  alignas(16) __shared__ icr::Box<T> boxes[kPlaces<T>];
  __shared__ T areas[kPlaces<T>];
  const int thread = int(threadIdx.x), at_once = kThreads / tiles.width, most_columns = per_thread * tiles.width;
  const int own_row = thread / tiles.width, lane = thread % tiles.width;
  const int own_column = tiles.whole ? per_thread * lane : lane, apart = tiles.whole ? 1 : tiles.width;
  const int format = task.function.box_format;
  for (int64_t tile = blockIdx.x; tile < tiles.count; tile += gridDim.x) {
    const int64_t band = tile / tiles.across, batch = band / tiles.down;
    const int64_t first_row = band % tiles.down * tiles.rows, first_column = tile % tiles.across * most_columns;
    const int64_t rows_left = task.first.count - first_row, columns_left = task.second.count - first_column;
    const int rows = rows_left < tiles.rows ? int(rows_left) : tiles.rows;
    const int columns = columns_left < most_columns ? int(columns_left) : most_columns;
    const Rows of_first = icr::rows_of(task.first, batch), of_second = icr::rows_of(task.second, batch);
    __syncthreads();  // nobody needs the boxes of the tile before
    const auto put = [&](int place, const Rows& all, int64_t number) {
      boxes[place] = load_box<T>(all, number, format);
      areas[place] = icr::area(boxes[place]);
    };
    for (int i = thread; i < rows; i += kThreads) put(i, of_first, first_row + i);
    for (int i = thread; i < columns; i += kThreads) put(tiles.rows + i, of_second, first_column + i);
    __syncthreads();
    if (own_row >= at_once || own_column >= columns) continue;
    icr::SizedBox<T> own[per_thread] = {};
    int count = 0;
#pragma unroll
    for (int c = 0; c < per_thread; ++c) {
      const int column = own_column + c * apart;
      if (column >= columns) break;
      own[c] = {boxes[tiles.rows + column], areas[tiles.rows + column]};
      ++count;
    }
    T* out = static_cast<T*>(task.out) + (batch * task.first.count + first_row + own_row) * task.second.count +
             first_column + own_column;
    icr::visit(icr::PairFunctions{}, task.function.kind, [&](auto kind) {
      for (int row = own_row; row < rows; row += at_once) {
        const icr::SizedBox<T> first = {boxes[row], areas[row]};
        Values<T> values;
#pragma unroll
        for (int c = 0; c < per_thread; ++c) values.columns[c] = kind.value(first, own[c], eps);
        if (tiles.whole) {
          *reinterpret_cast<Values<T>*>(out) = values;
        } else {
          T* to = out;
#pragma unroll
          for (int c = 0; c < per_thread; ++c) {
            if (c < count) *to = values.columns[c];
            to += apart;
          }
        }
        out += at_once * task.second.count;
      }
    });
  }
}

// Its gradient

// A block has so many `boxes`, a power of two, and divides the pairs of each among the threads that this leaves.
// Threads side by side have columns of the matrix side by side: they share a first box, or each has a second one.
template <class T, bool OfSecond>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 3 : 1)
    boxes_kernel(const __grid_constant__ PairwiseTask task, int boxes, T eps) {
  alignas(16) __shared__ icr::Box<T> others[kThreads];
  __shared__ double sums[4][kThreads];
  const BoxSet& mine = OfSecond ? task.second : task.first;
  const BoxSet& theirs = OfSecond ? task.first : task.second;
  const auto format = icr::BoxFormat(task.function.box_format);
  const int thread = int(threadIdx.x), shares = kThreads / boxes;
  const int share = OfSecond ? thread / boxes : thread % shares;
  const int to_next_share = OfSecond ? boxes : 1;
  const int64_t pieces = (mine.count + boxes - 1) / boxes;
  for (int64_t piece = blockIdx.x; piece < task.batches * pieces; piece += gridDim.x) {
    const int64_t batch = piece / pieces;
    const int64_t number = piece % pieces * boxes + (OfSecond ? thread % boxes : thread / shares);
    const bool is_there = number < mine.count;
    T coordinates[4] = {T(0), T(0), T(0), T(0)};
    if (is_there) load_row(icr::rows_of(mine, batch), number, coordinates);
    const icr::Box<T> box = icr::corners(coordinates, format);
    double total[4] = {0, 0, 0, 0};
    for (int64_t begin = 0; begin < theirs.count; begin += kThreads) {
      const int64_t left = theirs.count - begin;
      const int count = left < kThreads ? int(left) : kThreads;
      __syncthreads();  // nobody needs the others before
      if (thread < count) others[thread] = load_box<T>(icr::rows_of(theirs, batch), begin + thread, format);
      __syncthreads();
      if (!is_there) continue;
      const int64_t row = OfSecond ? begin : number, column = OfSecond ? number : begin;
      const Column gradient = icr::row_of(task.gradient, batch, row, column);
      const int64_t stride = OfSecond ? task.gradient.row_stride : task.gradient.column_stride;
      T few[4] = {T(0), T(0), T(0), T(0)};  // Few enough additions in float, then double.
      icr::visit(icr::PairFunctions{}, task.function.kind, [&](auto kind) {
        for (int i = share; i < count; i += shares) {
          const T upstream = icr::element<T>(gradient.data, gradient.type, i * stride);
          if constexpr (OfSecond) {
            icr::add_partials<4>(icr::evaluate<false, true>(kind, others[i], box, eps), upstream, few);
          } else {
            icr::add_partials<0>(icr::evaluate<true, false>(kind, box, others[i], eps), upstream, few);
          }
        }
      });
      for (int c = 0; c < 4; ++c) total[c] += double(few[c]);
    }
    for (int c = 0; c < 4; ++c) sums[c][thread] = total[c];
    for (int apart = shares / 2; apart > 0; apart /= 2) {
      __syncthreads();
      if (share >= apart) continue;
      for (int c = 0; c < 4; ++c) sums[c][thread] += sums[c][thread + apart * to_next_share];
    }
    if (is_there && share == 0) {
      T gradient[4];
      for (int c = 0; c < 4; ++c) gradient[c] = T(sums[c][thread]);
      icr::pull_back(coordinates, format, gradient);
      store_row(OfSecond ? task.grad_second : task.grad_first, batch * mine.count + number, gradient);
    }
    __syncthreads();  // nobody needs the sums
  }
}

// The best of its rows

// The lists of 256 threads with 16 candidates each would not fit into shared memory in double.
template <class T>
constexpr int kSelectionThreads = sizeof(T) == 4 ? 256 : 128;
constexpr int32_t kLargest = 0x7fffffff;

__device__ bool overlaps(const GroupRange& a, const GroupRange& b) {
  return a.smallest <= b.largest && b.smallest <= a.largest;
}

// The groups of a warp's lanes; a negative one is none.
__device__ GroupRange range_of_warp(int32_t smallest, int32_t largest) {
  return {__reduce_min_sync(kAllLanes, smallest), __reduce_max_sync(kAllLanes, largest)};
}

// A warp for each tile of candidates.
__global__ void __launch_bounds__(kThreads)
    ranges_kernel(const __grid_constant__ SelectionTask task, int tile_size, GroupRange* ranges) {
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp, warps = kThreads / kWarp;
  const int64_t count = task.candidates.count, tiles = (count + tile_size - 1) / tile_size;
  const int64_t step = int64_t(gridDim.x) * warps;
  for (int64_t tile = int64_t(blockIdx.x) * warps + warp; tile < task.batches * tiles; tile += step) {
    const int64_t batch = tile / tiles, begin = tile % tiles * tile_size;
    const int64_t end = begin + tile_size < count ? begin + tile_size : count;
    int32_t smallest = kLargest, largest = -1;
    for (int64_t candidate = begin + lane; candidate < end; candidate += kWarp) {
      const int32_t group = icr::group_of(task.candidate_group, batch * count + candidate);
      if (group >= 0 && group < smallest) smallest = group;
      if (group > largest) largest = group;
    }
    const GroupRange range = range_of_warp(smallest, largest);
    if (lane == 0) ranges[tile] = range;
  }
}

// Whether a candidate comes before another: it is better, or as good and first.
template <class T>
__device__ bool precedes(T value, int32_t index, T other_value, int32_t other_index) {
  return value > other_value || (value == other_value && index < other_index);
}

// Puts a candidate where it belongs in the thread's list of the best. Returns the value of the last one on it.
template <class T, int Most, int Threads>
__device__ T insert(T (&values)[Most][Threads], int32_t (&indices)[Most][Threads], int kept, T value, int32_t index) {
  const int mine = int(threadIdx.x);
  int at = kept - 1;
  if (precedes(value, index, values[at][mine], indices[at][mine])) {
    for (; at > 0 && precedes(value, index, values[at - 1][mine], indices[at - 1][mine]); --at) {
      values[at][mine] = values[at - 1][mine];
      indices[at][mine] = indices[at - 1][mine];
    }
    values[at][mine] = value;
    indices[at][mine] = index;
  }
  return values[kept - 1][mine];
}

// Merges the lists of the threads that share a query, of which there are `queries` side by side, two and two; then the
// first of these threads stores its row.
template <class T, int Most, int Threads>
__device__ void finish(const SelectionTask& task, T (&values)[Most][Threads], int32_t (&indices)[Most][Threads],
                       int kept, int queries, int64_t row, bool is_there) {
  const int thread = int(threadIdx.x), share = thread / queries;
  for (int apart = Threads / queries / 2; apart > 0; apart /= 2) {
    __syncthreads();
    if (share >= apart) continue;
    const int other = thread + apart * queries;
    for (int i = 0; i < kept; ++i) insert(values, indices, kept, values[i][other], indices[i][other]);
  }
  if (is_there && share == 0) {
    for (int i = 0; i < kept; ++i) {
      const T value = values[i][thread];
      static_cast<T*>(task.values)[row * kept + i] = value;
      task.indices[row * kept + i] = value == T(-INFINITY) ? -1 : indices[i][thread];
    }
  }
  __syncthreads();  // nobody needs the lists
}

// A block has so many `queries`, a power of two, and divides the candidates of each among the threads that this leaves.
// Each thread has a list of its best; those of a query are merged in the end.
template <class T, int Most>
__global__ void __launch_bounds__(kSelectionThreads<T>, sizeof(T) == 4 ? 4 : 1)
    selection_kernel(const __grid_constant__ SelectionTask task, const GroupRange* ranges, int queries, T eps) {
  constexpr int threads = kSelectionThreads<T>, warps = threads / kWarp;
  alignas(16) __shared__ icr::Box<T> boxes[threads];
  __shared__ T areas[threads], offsets[threads];
  __shared__ int32_t groups[threads];
  __shared__ T values[Most][threads];
  __shared__ int32_t indices[Most][threads];
  __shared__ int32_t first_of_warp[warps], last_of_warp[warps];
  const int thread = int(threadIdx.x), shares = threads / queries, share = thread / queries;
  const int kept = Most == 1 ? 1 : task.k;
  const int64_t candidates = task.candidates.count;
  const int tiles = int((candidates + threads - 1) / threads);
  const int format = task.function.box_format;
  const bool by_area = task.at_least.data != nullptr;
  const int64_t pieces = (task.queries.count + queries - 1) / queries;
  for (int64_t piece = blockIdx.x; piece < task.batches * pieces; piece += gridDim.x) {
    const int64_t batch = piece / pieces, number = piece % pieces * queries + thread % queries;
    const bool is_there = number < task.queries.count;
    const int64_t row = batch * task.queries.count + number;
    icr::SizedBox<T> query = {};
    int32_t group = -2;  // Equal to no candidate's.
    T at_least = T(-INFINITY), least_area = T(-1);
    if (is_there) {
      query = sized(load_box<T>(icr::rows_of(task.queries, batch), number, format));
      const int32_t its_group = icr::group_of(task.query_group, row);
      if (its_group >= 0 && query.size >= T(0)) group = its_group;  // A box with NaN has no area.
      if (task.larger) least_area = query.size;
      at_least = icr::value_or(at_least, task.at_least, row);
    }
    T threshold = T(-INFINITY);
    for (int i = 0; i < kept; ++i) {
      values[i][thread] = threshold;
      indices[i][thread] = kLargest;
    }

    // Which tiles have groups of these queries, of which each warp has all.
    int first = 0, last = tiles - 1;
    GroupRange wanted = {0, 0};
    if (ranges != nullptr) {
      wanted = range_of_warp(group >= 0 ? group : kLargest, group);
      first = tiles;
      last = -1;
      for (int tile = thread; tile < tiles; tile += threads) {
        if (!overlaps(ranges[batch * tiles + tile], wanted)) continue;
        if (last < 0) first = tile;
        last = tile;
      }
      first = __reduce_min_sync(kAllLanes, first);
      last = __reduce_max_sync(kAllLanes, last);
      if (thread % kWarp == 0) {
        first_of_warp[thread / kWarp] = first;
        last_of_warp[thread / kWarp] = last;
      }
      __syncthreads();
      for (int w = 0; w < warps; ++w) {
        if (first_of_warp[w] < first) first = first_of_warp[w];
        if (last_of_warp[w] > last) last = last_of_warp[w];
      }
    }

    for (int tile = first; tile <= last; ++tile) {
      if (ranges != nullptr && !overlaps(ranges[batch * tiles + tile], wanted)) continue;
      const int64_t begin = int64_t(tile) * threads, left = candidates - begin;
      const int count = left < threads ? int(left) : threads;
      __syncthreads();  // nobody needs the tile before
      if (thread < count) {
        const int64_t candidate = begin + thread;
        const icr::SizedBox<T> box = sized(load_box<T>(icr::rows_of(task.candidates, batch), candidate, format));
        boxes[thread] = box;
        areas[thread] = box.size;
        offsets[thread] = icr::value_or(T(0), task.offset, batch * candidates + candidate);
        groups[thread] = icr::group_of(task.candidate_group, batch * candidates + candidate);
      }
      __syncthreads();
      const auto look = [&](auto value_with) {
        for (int i = share; i < count; i += shares) {
          if (groups[i] != group || !(areas[i] > least_area)) continue;
          const T value = value_with(icr::SizedBox<T>{boxes[i], areas[i]}) - offsets[i];
          const T score = by_area ? -areas[i] : value;
          if (value >= at_least && score > threshold) {
            threshold = insert(values, indices, kept, score, int32_t(begin + i));
          }
        }
      };
      icr::visit(icr::PairFunctions{}, task.function.kind, [&](auto kind) {
        if (task.candidate_first) {
          look([&](const auto& candidate) { return kind.value(candidate, query, eps); });
        } else {
          look([&](const auto& candidate) { return kind.value(query, candidate, eps); });
        }
      });
    }

    finish(task, values, indices, kept, queries, row, is_there);
  }
}

// Their maximum alone: in single floats, of all candidates

// A thread has so many queries and takes so many candidates together, of whose values it looks at the largest alone.
// Which candidate that was of is found out once per tile, if it is the best so far.
constexpr int kQueries = 2, kTogether = 4, kGroupsInTile = 256;

// Of the block's threads so many are `owners` of queries of their own, a power of two; the others have shares of the
// candidates of each.
template <class Kind>
__global__ void __launch_bounds__(kThreads, 4)
    maximum_kernel(const __grid_constant__ SelectionTask task, int owners, float eps) {
  // Those of a group lie far apart, so that the banks of neighbouring groups differ.
  alignas(16) __shared__ icr::Box<float> boxes[kTogether][kGroupsInTile];
  alignas(16) __shared__ float areas[kGroupsInTile][kTogether];
  __shared__ float values[1][kThreads];
  __shared__ int32_t indices[1][kThreads];
  const int thread = int(threadIdx.x), shares = kThreads / owners, share = thread / owners;
  const int64_t candidates = task.candidates.count;
  const int format = task.function.box_format;
  const int64_t pieces = (task.queries.count + kQueries * owners - 1) / (kQueries * owners);
  for (int64_t piece = blockIdx.x; piece < task.batches * pieces; piece += gridDim.x) {
    const int64_t batch = piece / pieces, first_number = piece % pieces * (kQueries * owners) + thread % owners;
    const Rows of_queries = icr::rows_of(task.queries, batch), of_candidates = icr::rows_of(task.candidates, batch);
    icr::SizedBox<float> queries[kQueries] = {};
    float best[kQueries];
    int32_t best_index[kQueries];
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      const int64_t number = first_number + q * owners;
      if (number < task.queries.count) queries[q] = sized(load_box<float>(of_queries, number, format));
      best[q] = -INFINITY;
      best_index[q] = -1;
    }
    for (int64_t begin = 0; begin < candidates; begin += kTogether * kGroupsInTile) {
      const int64_t left = candidates - begin, groups_left = (left + kTogether - 1) / kTogether;
      const int groups = groups_left < kGroupsInTile ? int(groups_left) : kGroupsInTile;
      __syncthreads();  // nobody needs the tile before
      for (int group = thread / kTogether; group < groups; group += kThreads / kTogether) {
        const int c = thread % kTogether, i = kTogether * group + c;
        icr::Box<float> box = {NAN, NAN, NAN, NAN};  // What fills up the last group is never chosen.
        if (i < left) box = load_box<float>(of_candidates, begin + i, format);
        boxes[c][group] = box;
        areas[group][c] = icr::area(box);
      }
      __syncthreads();
      const auto candidate = [&](int group, int c) { return icr::SizedBox<float>{boxes[c][group], areas[group][c]}; };
      const auto look = [&](auto value_of) {
        int best_group[kQueries];
#pragma unroll
        for (int q = 0; q < kQueries; ++q) best_group[q] = -1;
        for (int group = share; group < groups; group += shares) {
          icr::SizedBox<float> some[kTogether];
#pragma unroll
          for (int c = 0; c < kTogether; ++c) some[c] = candidate(group, c);
#pragma unroll
          for (int q = 0; q < kQueries; ++q) {
            float largest = value_of(queries[q], some[0]);
#pragma unroll
            for (int c = 1; c < kTogether; ++c) largest = ::fmaxf(largest, value_of(queries[q], some[c]));
            if (largest > best[q]) {
              best[q] = largest;
              best_group[q] = group;
            }
          }
        }
#pragma unroll
        for (int q = 0; q < kQueries; ++q) {
          const int group = best_group[q];
          if (group < 0) continue;
          int c = 0;
#pragma unroll 1
          while (c < kTogether - 1 && value_of(queries[q], candidate(group, c)) != best[q]) ++c;
          best_index[q] = int32_t(begin) + kTogether * group + c;
        }
      };
      if (task.candidate_first) {
        look([&](const auto& query, const auto& other) { return Kind::value(other, query, eps); });
      } else {
        look([&](const auto& query, const auto& other) { return Kind::value(query, other, eps); });
      }
    }
#pragma unroll
    for (int q = 0; q < kQueries; ++q) {
      const int64_t number = first_number + q * owners;
      values[0][thread] = best[q];
      indices[0][thread] = best_index[q];
      finish(task, values, indices, 1, owners, batch * task.queries.count + number, number < task.queries.count);
    }
  }
}

// Matching costs

template <class T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 4 : 1)
    cost_kernel(const __grid_constant__ CostTask task, const __grid_constant__ icr::Cost<T> cost) {
  const auto format = icr::BoxFormat(cost.box_format);
  const int64_t queries = task.boxes.count, pieces = (queries + kThreads - 1) / kThreads;
  for (int64_t piece = blockIdx.x; piece < task.targets * pieces; piece += gridDim.x) {
    const int64_t target = piece / pieces, query = piece % pieces * kThreads + threadIdx.x;
    if (query >= queries) continue;
    const int64_t image = icr::value_or(int64_t(-1), task.image, target);
    const int64_t label = icr::value_or(int64_t(-1), task.labels, target);
    T value = T(NAN);
    if (image >= 0 && image < task.images && label >= 0 && label < task.classes) {
      T of_query[4], of_target[4];
      load_row(icr::rows_of(task.boxes, image), query, of_query);
      load_row(task.target_boxes, target, of_target);
      const Column logit = icr::row_of(task.logits, image, query, label);
      value = icr::matching_cost(cost, icr::given(of_query, format), icr::given(of_target, format),
                                 icr::element<T>(logit.data, logit.type, 0),
                                 icr::value_or(T(0), task.log_normalizer, image * queries + query));
    }
    static_cast<T*>(task.out)[target * queries + query] = value;
  }
}

// Launches

template <class T>
cudaError_t launch_matrix(const PairwiseTask& task, int multiprocessors, cudaStream_t stream) {
  const int64_t columns = task.second.count, chunks = ceil_divide(columns, kColumns<T>);
  Tiles tiles;
  tiles.whole = columns % kColumns<T> == 0 && uintptr_t(task.out) % sizeof(Values<T>) == 0;
  tiles.across = ceil_divide(chunks, kThreads);
  tiles.width = int(ceil_divide(chunks, tiles.across));
  // Rows enough to be worth reading the columns for; and tiles for all blocks that run at the same time, equally many
  // for each.
  constexpr int fewest_per_thread = 8;
  const int at_once = kThreads / tiles.width, most = (kPlaces<T> - kColumns<T> * tiles.width) / at_once;
  const int64_t blocks = 4 * multiprocessors, bands = task.batches * tiles.across;
  const int64_t rounds = ceil_divide(bands * ceil_divide(task.first.count, at_once * most), blocks);
  const int64_t down = std::max<int64_t>(rounds * blocks / bands, 1);
  const int64_t per_thread = ceil_divide(task.first.count, down * at_once);
  tiles.rows = at_once * int(std::min<int64_t>(std::max<int64_t>(per_thread, fewest_per_thread), most));
  tiles.down = ceil_divide(task.first.count, tiles.rows);
  tiles.count = bands * tiles.down;
  return launch(matrix_kernel<T>, blocks_of(tiles.count, multiprocessors), kThreads, stream, task, tiles,
                T(task.function.eps));
}

// Many boxes per block, so that each of the others is used often once it is loaded, and gradients are read as whole
// sectors; fewer where there would be few blocks; but no threads without a pair, and no places without a box. The order
// of a sum, and so this, may depend on the sizes alone.
template <class T, bool OfSecond>
cudaError_t launch_boxes(const PairwiseTask& task, int multiprocessors, cudaStream_t stream) {
  const int64_t count = OfSecond ? task.second.count : task.first.count;
  const int64_t others = OfSecond ? task.first.count : task.second.count;
  constexpr int64_t enough_blocks = 128;
  constexpr int most = OfSecond ? 32 : 8, fewest = OfSecond ? 8 : 1;
  int boxes = most;
  while (boxes > fewest && task.batches * count < enough_blocks * boxes) boxes /= 2;
  while (boxes < kThreads && 2 * boxes * others <= kThreads) boxes *= 2;
  while (boxes > 1 && 2 * count <= boxes) boxes /= 2;
  const int64_t pieces = task.batches * ceil_divide(count, boxes);
  return launch(boxes_kernel<T, OfSecond>, blocks_of(pieces, multiprocessors), kThreads, stream, task, boxes,
                T(task.function.eps));
}

int selection_threads(const SelectionTask& task) {
  return task.in_double ? kSelectionThreads<double> : kSelectionThreads<float>;
}

// As many queries per block as it has threads, or fewer, so that there are enough blocks. Where there are groups no
// more than a warp has lanes: those of a block are then of few groups.
template <class T, int Most>
cudaError_t launch_selection(const SelectionTask& task, const GroupRange* ranges, int multiprocessors,
                             cudaStream_t stream) {
  constexpr int threads = kSelectionThreads<T>;
  int queries = task.query_group.data != nullptr ? kWarp : threads;
  while (queries > 1 && threads / queries < task.candidates.count &&
         task.batches * ceil_divide(task.queries.count, queries) < 4 * multiprocessors) {
    queries /= 2;
  }
  const int64_t pieces = task.batches * ceil_divide(task.queries.count, queries);
  return launch(selection_kernel<T, Most>, blocks_of(pieces, multiprocessors), threads, stream, task, ranges, queries,
                T(task.function.eps));
}

template <class Kind>
cudaError_t launch_maximum(const SelectionTask& task, int multiprocessors, cudaStream_t stream) {
  const auto pieces = [&](int owners) { return task.batches * ceil_divide(task.queries.count, kQueries * owners); };
  // Reading a tile, and finding out which of it was best, takes a block as long as its values with the queries of three
  // owners. One block alone does not keep a multiprocessor busy.
  const auto time = [&](int owners) {
    return std::max<int64_t>(ceil_divide(pieces(owners), multiprocessors), 2) * (owners + 3);
  };
  int owners = kThreads;
  for (int fewer = kThreads / 2; fewer * 2 * ceil_divide(task.candidates.count, kTogether) > kThreads; fewer /= 2) {
    if (time(fewer) < time(owners)) owners = fewer;
  }
  return launch(maximum_kernel<Kind>, blocks_of(pieces(owners), multiprocessors), kThreads, stream, task, owners,
                float(task.function.eps));
}

// The last kind stands for all beyond, as in icr::visit.
template <class... Kinds>
cudaError_t launch_maximum(icr::List<Kinds...>, const SelectionTask& task, int multiprocessors, cudaStream_t stream) {
  constexpr cudaError_t (*launches[])(const SelectionTask&, int, cudaStream_t) = {launch_maximum<Kinds>...};
  return launches[std::min<size_t>(task.function.kind, sizeof...(Kinds) - 1)](task, multiprocessors, stream);
}

template <class T>
cudaError_t launch_cost(const CostTask& task, int multiprocessors, cudaStream_t stream) {
  const icr::Cost<T> cost = icr::cost_in<T>(task.cost);
  const int64_t pieces = task.targets * ceil_divide(task.boxes.count, kThreads);
  return launch(cost_kernel<T>, blocks_of(pieces, multiprocessors), kThreads, stream, task, cost);
}

}  // namespace

cudaError_t all_pairs(const PairwiseTask& task, int multiprocessors, cudaStream_t stream) {
  const auto run = task.in_double ? launch_matrix<double> : launch_matrix<float>;
  return run(task, multiprocessors, stream);
}

cudaError_t gradient_of_boxes(const PairwiseTask& task, bool of_second, int multiprocessors, cudaStream_t stream) {
  const auto run = task.in_double ? (of_second ? launch_boxes<double, true> : launch_boxes<double, false>)
                                           : (of_second ? launch_boxes<float, true> : launch_boxes<float, false>);
  return run(task, multiprocessors, stream);
}

int64_t count_group_ranges(const SelectionTask& task) {
  if (task.candidate_group.data == nullptr) return 0;
  return task.batches * ceil_divide(task.candidates.count, selection_threads(task));
}

cudaError_t find_group_ranges(const SelectionTask& task, GroupRange* ranges, int multiprocessors, cudaStream_t stream) {
  const int64_t pieces = ceil_divide(count_group_ranges(task), kThreads / kWarp);
  return launch(ranges_kernel, blocks_of(pieces, multiprocessors), kThreads, stream, task, selection_threads(task),
                ranges);
}

cudaError_t select_candidates(const SelectionTask& task, const GroupRange* ranges, int multiprocessors,
                              cudaStream_t stream) {
  const bool of_all = task.query_group.data == nullptr && task.candidate_group.data == nullptr && !task.larger;
  const bool is_largest = task.k <= 1 && task.offset.data == nullptr && task.at_least.data == nullptr;
  if (of_all && is_largest && !task.in_double) {
    return launch_maximum(icr::PairFunctions{}, task, multiprocessors, stream);
  }
  const auto run = task.in_double
                       ? (task.k > 1 ? launch_selection<double, kMostSelected> : launch_selection<double, 1>)
                       : (task.k > 1 ? launch_selection<float, kMostSelected> : launch_selection<float, 1>);
  return run(task, ranges, multiprocessors, stream);
}

cudaError_t matching_costs(const CostTask& task, int multiprocessors, cudaStream_t stream) {
  return (task.in_double ? launch_cost<double> : launch_cost<float>)(task, multiprocessors, stream);
}

}  // namespace icr_cuda
