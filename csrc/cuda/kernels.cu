// The kernels: rows from memory to registers, the program of a pair, gradient rows back, and one sum in a fixed order.
#include "kernels.h"

#include <algorithm>

#include "../pair.h"
#include "rows.h"

namespace icr_cuda {
namespace {

constexpr int kTableThreads = 1024;

// Sums

__device__ Partial plus(Partial a, Partial b) { return {a.loss + b.loss, a.count + b.count}; }

// The sum over the threads of a block, always in the same order; thread 0 has it.
__device__ Partial sum_of_block(Partial mine) {
  __shared__ Partial of_warp[kWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    mine = plus(mine, {__shfl_down_sync(kAllLanes, mine.loss, distance),
                       __shfl_down_sync(kAllLanes, mine.count, distance)});
  }
  if (lane == 0) of_warp[warp] = mine;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kWarps; ++w) mine = plus(mine, of_warp[w]);
  }
  return mine;
}

__device__ unsigned tickets[kTickets];

template <class T>
__device__ void store_sum(const Sum& sum, double scale, Partial total) {
  const double per_pair = sum.pending == nullptr ? 1.0 : 1.0 / (total.count > 1.0 ? total.count : 1.0);
  *static_cast<T*>(sum.value) = T(total.loss * scale * per_pair);
  if (sum.pending != nullptr) *static_cast<T*>(sum.pending) = T(per_pair);
}

// The sum over all blocks: the last one to arrive adds up what each has left, in the order of the blocks.
template <class T>
__device__ void sum_of_launch(const Sum& sum, double scale, Partial mine) {
  mine = sum_of_block(mine);
  if (gridDim.x == 1) {
    if (threadIdx.x == 0) store_sum<T>(sum, scale, mine);
    return;
  }
  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    sum.partials[blockIdx.x] = mine;
    __threadfence();
    unsigned* ticket = sum.ticket != nullptr ? sum.ticket : &tickets[sum.ticket_number];
    is_last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;  // and is back at 0 then
    __threadfence();
  }
  __syncthreads();
  if (!is_last) return;
  Partial total = {0, 0};
  for (unsigned block = threadIdx.x; block < gridDim.x; block += kThreads) total = plus(total, sum.partials[block]);
  total = sum_of_block(total);
  if (threadIdx.x == 0) store_sum<T>(sum, scale, total);
}

// Pairs

template <class T>
__device__ void store_term(void* terms, int64_t pair, T value) {
  if (terms != nullptr) static_cast<T*>(terms)[pair] = value;
}

// The boxes of a pair that does not count are not even read: they may hold anything.
template <class T, unsigned Want>
__device__ void store_nothing(const Task& task, int64_t pair) {
  const T zeros[4] = {T(0), T(0), T(0), T(0)};
  store_term(task.loss_out, pair, T(0));
  store_term(task.iou_out, pair, T(0));
  store_term(task.containment_out, pair, T(0));
  store_term(task.penalty_out, pair, T(0));
  if ((Want & icr::kPred) && task.grad_pred.data != nullptr) store_row(task.grad_pred, pair, zeros);
  if ((Want & icr::kTarget) && task.grad_target.data != nullptr) store_row(task.grad_target, pair, zeros);
  if ((Want & icr::kAnchorObject) && task.grad_anchor_objects.data != nullptr) {
    store_row(task.grad_anchor_objects, pair, zeros);
  }
}

// What the compiler knows of the task of a kernel: nothing. Loss and penalty are then chosen by branches that are the
// same for the whole launch.
struct AnyTask {
  using Index = int64_t;  // of a pair
  template <class T>
  using Formula = icr::Formula<T>;
  template <class F>
  __device__ static void tell(Task&, F&) {}
};

// The same of all losses, with their parameters and modifiers.
struct FullTask : AnyTask {
  template <class T>
  using Formula = icr::FullFormula<T>;
};

// And of one of them.
template <int Loss>
struct OneLoss : FullTask {
  __device__ static void tell(Task&, icr::FullFormula<float>& formula) { formula.loss = Loss; }
};

// Most of a training: rows of floats side by side, corners, all pairs alike; and which loss and penalty.
template <int Loss, int Penalty>
struct PackedTask {
  using Index = unsigned;
  template <class T>
  using Formula = icr::Formula<T>;
  __device__ static void tell(Task& task, icr::Formula<float>& formula) {
    for (Rows* rows : {&task.pred, &task.target, &task.anchor_objects}) {
      rows->type = Type::kFloat;
      rows->aligned = true;
      rows->row_stride = 4;
      rows->index = nullptr;
    }
    task.mask.data = task.weight.data = task.loss_out = nullptr;
    task.grad_pred.type = Type::kFloat;
    formula.loss = Loss;
    formula.penalty = Penalty;
    formula.relative = false;
    formula.box_format = icr::kXYXY;
  }
};

// Whether all that is so.
bool is_packed(const Task& task) {
  const auto are_packed = [](const Rows& rows) {
    return rows.type == Type::kFloat && rows.aligned && rows.row_stride == 4 && rows.index == nullptr;
  };
  return are_packed(task.pred) && are_packed(task.target) &&
         (task.formula.penalty < 0 || are_packed(task.anchor_objects)) && task.mask.data == nullptr &&
         task.weight.data == nullptr && task.loss_out == nullptr && task.grad_pred.type == Type::kFloat &&
         !task.formula.relative && task.formula.box_format == icr::kXYXY && task.pairs <= int64_t(1) << 31;
}

template <class T, unsigned Want, class Known>
constexpr int kBlocksAtOnce =
    sizeof(T) == 4 && Want <= icr::kPred && !std::is_base_of_v<FullTask, Known> ? kBlocksPerMultiprocessor : 1;

// Losses or all terms of the pairs, with the gradients in Want.
template <class T, unsigned Want, bool AllTerms, class Known = AnyTask>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<T, Want, Known>)
    pairs_kernel(const __grid_constant__ Task any_task,
                 const __grid_constant__ typename Known::template Formula<T> any_formula,
                 const __grid_constant__ Sum sum) {
  Task task = any_task;
  auto formula = any_formula;
  constexpr bool is_full = icr::is_full<decltype(formula)>;
  Known::tell(task, formula);
  if constexpr (is_full) formula.wise_mean = icr::value_or(T(1), task.wise_mean, 0);
  const auto format = icr::BoxFormat(formula.box_format);
  T scale = T(task.scale);
  if (task.normalizer.data != nullptr) {
    const T normalizer = icr::element<T>(task.normalizer.data, task.normalizer.type, 0);
    scale = scale / icr::greater(formula.numbers[icr::kEps], normalizer);
  }
  using Index = typename Known::Index;
  const Index step = Index(gridDim.x) * kThreads;
  Partial total = {0, 0};
  for (Index pair = Index(blockIdx.x) * kThreads + threadIdx.x; pair < Index(task.pairs); pair += step) {
    if (icr::is_masked(task)) {
      if (!icr::counts(task, pair)) {
        store_nothing<T, Want>(task, pair);
        continue;
      }
      total.count += 1;
    }
    T pred[4], target[4], anchor[4] = {T(0), T(0), T(1), T(1)};
    load_row(task.pred, pair, pred);
    load_row(task.target, pair, target);
    const bool has_anchor = formula.penalty >= 0 && load_row(task.anchor_objects, pair, anchor);
    const bool are_corners = format == icr::kXYXY && icr::are_corners<T>(pred, target, anchor);
    icr::Boxes<T> boxes{icr::box_of(pred), icr::box_of(target), icr::box_of(anchor)};
    if (!are_corners) boxes = {icr::corners(pred, format), icr::corners(target, format), icr::corners(anchor, format)};
    if constexpr (is_full) formula.per_pixel = icr::reciprocal(icr::value_or(T(1), task.pixels, pair));
    icr::Gradients<T> gradients;
    gradients.anchor[0] = gradients.anchor[1] = gradients.anchor[2] = gradients.anchor[3] = T(0);
    T factor = scale;
    if constexpr (AllTerms) {
      const icr::Terms<T> k{icr::value_or(T(0), task.grad_loss, pair), icr::value_or(T(0), task.grad_iou, pair),
                            icr::value_or(T(0), task.grad_containment, pair),
                            icr::value_or(T(0), task.grad_penalty, pair)};
      const icr::Terms<T> terms = icr::pair_terms<Want>(formula, boxes, has_anchor, k, gradients);
      store_term(task.loss_out, pair, terms.loss);
      store_term(task.iou_out, pair, terms.iou);
      store_term(task.containment_out, pair, terms.containment);
      store_term(task.penalty_out, pair, terms.penalty);
    } else {
      const T weight = icr::value_or(T(1), task.weight, pair);
      const T loss = weight * icr::pair_loss<Want>(formula, boxes, has_anchor, gradients);
      store_term(task.loss_out, pair, loss * scale);
      factor = factor * weight;
      total.loss += double(loss);
    }
    const auto store = [&](const RowsOut& rows, const T(&coordinates)[4], T(&gradient)[4]) {
      if (Want != icr::kPred && rows.data == nullptr) return;
      for (int c = 0; c < 4; ++c) gradient[c] *= factor;
      if (!are_corners) icr::pull_back(coordinates, format, gradient);
      store_row(rows, pair, gradient);
    };
    if constexpr (Want & icr::kPred) store(task.grad_pred, pred, gradients.pred);
    if constexpr (Want & icr::kTarget) store(task.grad_target, target, gradients.target);
    if constexpr (Want & icr::kAnchorObject) store(task.grad_anchor_objects, anchor, gradients.anchor);
  }
  if constexpr (!AllTerms) {
    if (sum.value != nullptr) sum_of_launch<T>(sum, double(scale), total);
  }
}

// Scaling

template <class T>
__global__ void __launch_bounds__(kThreads) scale_kernel(const __grid_constant__ Scaling scaling) {
  if (scaling.out.data == scaling.gradient.data && icr::is_by_one<T>(scaling)) return;
  const int64_t step = int64_t(gridDim.x) * kThreads;
  for (int64_t pair = int64_t(blockIdx.x) * kThreads + threadIdx.x; pair < scaling.pairs; pair += step) {
    const T factor = icr::factor_of<T>(scaling, pair);
    T row[4];
    load_row(scaling.gradient, pair, row);
    for (int c = 0; c < 4; ++c) row[c] = icr::scaled(row[c], factor);
    store_row(scaling.out, pair, row);
  }
}

// A block for as many rows of the table as a warp has lanes: each lane has the sums of one row. The warps share the
// pairs out among them; each looks at its own in their order, 32 at a time, and hands the gradients that it finds to
// the lanes of their rows. The sums of the warps are added up at the end, in their order.
template <class T>
__global__ void __launch_bounds__(kTableThreads, 1)
    table_kernel(const __grid_constant__ Scaling scaling, const __grid_constant__ Rows table) {
  constexpr int warps = kTableThreads / kWarp;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t first_row = int64_t(blockIdx.x) * kWarp;
  const int64_t pairs_of_warp = ((scaling.pairs + warps - 1) / warps + kWarp - 1) / kWarp * kWarp;
  const int64_t begin = warp * pairs_of_warp;
  const int64_t end = begin + pairs_of_warp < scaling.pairs ? begin + pairs_of_warp : scaling.pairs;
  T sum[4] = {T(0), T(0), T(0), T(0)};
  for (int64_t at = begin; at < end; at += kWarp) {
    const int64_t pair = at + lane;
    const int64_t row = (pair < end ? icr::row_of(table, pair) : -1) - first_row;
    const bool is_found = row >= 0 && row < kWarp;
    unsigned found = __ballot_sync(kAllLanes, is_found);
    T gradient[4] = {T(0), T(0), T(0), T(0)};
    if (is_found) {
      load_row(scaling.gradient, pair, gradient);
      const T factor = icr::factor_of<T>(scaling, pair);
      for (int c = 0; c < 4; ++c) gradient[c] = icr::scaled(gradient[c], factor);
    }
    for (; found != 0; found &= found - 1) {
      const int source = __ffs(int(found)) - 1;
      const bool is_mine = __shfl_sync(kAllLanes, int(row), source) == lane;
      for (int c = 0; c < 4; ++c) {
        const T given = __shfl_sync(kAllLanes, gradient[c], source);
        if (is_mine) sum[c] += given;
      }
    }
  }
  __shared__ T of_warp[warps][kWarp][4];
  for (int c = 0; c < 4; ++c) of_warp[warp][lane][c] = sum[c];
  __syncthreads();
  if (warp > 0 || first_row + lane >= table.row_count) return;
  for (int w = 1; w < warps; ++w) {
    for (int c = 0; c < 4; ++c) sum[c] += of_warp[w][lane][c];
  }
  store_row(scaling.out, first_row + lane, sum);
}

// Launches

template <class T, class F = icr::Formula<T>>
using PairsKernel = void (*)(Task, F, Sum);

// The kernel of packed tasks with that loss, and without a penalty or with the first, which is the default; nullptr: none.
template <int... Losses>
PairsKernel<float> packed_kernel(int loss, int penalty, std::integer_sequence<int, Losses...>) {
  constexpr int losses = sizeof...(Losses);
  static constexpr PairsKernel<float> kernels[][losses] = {
      {pairs_kernel<float, icr::kPred, false, PackedTask<Losses, -1>>...},
      {pairs_kernel<float, icr::kPred, false, PackedTask<Losses, 0>>...}};
  const bool is_there = loss >= 0 && loss < losses && penalty >= -1 && penalty <= 0;
  return is_there ? kernels[penalty + 1][loss] : nullptr;
}

// That of any tasks with that loss and its parameters and modifiers. The last one stands for all beyond, as in
// icr::visit.
template <int... Losses>
PairsKernel<float, icr::FullFormula<float>> kernel_of_loss(int loss, std::integer_sequence<int, Losses...>) {
  static constexpr PairsKernel<float, icr::FullFormula<float>> kernels[] = {
      pairs_kernel<float, icr::kPred, false, OneLoss<Losses>>...};
  return kernels[std::min<size_t>(loss, sizeof...(Losses) - 1)];
}

constexpr unsigned kAllBoxes = icr::kPred | icr::kTarget | icr::kAnchorObject;

template <class T>
PairsKernel<T> kernel_for(const Task& task) {
  const bool pred = task.grad_pred.data != nullptr;
  const bool others = task.grad_target.data != nullptr || task.grad_anchor_objects.data != nullptr;
  if (task.terms) return pred || others ? pairs_kernel<T, kAllBoxes, true> : pairs_kernel<T, 0, true>;
  if (others) return pairs_kernel<T, kAllBoxes, false>;
  if (!pred) return pairs_kernel<T, 0, false>;
  if constexpr (sizeof(T) == 4) {
    const auto packed =
        packed_kernel(task.formula.loss, task.formula.penalty, icr::places_of(icr::CommonLosses{}));
    if (packed != nullptr && is_packed(task)) return packed;
  }
  return pairs_kernel<T, icr::kPred, false>;
}

// Gradients for more boxes than are wanted are computed only where that saves a kernel that few would use.
template <class T>
PairsKernel<T, icr::FullFormula<T>> full_kernel_for(const Task& task) {
  if (task.terms) return pairs_kernel<T, kAllBoxes, true, FullTask>;
  if constexpr (sizeof(T) == 4) {
    const bool others = task.grad_target.data != nullptr || task.grad_anchor_objects.data != nullptr;
    if (!others && task.grad_pred.data != nullptr) {
      return kernel_of_loss(task.formula.loss, icr::places_of(icr::Losses{}));
    }
  }
  return pairs_kernel<T, kAllBoxes, false, FullTask>;
}

template <class T>
cudaError_t run(const Task& task, const Sum& sum, int64_t blocks, cudaStream_t stream) {
  if (!icr::is_common(task.formula)) {
    return launch(full_kernel_for<T>(task), blocks, kThreads, stream, task,
                  icr::formula_in<icr::FullFormula<T>, T>(task.formula), sum);
  }
  return launch(kernel_for<T>(task), blocks, kThreads, stream, task, icr::formula_in<icr::Formula<T>, T>(task.formula),
                sum);
}

}  // namespace

int64_t blocks_of_pairs(int64_t pairs, int multiprocessors) {
  return blocks_of_sum(pairs, multiprocessors);
}

cudaError_t run_pairs(const Task& task, const Sum& sum, int64_t blocks, cudaStream_t stream) {
  return task.in_double ? run<double>(task, sum, blocks, stream) : run<float>(task, sum, blocks, stream);
}

cudaError_t scale_rows(const Scaling& scaling, cudaStream_t stream) {
  constexpr int64_t most_blocks = 1 << 16;
  return launch(scaling.in_double ? scale_kernel<double> : scale_kernel<float>,
                std::min(ceil_divide(scaling.pairs, kThreads), most_blocks), kThreads, stream, scaling);
}

cudaError_t add_to_table(const Scaling& scaling, const Rows& table, cudaStream_t stream) {
  return launch(scaling.in_double ? table_kernel<double> : table_kernel<float>, ceil_divide(table.row_count, kWarp),
                kTableThreads, stream, scaling, table);
}

}  // namespace icr_cuda
