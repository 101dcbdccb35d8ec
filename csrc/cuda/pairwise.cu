// The kernels over all pairs: their matrix, what its gradient is for the boxes, matching costs. A box is read and converted
// once per block, not once per pair, and waits in shared memory.
#include "pairwise.h"

#include <algorithm>

#include "../matching_cost.h"
#include "../pair_functions.h"
#include "rows.h"

namespace icr_cuda {
namespace {

using icr_kernels::BoxSet;
using icr_kernels::Column;

// The matrix

template <class Kinds>
constexpr bool are_common = std::is_same_v<Kinds, icr::CommonKinds>;

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

template <class T, class Kinds>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 && are_common<Kinds> ? 4 : 1)
    matrix_kernel(const __grid_constant__ PairwiseTask task, const __grid_constant__ Tiles tiles, int place,
                  const __grid_constant__ icr::Numbers<T> numbers) {
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
    icr::visit(typename Kinds::Functions{}, place, [&](auto kind) {
      const auto n = icr::own_numbers(kind, numbers);
      for (int row = own_row; row < rows; row += at_once) {
        const icr::SizedBox<T> first = {boxes[row], areas[row]};
        Values<T> values;
#pragma unroll
        for (int c = 0; c < per_thread; ++c) values.columns[c] = icr::value_at(kind, first, own[c], n);
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
template <class T, bool OfSecond, class Kinds>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 && are_common<Kinds> ? 3 : 1)
    boxes_kernel(const __grid_constant__ PairwiseTask task, int boxes, int place,
                 const __grid_constant__ icr::Numbers<T> numbers) {
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
      icr::visit(typename Kinds::Functions{}, place, [&](auto kind) {
        const auto n = icr::own_numbers(kind, numbers);
        for (int i = share; i < count; i += shares) {
          const T upstream = icr::element<T>(gradient.data, gradient.type, i * stride);
          if constexpr (OfSecond) {
            icr::add_partials<4>(icr::evaluate<false, true>(kind, others[i], box, n), upstream, few);
          } else {
            icr::add_partials<0>(icr::evaluate<true, false>(kind, box, others[i], n), upstream, few);
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

template <class T, class Kinds>
cudaError_t launch_matrix(Kinds, int place, const PairwiseTask& task, int multiprocessors, cudaStream_t stream) {
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
  return launch(matrix_kernel<T, Kinds>, blocks_of(tiles.count, multiprocessors), kThreads, stream, task, tiles, place,
                icr::numbers_in<T, T>(task.function));
}

// Many boxes per block, so that each of the others is used often once it is loaded, and gradients are read as whole
// sectors; fewer where there would be few blocks; but no threads without a pair, and no places without a box. The order
// of a sum, and so this, may depend on the sizes alone.
template <class T, bool OfSecond, class Kinds>
cudaError_t launch_boxes(Kinds, int place, const PairwiseTask& task, int multiprocessors, cudaStream_t stream) {
  const int64_t count = OfSecond ? task.second.count : task.first.count;
  const int64_t others = OfSecond ? task.first.count : task.second.count;
  constexpr int64_t enough_blocks = 128;
  constexpr int most = OfSecond ? 32 : 8, fewest = OfSecond ? 8 : 1;
  int boxes = most;
  while (boxes > fewest && task.batches * count < enough_blocks * boxes) boxes /= 2;
  while (boxes < kThreads && 2 * boxes * others <= kThreads) boxes *= 2;
  while (boxes > 1 && 2 * count <= boxes) boxes /= 2;
  const int64_t pieces = task.batches * ceil_divide(count, boxes);
  return launch(boxes_kernel<T, OfSecond, Kinds>, blocks_of(pieces, multiprocessors), kThreads, stream, task, boxes,
                place, icr::numbers_in<T, T>(task.function));
}

template <class T>
cudaError_t launch_cost(const CostTask& task, int multiprocessors, cudaStream_t stream) {
  const icr::Cost<T> cost = icr::cost_in<T>(task.cost);
  const int64_t pieces = task.targets * ceil_divide(task.boxes.count, kThreads);
  return launch(cost_kernel<T>, blocks_of(pieces, multiprocessors), kThreads, stream, task, cost);
}

}  // namespace

cudaError_t all_pairs(const PairwiseTask& task, int multiprocessors, cudaStream_t stream) {
  return icr::with_kinds(task.function.kind, [&](auto kinds, int place) {
    return task.in_double ? launch_matrix<double>(kinds, place, task, multiprocessors, stream)
                          : launch_matrix<float>(kinds, place, task, multiprocessors, stream);
  });
}

template <bool OfSecond>
cudaError_t launch_gradient(const PairwiseTask& task, int multiprocessors, cudaStream_t stream) {
  return icr::with_kinds(task.function.kind, [&](auto kinds, int place) {
    return task.in_double ? launch_boxes<double, OfSecond>(kinds, place, task, multiprocessors, stream)
                          : launch_boxes<float, OfSecond>(kinds, place, task, multiprocessors, stream);
  });
}
cudaError_t gradient_of_boxes(const PairwiseTask& task, bool of_second, int multiprocessors, cudaStream_t stream) {
  return (of_second ? launch_gradient<true> : launch_gradient<false>)(task, multiprocessors, stream);
}

cudaError_t matching_costs(const CostTask& task, int multiprocessors, cudaStream_t stream) {
  return (task.in_double ? launch_cost<double> : launch_cost<float>)(task, multiprocessors, stream);
}

}  // namespace icr_cuda
