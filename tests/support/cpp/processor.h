// What the sanitizer build runs its tasks on: the CPU's instruction sets, or the emulated GPU.
#pragma once

#include <cstdint>
#include <vector>

#include "../../../csrc/task.h"

struct Processor {
  const char* name;
  int every;  // of the combinations of options, one in so many
  std::vector<int64_t> sizes;
  std::vector<int64_t> set_sizes;  // of the sets whose pairs are looked at
  void (*run)(const icr_kernels::Task&);  // with a sum of the losses too, unless all terms are asked for
  void (*scale)(const icr_kernels::Scaling&);
  void (*add_to_table)(const icr_kernels::Scaling&, const icr_kernels::Rows& table);
  void (*pairwise)(const icr_kernels::PairwiseTask&);
  void (*pairwise_backward)(const icr_kernels::PairwiseTask&);
  void (*select)(const icr_kernels::SelectionTask&);
  void (*matching_cost)(const icr_kernels::CostTask&);
  void (*assign)(const icr_kernels::AssignmentTask&);
  void (*decode)(const icr_kernels::DecodingTask&);
  void (*detect)(const icr_kernels::DetectionTask&);
  void (*detection_gradient)(const icr_kernels::DetectionTask&);
};

std::vector<Processor> processors();
