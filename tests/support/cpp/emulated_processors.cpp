// The emulated GPU. Sums are made by one block and by many, in every order of the blocks, and must agree to the bit.
#include "processor.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "../../../csrc/cuda/assignment.cu"
#include "../../../csrc/cuda/detection.cu"
#include "../../../csrc/cuda/kernels.cu"
#include "../../../csrc/cuda/pairwise.cu"
#include "../../../csrc/cuda/selection.cu"

using emulation::device;
using emulation::Device;
using namespace icr_cuda;

namespace {

void must(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "emulated CUDA: %s\n", what);
  std::abort();
}

void run(const Task& task) {
  const cudaStream_t stream = nullptr;
  if (task.terms) {
    if (task.pairs > 0) must(run_pairs(task, Sum{}, blocks_of_pairs(task.pairs, 2), stream) == cudaSuccess, "launch");
    return;
  }
  const size_t size = task.in_double ? 8 : 4;
  for (const int64_t blocks : {int64_t(1), std::max<int64_t>(blocks_of_pairs(task.pairs, 1000), 1)}) {
    char results[3][16];
    for (const auto order : {Device::kForward, Device::kBackward, Device::kShuffled}) {
      device.order = order;
      const std::unique_ptr<char[]> value(new char[size]), pending(new char[size]);
      const std::unique_ptr<Partial[]> partials(new Partial[blocks]);
      const auto ticket = std::make_unique<unsigned>(0);
      Sum sum{value.get(), task.mask.data != nullptr ? pending.get() : nullptr, partials.get(), ticket.get()};
      if (order == Device::kBackward) {
        sum.ticket = nullptr;
        sum.ticket_number = kTickets - 1;
      }
      must(run_pairs(task, sum, blocks, stream) == cudaSuccess, "launch");
      must(*ticket == 0 && tickets[kTickets - 1] == 0, "a ticket was not given back");
      std::memset(results[order], 0, 16);
      std::memcpy(results[order], value.get(), size);
      if (sum.pending != nullptr) std::memcpy(results[order] + size, pending.get(), size);
    }
    must(std::memcmp(results[0], results[1], 16) == 0 && std::memcmp(results[0], results[2], 16) == 0,
         "a sum depends on the order of the blocks");
  }
}

void scale(const Scaling& scaling) {
  if (scaling.pairs > 0) must(scale_rows(scaling, nullptr) == cudaSuccess, "launch");
}

void add(const Scaling& scaling, const Rows& table) {
  if (table.row_count > 0) must(add_to_table(scaling, table, nullptr) == cudaSuccess, "launch");
}

// On one multiprocessor, so that there are fewer blocks than pieces of work.
constexpr int kMultiprocessors = 1;

void pairwise(const PairwiseTask& task) {
  if (task.batches * task.first.count * task.second.count == 0) return;
  must(all_pairs(task, kMultiprocessors, nullptr) == cudaSuccess, "launch");
}

void pairwise_backward(const PairwiseTask& task) {
  if (task.batches * task.first.count > 0 && task.grad_first.data != nullptr) {
    must(gradient_of_boxes(task, false, kMultiprocessors, nullptr) == cudaSuccess, "launch");
  }
  if (task.batches * task.second.count > 0 && task.grad_second.data != nullptr) {
    must(gradient_of_boxes(task, true, kMultiprocessors, nullptr) == cudaSuccess, "launch");
  }
}

void select(const SelectionTask& task) {
  if (task.batches * task.queries.count == 0) return;
  const int64_t count = count_group_ranges(task);
  const std::unique_ptr<GroupRange[]> ranges(count > 0 ? new GroupRange[count] : nullptr);
  if (count > 0) must(find_group_ranges(task, ranges.get(), kMultiprocessors, nullptr) == cudaSuccess, "launch");
  must(select_candidates(task, ranges.get(), kMultiprocessors, nullptr) == cudaSuccess, "launch");
}

void matching_cost(const CostTask& task) {
  if (task.targets * task.boxes.count == 0) return;
  must(matching_costs(task, kMultiprocessors, nullptr) == cudaSuccess, "launch");
}

void assign(const AssignmentTask& task) {
#if defined(__SANITIZE_THREAD__)
  const std::vector<Device::Order> orders = {Device::kShuffled};
#else
  const std::vector<Device::Order> orders = {Device::kForward, Device::kBackward, Device::kShuffled};
#endif
  const int64_t points = task.images * task.points;
  std::vector<int64_t> index;
  std::vector<float> score;
  for (const auto order : orders) {
    device.order = order;
    const std::unique_ptr<unsigned long long[]> owner(new unsigned long long[points]);
    const std::unique_ptr<int[]> first_row(new int[task.images]);
    const AssignmentMemory memory{owner.get(), first_row.get()};
    must(points == 0 || assign_points(task, memory, kMultiprocessors, nullptr) == cudaSuccess, "launch");
    must(order == orders[0] || (std::equal(index.begin(), index.end(), task.index) &&
                                std::equal(score.begin(), score.end(), task.score)),
         "an assignment depends on the order of the blocks");
    index.assign(task.index, task.index + points);
    score.assign(task.score, task.score + points);
  }
}

void decode(const DecodingTask& head) { must(decode_points(head, kMultiprocessors, nullptr) == cudaSuccess, "launch"); }

void detect(const DetectionTask& task) {
  const DetectionBlocks blocks = blocks_of_detection(task, kMultiprocessors);
  const std::unique_ptr<DetectionSums[]> sums(new DetectionSums[blocks.points + blocks.classes]);
  must(icr_cuda::detect(task, blocks, sums.get(), nullptr) == cudaSuccess, "launch");
}

void detection_gradient(const DetectionTask& task) {
  must(detection_gradients(task, kMultiprocessors, nullptr) == cudaSuccess, "launch");
}

Processor emulated(int every, std::vector<int64_t> sizes, std::vector<int64_t> set_sizes) {
  return {"emulated CUDA", every,  std::move(sizes),  std::move(set_sizes), run, scale, add, pairwise,
          pairwise_backward, select, matching_cost, assign, decode, detect, detection_gradient};
}

}  // namespace

std::vector<Processor> processors() {
#if defined(__SANITIZE_THREAD__)  // a hundred times as slow
  return {emulated(67, {1, 257, 1100}, {7, 270})};
#else
  return {emulated(11, {0, 1, 31, 257, 4500}, {0, 1, 37, 270, 530})};
#endif
}
