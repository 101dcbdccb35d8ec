// A CUDA device, as csrc/operators.h and csrc/pairwise_operators.h ask of a processor: the tensors' own device and its
// current stream, no waiting.
#pragma once

#include <tuple>

#include "../detection_operators.h"
#include "assignment.h"
#include "detection.h"
#include "kernels.h"
#include "pairwise.h"

namespace icr_cuda {

using icr_kernels::OptionalTensor;
using icr_kernels::Tensor;

class Cuda {
 public:
  // Makes the tensor's device the current one, for as long as this lives.
  explicit Cuda(const Tensor& like);
  ~Cuda();
  Cuda(const Cuda&) = delete;
  Cuda& operator=(const Cuda&) = delete;

  void run(const Task& task) const;
  // Runs the task and adds up its losses in one launch. Over the number of pairs that count, if so asked: where some
  // may not, that number is known only at the end, so the gradients still lack the factor that comes second.
  std::tuple<Tensor, OptionalTensor> sum(Task& task, bool over_count, bool is_masked) const;
  void scale(const Scaling& scaling) const;
  void add_to_table(const Scaling& scaling, const Rows& table) const;
  void pairwise(const PairwiseTask& task) const;
  void pairwise_backward(const PairwiseTask& task) const;
  void select(const SelectionTask& task) const;
  void matching_cost(const CostTask& task) const;
  void assign(const AssignmentTask& task) const;
  void decode(const DecodingTask& head) const;
  void detect(const DetectionTask& task) const;
  void detection_gradient(const DetectionTask& task) const;

 private:
  Tensor like_;
  int device_;
  int device_before_;
  cudaStream_t stream_;
};

}  // namespace icr_cuda
