// The kernels of an assignment. No pair of a box and a point is in memory: pairs are computed where they are needed, and
// again by the point that a box has taken.
#include "assignment.h"

#include "../assignment.h"
#include "rows.h"

namespace icr_cuda {
namespace {

using icr_kernels::Column;
using icr_kernels::kMostAssigned;

// A block for each row of the truth; its warps divide the points.
constexpr int kRowThreads = 128, kRowWarps = kRowThreads / kWarp;
static_assert(kMostAssigned <= kWarp, "a lane for each of the best");

// What the index holds for a point while rows take points: nobody, or one row, or several rows.
constexpr int64_t kNobody = -1, kSeveral = -2;

// As PyTorch's, which knows some exponents.
__device__ float power(float x, float exponent) {
  if (exponent == 0.5f) return ::sqrtf(x);
  if (exponent == 1.0f) return x;
  if (exponent == 2.0f) return icr::rounded_square(x);
  if (exponent == 3.0f) return icr::rounded_product(icr::rounded_square(x), x);
  return ::powf(x, exponent);
}

__device__ icr::MeasuredBox<float> load_measured(const Rows& rows, int64_t row, int format) {
  float coordinates[4];
  load_row(rows, row, coordinates);
  const icr::Box<float> box = icr::plain_corners(coordinates, icr::BoxFormat(format));
  return {box, icr::padded_area(box), ::atanf(icr::side_ratio(box))};
}

struct Suit {
  float similarity, metric;
};

// A row of the truth and the points of its image.
struct TruthRow {
  const AssignmentTask& task;
  int64_t image, label;
  icr::MeasuredBox<float> box;
  icr::Box<float> reach;

  __device__ TruthRow(const AssignmentTask& task, int64_t row, int64_t image) : task(task), image(image) {
    label = icr::value_or(int64_t(-1), task.labels, row);
    box = load_measured(task.truth, row, task.rule.truth_format);
    reach = icr::enlarged(box.box, task.rule.smallest_side);
  }

  __device__ bool reaches(int64_t point) const {
    const Column position = icr::row_of(task.positions, 0, point);
    const float x = icr::element<float>(position.data, position.type, 0);
    const float y = icr::element<float>(position.data, position.type, position.stride);
    return icr::contains(reach, x, y, task.rule.eps);
  }

  // How a point that it reaches suits it.
  __device__ Suit suit(int64_t point) const {
    const Rows boxes = icr::rows_of(task.boxes, image);
    const float similarity = icr::overlap_of(box, load_measured(boxes, point, task.rule.box_format));
    if (similarity == 0.0f) return {0.0f, 0.0f};
    const Column column = icr::row_of(task.scores, image, point, label);
    float score = icr::element<float>(column.data, column.type, 0);
    if (task.rule.from_logits) score = icr::rounded_to(column.type, 1.0f / (1.0f + ::expf(-score)));
    score = power(icr::score_of(score), task.rule.alpha);
    return {similarity, icr::rounded_product(score, power(similarity, task.rule.beta))};
  }
};

// The best points of a row, in their order a lane of a warp each. One of rank 0 is none.
struct Best {
  int rank = 0, point = 0x7fffffff;

  __device__ bool is_before(int other_rank, int other_point) const {
    return rank > other_rank || (rank == other_rank && point < other_point);
  }

  // Puts the candidates of the lanes where they belong, as far as they are among the first `kept`.
  __device__ void insert(const Best& candidate, int kept) {
    const int last_rank = __shfl_sync(kAllLanes, rank, kept - 1), last_point = __shfl_sync(kAllLanes, point, kept - 1);
    unsigned left = __ballot_sync(kAllLanes, candidate.rank > 0 && candidate.is_before(last_rank, last_point));
    for (; left != 0; left &= left - 1) {
      const int from = __ffs(int(left)) - 1;
      const Best next{__shfl_sync(kAllLanes, candidate.rank, from), __shfl_sync(kAllLanes, candidate.point, from)};
      const Best above{__shfl_up_sync(kAllLanes, rank, 1), __shfl_up_sync(kAllLanes, point, 1)};
      const bool moves = next.is_before(rank, point);
      const bool is_first_that_moves = threadIdx.x % kWarp == 0 || !next.is_before(above.rank, above.point);
      if (moves) *this = is_first_that_moves ? next : above;
    }
  }
};

// The `kept` best of all points by their ranks, in the first warp of the block.
template <class F>
__device__ Best best_points(int64_t points, int kept, F rank_of_point) {
  __shared__ int ranks[kRowThreads], found[kRowThreads];
  const int thread = int(threadIdx.x), lane = thread % kWarp;
  Best best;
  for (int64_t begin = thread - lane; begin < points; begin += kRowThreads) {
    const int64_t point = begin + lane;
    const Best candidate{point < points ? rank_of_point(point) : 0, int(point)};
    if (__ballot_sync(kAllLanes, candidate.rank > 0) != 0) best.insert(candidate, kept);
  }
  __syncthreads();  // nobody needs what was found for the row before
  ranks[thread] = best.rank;
  found[thread] = best.point;
  __syncthreads();
  for (int other = kWarp + lane; thread < kWarp && other < kRowThreads; other += kWarp) {
    best.insert({ranks[other], found[other]}, kept);
  }
  return best;
}

// Where the best are fewer than that, the free places go to the first of the points of rank 0, which are among the first
// of all. The place of the point whose number is the lane's, if it is such a one; -1 for none. Of the first warp.
__device__ int place_at_zero(const Best& best, int kept, bool is_zero) {
  const int lane = int(threadIdx.x) % kWarp;
  const int above = __popc(__ballot_sync(kAllLanes, best.rank > 0 && lane < kept));
  const unsigned zeros = __ballot_sync(kAllLanes, is_zero);
  const int place = above + __popc(zeros & ((1u << lane) - 1u));
  return is_zero && place < kept ? place : -1;
}

// The largest similarity to a point and its row, of equals the first; never 0.
__device__ unsigned long long owned_by(uint32_t rank, int64_t row) {
  return static_cast<unsigned long long>(rank) << 32 | (0xffffffffu - uint32_t(row));
}
__device__ int64_t row_of(unsigned long long owner) { return int64_t(0xffffffffu - uint32_t(owner)); }
__device__ int rank_of(unsigned long long owner) { return int(owner >> 32); }

// Nobody has a point yet.
__global__ void __launch_bounds__(kThreads) prepare_kernel(const __grid_constant__ AssignmentTask task,
                                                           const __grid_constant__ AssignmentMemory memory) {
  const int64_t count = task.images * task.points, step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    task.index[i] = kNobody;
    memory.owner[i] = 0;
    if (i < task.images) memory.first_row[i] = 0x7fffffff;
  }
}

// Rows of the truth take points.
__global__ void __launch_bounds__(kRowThreads) take_kernel(const __grid_constant__ AssignmentTask task,
                                                           const __grid_constant__ AssignmentMemory memory) {
  for (int64_t row = blockIdx.x; row < task.rows; row += gridDim.x) {
    const int64_t image = icr::image_of(task, row);
    if (image < 0) continue;
    const TruthRow truth(task, row, image);
    const int64_t first = image * task.points;
    const int kept = task.rule.topk, thread = int(threadIdx.x);
    if (thread == 0) atomicMin(memory.first_row + image, int(row));
    const Best best = best_points(task.points, kept, [&](int64_t point) {
      if (!truth.reaches(point)) return 0;
      const Suit suit = truth.suit(point);
      const uint32_t rank = icr::rank_of(suit.similarity);
      if (rank > 0) atomicMax(memory.owner + first + point, owned_by(rank, row));
      return int(icr::rank_of(suit.metric));
    });
    if (thread >= kWarp) continue;
    const auto take = [&](int64_t point) {
      auto* const taken = reinterpret_cast<unsigned long long*>(task.index + first + point);
      const auto nobody = static_cast<unsigned long long>(kNobody);
      if (atomicCAS(taken, nobody, static_cast<unsigned long long>(row)) != nobody) {
        atomicExch(taken, static_cast<unsigned long long>(kSeveral));
      }
    };
    if (best.rank > 0 && thread < kept) take(best.point);
    const bool is_point = thread < task.points, reaches = is_point && truth.reaches(thread);
    const bool is_zero = is_point && !(reaches && icr::rank_of(truth.suit(thread).metric) > 0);
    if (place_at_zero(best, kept, is_zero) >= 0 && reaches) take(thread);
  }
}

// Every point goes to one row.
__global__ void __launch_bounds__(kThreads) settle_kernel(const __grid_constant__ AssignmentTask task,
                                                          const __grid_constant__ AssignmentMemory memory) {
  const int64_t count = task.images * task.points, step = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
    const int64_t image = i / task.points, point = i % task.points;
    int64_t row = task.index[i];
    Suit suit = {0.0f, 0.0f};
    if (row == kSeveral) row = memory.owner[i] != 0 ? row_of(memory.owner[i]) : memory.first_row[image];
    if (row != kNobody) {
      const TruthRow truth(task, row, image);
      if (truth.reaches(point)) suit = truth.suit(point);
    }
    task.index[i] = row;
    task.score[i] = suit.metric;
    memory.owner[i] = row == kNobody ? 0 : owned_by(icr::rank_of(suit.similarity), row);
  }
}

// Rows keep the best of their points, whose scores follow.
__global__ void __launch_bounds__(kRowThreads) score_kernel(const __grid_constant__ AssignmentTask task,
                                                            const __grid_constant__ AssignmentMemory memory) {
  __shared__ int kept_points[kWarp], best_metrics[kRowWarps], best_similarities[kRowWarps];
  const int thread = int(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  for (int64_t row = blockIdx.x; row < task.rows; row += gridDim.x) {
    const int64_t image = icr::image_of(task, row);
    if (image < 0) continue;
    const unsigned long long* const owners = memory.owner + image * task.points;
    float* const scores = task.score + image * task.points;
    const auto is_own = [&](int64_t point) { return owners[point] != 0 && row_of(owners[point]) == row; };
    const auto rank = [&](int64_t point) { return is_own(point) ? int(icr::rank_of(scores[point])) : 0; };
    const int kept = task.rule.topk2;
    if (kept > 0) {
      if (warp == 1) kept_points[lane] = -1;
      const Best best = best_points(task.points, kept, rank);
      if (warp == 0) {
        const int place = place_at_zero(best, kept, lane < task.points && rank(lane) == 0);
        if (best.rank > 0 && lane < kept) kept_points[lane] = best.point;
        if (place >= 0) kept_points[place] = lane;
      }
      __syncthreads();
    }
    const auto is_kept = [&](int64_t point) {
      bool found = kept == 0;
      for (int i = 0; i < kept; ++i) found |= kept_points[i] == point;
      return found;
    };
    int best_metric = 0, best_similarity = 0;
    for (int64_t point = thread; point < task.points; point += kRowThreads) {
      if (!is_own(point)) continue;
      if (is_kept(point)) {
        best_metric = ::max(best_metric, rank(point));
        best_similarity = ::max(best_similarity, rank_of(owners[point]));
      } else {
        task.index[image * task.points + point] = kNobody;
      }
    }
    best_metric = __reduce_max_sync(kAllLanes, best_metric);
    best_similarity = __reduce_max_sync(kAllLanes, best_similarity);
    if (lane == 0) {
      best_metrics[warp] = best_metric;
      best_similarities[warp] = best_similarity;
    }
    __syncthreads();
    for (int w = 0; w < kRowWarps; ++w) {
      best_metric = ::max(best_metric, best_metrics[w]);
      best_similarity = ::max(best_similarity, best_similarities[w]);
    }
    const float similarity = icr::float_from_bits(best_similarity), metric = icr::float_from_bits(best_metric);
    for (int64_t point = thread; point < task.points; point += kRowThreads) {
      if (!is_own(point)) continue;
      const float product = icr::rounded_product(scores[point], similarity);
      scores[point] = is_kept(point) ? product / (metric + task.rule.eps) : 0.0f;
    }
    __syncthreads();  // nobody needs what this row has kept
  }
}

}  // namespace

cudaError_t assign_points(const AssignmentTask& task, const AssignmentMemory& memory, int multiprocessors,
                          cudaStream_t stream) {
  struct Step {
    void (*kernel)(AssignmentTask, AssignmentMemory);
    int64_t blocks;
    int threads;
  };
  const int64_t of_points = blocks_of(ceil_divide(task.images * task.points, kThreads), multiprocessors);
  const int64_t of_rows = blocks_of(task.rows, multiprocessors);
  const Step steps[] = {{prepare_kernel, of_points, kThreads},
                        {take_kernel, of_rows, kRowThreads},
                        {settle_kernel, of_points, kThreads},
                        {score_kernel, of_rows, kRowThreads}};
  for (const Step& step : steps) {
    if (step.blocks == 0) continue;
    const cudaError_t error = launch(step.kernel, step.blocks, step.threads, stream, task, memory);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace icr_cuda
