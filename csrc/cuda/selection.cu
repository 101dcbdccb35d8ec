// The kernels that find the best in the rows of a matrix of all pairs, without the matrix. A candidate is read and
// converted once per block, and waits in shared memory.
#include "pairwise.h"

#include <algorithm>

#include "../pair_functions.h"
#include "rows.h"

namespace icr_cuda {
namespace {

using icr_kernels::kMostSelected;

template <class T>
__device__ icr::SizedBox<T> sized(const icr::Box<T>& box) {
  return {box, icr::area(box)};
}

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
template <class T, int Most, class Kinds>
__global__ void
__launch_bounds__(kSelectionThreads<T>, sizeof(T) == 4 && std::is_same_v<Kinds, icr::CommonKinds> ? 4 : 1)
    selection_kernel(const __grid_constant__ SelectionTask task, const GroupRange* ranges, int queries, int place,
                     const __grid_constant__ icr::Numbers<T> numbers) {
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
      icr::visit(typename Kinds::Functions{}, place, [&](auto kind) {
        const auto n = icr::own_numbers(kind, numbers);
        if (task.candidate_first) {
          look([&](const auto& candidate) { return icr::value_at(kind, candidate, query, n); });
        } else {
          look([&](const auto& candidate) { return icr::value_at(kind, query, candidate, n); });
        }
      });
    }

    finish(task, values, indices, kept, queries, row, is_there);
  }
}

// The maximum alone: in single floats, of all candidates

// A thread has so many queries and takes so many candidates together, of whose values it looks at the largest alone.
// Which candidate that was of is found out once per tile, if it is the best so far.
template <class Kind, class... Kinds>
constexpr bool is_among(icr::List<Kinds...>) {
  return (std::is_same_v<Kind, Kinds> || ...);
}

constexpr int kQueries = 2, kTogether = 4, kGroupsInTile = 256;

// Of the block's threads so many are `owners` of queries of their own, a power of two; the others have shares of the
// candidates of each.
template <class Kind>
__global__ void __launch_bounds__(kThreads, is_among<Kind>(icr::CommonKinds::Functions{}) ? 4 : 1)
    maximum_kernel(const __grid_constant__ SelectionTask task, int owners,
                   const __grid_constant__ icr::Numbers<float> numbers) {
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
      const auto n = icr::own_numbers(Kind{}, numbers);
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
        look([&](const auto& query, const auto& other) { return icr::value_at(Kind{}, other, query, n); });
      } else {
        look([&](const auto& query, const auto& other) { return icr::value_at(Kind{}, query, other, n); });
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

// Launches

int selection_threads(const SelectionTask& task) {
  return task.in_double ? kSelectionThreads<double> : kSelectionThreads<float>;
}

// As many queries per block as it has threads, or fewer, so that there are enough blocks. Where there are groups no
// more than a warp has lanes: those of a block are then of few groups.
template <class T, int Most, class Kinds>
cudaError_t launch_selection(Kinds, int place, const SelectionTask& task, const GroupRange* ranges,
                             int multiprocessors, cudaStream_t stream) {
  constexpr int threads = kSelectionThreads<T>;
  int queries = task.query_group.data != nullptr ? kWarp : threads;
  while (queries > 1 && threads / queries < task.candidates.count &&
         task.batches * ceil_divide(task.queries.count, queries) < 4 * multiprocessors) {
    queries /= 2;
  }
  const int64_t pieces = task.batches * ceil_divide(task.queries.count, queries);
  return launch(selection_kernel<T, Most, Kinds>, blocks_of(pieces, multiprocessors), threads, stream, task, ranges,
                queries, place, icr::numbers_in<T, T>(task.function));
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
                icr::numbers_in<float, float>(task.function));
}

// The last kind stands for all beyond, as in icr::visit.
template <class... Kinds>
cudaError_t launch_maximum(icr::List<Kinds...>, int place, const SelectionTask& task, int multiprocessors, cudaStream_t stream) {
  constexpr cudaError_t (*launches[])(const SelectionTask&, int, cudaStream_t) = {launch_maximum<Kinds>...};
  return launches[std::min<size_t>(place, sizeof...(Kinds) - 1)](task, multiprocessors, stream);
}

}  // namespace

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
  return icr::with_kinds(task.function.kind, [&](auto kinds, int place) {
    if (of_all && is_largest && !task.in_double) {
      return launch_maximum(typename decltype(kinds)::Functions{}, place, task, multiprocessors, stream);
    }
    const auto run = [&](auto launch_of) { return launch_of(kinds, place, task, ranges, multiprocessors, stream); };
    using Kinds = decltype(kinds);
    if (task.in_double) {
      return task.k > 1 ? run(launch_selection<double, kMostSelected, Kinds>) : run(launch_selection<double, 1, Kinds>);
    }
    return task.k > 1 ? run(launch_selection<float, kMostSelected, Kinds>) : run(launch_selection<float, 1, Kinds>);
  });
}

}  // namespace icr_cuda
