// A CUDA device: guard, stream, memory and ticket of a sum, errors of launches.
#include "backend.h"

#include <algorithm>
#include <array>
#include <atomic>

namespace icr_cuda {
namespace {

using icr_kernels::BoxSet;
using icr_kernels::RowsOut;
using icr_kernels::ScalarType;

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) cudaGetLastError();  // or a later call would be blamed for it
  STD_TORCH_CHECK(error == cudaSuccess, "icr_kernels: ", what, " failed: ", cudaGetErrorString(error));
}

int multiprocessors(int device) {
  constexpr int most_devices = 128;
  static std::array<std::atomic<int>, most_devices> known{};
  int count = device < most_devices ? known[device].load(std::memory_order_relaxed) : 0;
  if (count == 0) {
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "asking for the multiprocessors");
    if (device < most_devices) known[device].store(count, std::memory_order_relaxed);
  }
  return count;
}

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status;
  check(cudaStreamIsCapturing(stream, &status), "asking whether the stream is being captured");
  return status != cudaStreamCaptureStatusNone;
}

// A tensor of no dimensions at the beginning of a buffer.
Tensor first_of(const Tensor& buffer) {
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(buffer.get(), 0, nullptr, nullptr, 0, &handle));
  return Tensor(handle);
}

}  // namespace

Cuda::Cuda(const Tensor& like) : like_(like) {
  int32_t index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  device_ = index;
  check(cudaGetDevice(&device_before_), "asking for the current device");
  if (device_ != device_before_) check(cudaSetDevice(device_), "changing the device");
  void* stream;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
  stream_ = static_cast<cudaStream_t>(stream);
}

Cuda::~Cuda() {
  if (device_ != device_before_) cudaSetDevice(device_before_);
}

void Cuda::run(const Task& task) const {
  if (task.pairs == 0) return;
  check(run_pairs(task, Sum{}, blocks_of_pairs(task.pairs, multiprocessors(device_)), stream_), "the launch for pairs");
}

std::tuple<Tensor, OptionalTensor> Cuda::sum(Task& task, bool over_count, bool is_masked) const {
  const ScalarType dtype = task.in_double ? ScalarType::Double : ScalarType::Float;
  const bool defers_count = over_count && is_masked;
  if (over_count && !defers_count) task.scale /= double(std::max<int64_t>(task.pairs, 1));

  // One allocation has the value, a ticket, and what each block found: for one block the value alone.
  const int64_t blocks = std::max<int64_t>(blocks_of_pairs(task.pairs, multiprocessors(device_)), 1);
  constexpr size_t head = sizeof(Partial);
  static_assert(head >= sizeof(double) + sizeof(unsigned));
  const size_t bytes = blocks == 1 ? sizeof(double) : head + blocks * sizeof(Partial);
  const Tensor buffer = icr_kernels::empty(like_, {int64_t(bytes / (task.in_double ? 8 : 4))}, dtype);
  char* const memory = static_cast<char*>(buffer.data_ptr());
  OptionalTensor pending;
  if (defers_count) pending = icr_kernels::empty(like_, {}, dtype);

  Sum sum;
  sum.value = memory;
  if (defers_count) sum.pending = pending->data_ptr();
  if (blocks > 1) {
    sum.partials = reinterpret_cast<Partial*>(memory + head);
    if (is_capturing(stream_)) {
      // A graph may run while eager calls do, so a ticket number may not be baked into it.
      sum.ticket = reinterpret_cast<unsigned*>(memory + sizeof(double));
      check(cudaMemsetAsync(sum.ticket, 0, sizeof(unsigned), stream_), "clearing the ticket");
    } else {
      static std::atomic<unsigned> next_ticket{0};
      sum.ticket_number = next_ticket.fetch_add(1, std::memory_order_relaxed) % kTickets;
    }
  }
  check(run_pairs(task, sum, blocks, stream_), "the launch for pairs");
  return {first_of(buffer), pending};
}

void Cuda::scale(const Scaling& scaling) const {
  if (scaling.pairs > 0) check(scale_rows(scaling, stream_), "the launch for scaling");
}

void Cuda::add_to_table(const Scaling& scaling, const Rows& table) const {
  if (table.row_count > 0) check(icr_cuda::add_to_table(scaling, table, stream_), "the launch for a table's gradient");
}

void Cuda::pairwise(const PairwiseTask& task) const {
  if (task.batches * task.first.count * task.second.count == 0) return;
  check(all_pairs(task, multiprocessors(device_), stream_), "the launch for all pairs");
}

void Cuda::pairwise_backward(const PairwiseTask& task) const {
  const auto gradient = [&](bool of_second, const RowsOut& wanted, const BoxSet& boxes) {
    if (wanted.data == nullptr || task.batches * boxes.count == 0) return;
    check(gradient_of_boxes(task, of_second, multiprocessors(device_), stream_),
          "the launch for the gradient of all pairs");
  };
  gradient(false, task.grad_first, task.first);
  gradient(true, task.grad_second, task.second);
}

void Cuda::select(const SelectionTask& task) const {
  if (task.batches * task.queries.count == 0) return;
  const int64_t count = count_group_ranges(task);
  GroupRange* ranges = nullptr;
  Tensor memory;
  if (count > 0) {
    memory = icr_kernels::empty(like_, {count, 2}, ScalarType::Int);
    ranges = static_cast<GroupRange*>(memory.data_ptr());
    check(find_group_ranges(task, ranges, multiprocessors(device_), stream_),
          "the launch for the groups of a selection");
  }
  check(select_candidates(task, ranges, multiprocessors(device_), stream_), "the launch for a selection");
}

void Cuda::matching_cost(const CostTask& task) const {
  if (task.targets * task.boxes.count == 0) return;
  check(matching_costs(task, multiprocessors(device_), stream_), "the launch for matching costs");
}

void Cuda::assign(const AssignmentTask& task) const {
  const int64_t points = task.images * task.points;
  if (points == 0) return;
  const Tensor owner = icr_kernels::empty(like_, {points}, ScalarType::Long);
  const Tensor first_row = icr_kernels::empty(like_, {task.images}, ScalarType::Int);
  const AssignmentMemory memory{static_cast<unsigned long long*>(owner.data_ptr()),
                                static_cast<int*>(first_row.data_ptr())};
  check(assign_points(task, memory, multiprocessors(device_), stream_), "a launch for an assignment");
}

void Cuda::decode(const DecodingTask& head) const {
  check(decode_points(head, multiprocessors(device_), stream_), "the launch for a head's boxes");
}

void Cuda::detect(const DetectionTask& task) const {
  const DetectionBlocks blocks = blocks_of_detection(task, multiprocessors(device_));
  constexpr int64_t numbers = sizeof(DetectionSums) / sizeof(double);
  const Tensor sums = icr_kernels::empty(like_, {blocks.points + blocks.classes, numbers}, ScalarType::Double);
  check(icr_cuda::detect(task, blocks, static_cast<DetectionSums*>(sums.data_ptr()), stream_),
        "a launch for a detection loss");
}

void Cuda::detection_gradient(const DetectionTask& task) const {
  check(detection_gradients(task, multiprocessors(device_), stream_), "a launch for the gradient of a detection loss");
}

}  // namespace icr_cuda
