// The kernels of a dense head. A thread has a point and the logits of its box; of classes it has a few logits, one
// below the other where its neighbours have theirs side by side.
#include "detection.h"

#include "../detection.h"
#include "rows.h"

namespace icr_cuda {
namespace {

using icr_kernels::Column;
using icr_kernels::kTermCount;
using icr_kernels::MatricesOut;

// How many logits of classes a thread has at a time.
constexpr int kLogitsOfThread = 16;

// The sum over the threads of a block, always in the same order; thread 0 has it.
__device__ double sum_over_block(double mine) {
  __shared__ double of_warp[kWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int distance = kWarp / 2; distance > 0; distance /= 2) mine += __shfl_down_sync(kAllLanes, mine, distance);
  __syncthreads();  // nobody needs the sum before
  if (lane == 0) of_warp[warp] = mine;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kWarps; ++w) mine += of_warp[w];
  }
  return mine;
}

__device__ void store_sums(DetectionSums& to, const DetectionSums& mine) {
  const auto store = [&](double& sum, double value) {
    value = sum_over_block(value);
    if (threadIdx.x == 0) sum = value;
  };
  for (int term = 0; term < kTermCount; ++term) store(to.terms[term], mine.terms[term]);
  store(to.scores, mine.scores);
  store(to.pairs, mine.pairs);
}

// Calls f with the image and number of each point that is this thread's.
template <class F>
__device__ void over_points(const DecodingTask& head, F f) {
  const unsigned points = unsigned(head.points), count = unsigned(head.images) * points, step = gridDim.x * kThreads;
  for (unsigned i = blockIdx.x * kThreads + threadIdx.x; i < count; i += step) f(i / points, i % points);
}

template <class T>
__device__ icr::Place<T> load_place(const DecodingTask& head, int64_t point) {
  const Column position = icr::row_of(head.positions, 0, point);
  return {icr::element<T>(position.data, position.type, 0),
          icr::element<T>(position.data, position.type, position.stride),
          icr::value_or(T(1), head.strides, point)};
}

// The logits of a point, limited, by their channels.
template <class T>
struct PointLogits {
  Column row;
  __device__ T operator()(int channel) const {
    return icr::limited(icr::element<T>(row.data, row.type, channel * row.stride));
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1) decode_kernel(const __grid_constant__ DecodingTask head) {
  over_points(head, [&](int64_t image, int64_t point) {
    const PointLogits<T> logits{icr::row_of(head.logits, image, point)};
    const auto prediction = icr::predicted(head.bins, load_place<T>(head, point), logits);
    store_row(RowsOut{head.boxes, icr::type_of<T>}, image * head.points + point, prediction.corners);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1) decode_gradient_kernel(const __grid_constant__ DecodingTask head) {
  over_points(head, [&](int64_t image, int64_t point) {
    const PointLogits<T> logits{icr::row_of(head.logits, image, point)};
    const auto place = load_place<T>(head, point);
    const auto prediction = icr::predicted(head.bins, place, logits);
    T of_corners[4];
    load_row(head.grad_boxes, image * head.points + point, of_corners);
    const MatricesOut& out = head.grad_logits;
    icr::pull_back_to_logits(
        head.bins, place.stride, prediction, of_corners, logits, [](int, int, T) { return T(0); },
        [&](int channel, T gradient) {
          icr::store_element(out.data, out.type, icr::place_of(out, image, point, channel), gradient);
        });
  });
}

// The row of the truth that a point is assigned to; -1: none.
__device__ int64_t target_of(const DetectionTask& task, int64_t image, int64_t point) {
  return icr::named_row(task.index, image * task.head.points + point, task.rows);
}

template <class T>
__device__ T score_of(const DetectionTask& task, int64_t image, int64_t point) {
  return icr::value_or(T(0), task.score, image * task.head.points + point);
}

template <class T>
__device__ icr::Assigned<T, bool> load_assigned(const DetectionTask& task, int64_t point, int64_t row) {
  const int64_t anchor = icr::named_row(task.anchor_index, row, task.rows);
  icr::Assigned<T, bool> assigned{load_place<T>(task.head, point), {}, {T(0), T(0), T(1), T(1)}, anchor >= 0};
  load_row(task.truth, row, assigned.target);
  if (anchor >= 0) load_row(task.truth, anchor, assigned.anchor);
  return assigned;
}

template <class T, class F>
__global__ void __launch_bounds__(kThreads, 1)
    box_terms_kernel(const __grid_constant__ DetectionTask task,
                     const __grid_constant__ icr::DetectionFormula<T, F> given, DetectionSums* sums) {
  auto formula = given;
  icr::read_mean<T>(task, formula);
  DetectionSums mine{};
  over_points(task.head, [&](int64_t image, int64_t point) {
    const int64_t row = target_of(task, image, point);
    if (row < 0) return;
    const PointLogits<T> logits{icr::row_of(task.head.logits, image, point)};
    const auto assigned = load_assigned<T>(task, point, row);
    const T score = score_of<T>(task, image, point);
    const auto terms = icr::weights_of(task, score) * icr::point_terms(formula, task.head.bins, assigned, logits);
    mine.terms[icr_kernels::kBox] += double(terms.box);
    mine.terms[icr_kernels::kDistribution] += double(terms.distribution);
    mine.terms[icr_kernels::kPenalty] += double(terms.penalty);
    mine.scores += double(score);
    mine.pairs += assigned.has_anchor ? 1 : 0;
  });
  store_sums(sums[blockIdx.x], mine);
}

template <class T, class F>
__global__ void __launch_bounds__(kThreads, 1)
    box_gradient_kernel(const __grid_constant__ DetectionTask task,
                        const __grid_constant__ icr::DetectionFormula<T, F> given) {
  auto formula = given;
  icr::read_mean<T>(task, formula);
  const MatricesOut& out = task.head.grad_logits;
  const auto factors = icr::factors_of_point<T>(task);
  over_points(task.head, [&](int64_t image, int64_t point) {
    const auto store = [&](int channel, T gradient) {
      icr::store_element(out.data, out.type, icr::place_of(out, image, point, channel), gradient);
    };
    const int64_t row = target_of(task, image, point);
    if (row < 0) {
      for (int channel = 0; channel < 4 * task.head.bins; ++channel) store(channel, T(0));
      return;
    }
    const PointLogits<T> logits{icr::row_of(task.head.logits, image, point)};
    const auto k = icr::weights_of(task, score_of<T>(task, image, point)) * factors;
    icr::point_gradient(formula, task.head.bins, load_assigned<T>(task, point, row), k, logits, store);
  });
}

bool are_points_side_by_side(const DetectionTask& task) {
  return task.class_logits.row_stride < task.class_logits.column_stride;
}

// The pieces of a thread: what lies side by side has a thread each, and of the others a thread has a few.
struct ClassPieces {
  int64_t across, down, count;
  bool of_points;

  __host__ __device__ ClassPieces(const DetectionTask& task, bool of_points)
      : across(of_points ? task.head.points : task.classes),
        down(((of_points ? task.classes : task.head.points) + kLogitsOfThread - 1) / kLogitsOfThread),
        count(task.head.images * across * down),
        of_points(of_points) {}
};

// Calls f with each logit of a class that is this thread's: image, point and class, the logit, its target and weight.
template <class T, class F, class Done>
__device__ void over_classes(const DetectionTask& task, bool of_points, F f, Done after_piece) {
  const ClassPieces pieces(task, of_points);
  const unsigned step = gridDim.x * kThreads;
  for (unsigned i = blockIdx.x * kThreads + threadIdx.x; i < unsigned(pieces.count); i += step) {
    const unsigned across = i % unsigned(pieces.across), rest = i / unsigned(pieces.across);
    const unsigned image = rest / unsigned(pieces.down);
    const int64_t first = int64_t(rest % unsigned(pieces.down)) * kLogitsOfThread;
    const int64_t left = (of_points ? task.classes : task.head.points) - first;
    int64_t wanted = -1;
    T score(0);
    for (int64_t n = 0; n < (left < kLogitsOfThread ? left : kLogitsOfThread); ++n) {
      const int64_t point = of_points ? across : first + n, label = of_points ? first + n : across;
      if (n == 0 || !of_points) {
        const int64_t row = target_of(task, image, point);
        wanted = row < 0 ? -1 : icr::value_or(int64_t(-1), task.labels, row);
        score = row < 0 ? T(0) : score_of<T>(task, image, point);
      }
      const Column logit = icr::row_of(task.class_logits, image, point, label);
      f(image, point, label, icr::element<T>(logit.data, logit.type, 0), wanted == label ? score : T(0),
        icr::value_or(T(1), task.class_weight, label));
    }
    after_piece();
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    class_terms_kernel(const __grid_constant__ DetectionTask task, bool of_points, DetectionSums* sums) {
  double total = 0;
  T of_piece(0);
  over_classes<T>(
      task, of_points,
      [&](int64_t, int64_t, int64_t, T logit, T target, T weight) {
        of_piece += weight * icr::cross_entropy(icr::limited(logit), target);
      },
      [&] {
        // Few enough additions in float, then double.
        total += double(of_piece);
        of_piece = T(0);
      });
  total = sum_over_block(total);
  if (threadIdx.x == 0) sums[blockIdx.x].terms[icr_kernels::kClassification] = total;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    class_gradient_kernel(const __grid_constant__ DetectionTask task, bool of_points) {
  const MatricesOut& out = task.grad_class_logits;
  const T factor = icr::factor_of_term<T>(task, icr_kernels::kClassification);
  over_classes<T>(
      task, of_points,
      [&](int64_t image, int64_t point, int64_t label, T logit, T target, T weight) {
        const T gradient = (icr::sigmoid(logit) - target) * (weight * factor);
        const bool is_limited = icr::abs(logit) >= T(icr::kCoordinateLimit);
        icr::store_element(out.data, out.type, icr::place_of(out, image, point, label), is_limited ? T(0) : gradient);
      },
      [] {});
}

// One block: what all others have left, in their order.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    finish_kernel(const __grid_constant__ DetectionTask task, DetectionBlocks blocks, const DetectionSums* sums) {
  DetectionSums mine{};
  for (int64_t block = threadIdx.x; block < blocks.points; block += kThreads) {
    for (int term = 0; term < kTermCount; ++term) mine.terms[term] += sums[block].terms[term];
    mine.scores += sums[block].scores;
    mine.pairs += sums[block].pairs;
  }
  for (int64_t block = threadIdx.x; block < blocks.classes; block += kThreads) {
    mine.terms[icr_kernels::kClassification] += sums[blocks.points + block].terms[icr_kernels::kClassification];
  }
  __shared__ DetectionSums total;
  store_sums(total, mine);
  if (threadIdx.x == 0) icr::store_terms<T>(task, total);
}

// Calls f with the formula of the common losses, or of all.
template <class T, class F>
cudaError_t with_formula(const DetectionTask& task, F f) {
  return icr::is_common(task.formula.pair) ? f(icr::detection_formula_in<icr::Formula<T>, T, T>(task))
                                           : f(icr::detection_formula_in<icr::FullFormula<T>, T, T>(task));
}

template <class T>
cudaError_t run_detection(const DetectionTask& task, DetectionBlocks blocks, DetectionSums* sums, cudaStream_t stream) {
  if (blocks.points > 0) {
    const cudaError_t error = with_formula<T>(task, [&](auto formula) {
      return launch(box_terms_kernel<T, decltype(formula.pair)>, blocks.points, kThreads, stream, task, formula, sums);
    });
    if (error != cudaSuccess) return error;
  }
  if (blocks.classes > 0) {
    const cudaError_t error = launch(class_terms_kernel<T>, blocks.classes, kThreads, stream, task,
                                     are_points_side_by_side(task), sums + blocks.points);
    if (error != cudaSuccess) return error;
  }
  return launch(finish_kernel<T>, 1, kThreads, stream, task, blocks, static_cast<const DetectionSums*>(sums));
}

template <class T>
cudaError_t run_gradients(const DetectionTask& task, int multiprocessors, cudaStream_t stream) {
  const int64_t points = task.head.images * task.head.points;
  if (task.head.grad_logits.data != nullptr && points > 0) {
    const cudaError_t error = with_formula<T>(task, [&](auto formula) {
      return launch(box_gradient_kernel<T, decltype(formula.pair)>,
                    blocks_of(ceil_divide(points, kThreads), multiprocessors), kThreads, stream, task, formula);
    });
    if (error != cudaSuccess) return error;
  }
  const bool of_points = are_points_side_by_side(task);
  const int64_t pieces = ClassPieces(task, of_points).count;
  if (task.grad_class_logits.data == nullptr || pieces == 0) return cudaSuccess;
  return launch(class_gradient_kernel<T>, blocks_of(ceil_divide(pieces, kThreads), multiprocessors), kThreads, stream,
                task, of_points);
}

}  // namespace

DetectionBlocks blocks_of_detection(const DetectionTask& task, int multiprocessors) {
  return {blocks_of_sum(task.head.images * task.head.points, multiprocessors),
          blocks_of_sum(ClassPieces(task, are_points_side_by_side(task)).count, multiprocessors)};
}

cudaError_t decode_points(const DecodingTask& head, int multiprocessors, cudaStream_t stream) {
  const int64_t blocks = blocks_of(ceil_divide(head.images * head.points, kThreads), multiprocessors);
  if (blocks == 0) return cudaSuccess;
  const auto kernel = head.boxes != nullptr ? (head.in_double ? decode_kernel<double> : decode_kernel<float>)
                                            : (head.in_double ? decode_gradient_kernel<double>
                                                              : decode_gradient_kernel<float>);
  return launch(kernel, blocks, kThreads, stream, head);
}

cudaError_t detect(const DetectionTask& task, DetectionBlocks blocks, DetectionSums* sums, cudaStream_t stream) {
  return task.head.in_double ? run_detection<double>(task, blocks, sums, stream)
                             : run_detection<float>(task, blocks, sums, stream);
}

cudaError_t detection_gradients(const DetectionTask& task, int multiprocessors, cudaStream_t stream) {
  return task.head.in_double ? run_gradients<double>(task, multiprocessors, stream)
                             : run_gradients<float>(task, multiprocessors, stream);
}

}  // namespace icr_cuda
