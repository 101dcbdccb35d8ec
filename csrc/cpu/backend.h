// The CPU, as csrc/operators.h asks of a processor, and its instruction sets.
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "../detection_operators.h"
#include "instruction_sets.h"

namespace icr_cpu {

using icr_kernels::Column;
using icr_kernels::OptionalTensor;
using icr_kernels::ScalarType;
using icr_kernels::Tensor;

class Cpu {
 public:
  explicit Cpu(const Tensor& like) : like_(like) {}

  void run(const Task& task) const;
  // Runs the task and adds up its losses, over the number of pairs that count if so asked. The gradients are complete.
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
};

// The instruction sets that this build has, that this processor can run, and the one in use.
std::vector<std::string> compiled_instruction_sets();
std::vector<std::string> usable_instruction_sets();
std::string instruction_set();
const InstructionSet& instructions();
void set_instruction_set(const std::string& name);

}  // namespace icr_cpu
