// What the sanitizer build runs its tasks on: the CPU's instruction sets, or the emulated GPU.
#pragma once

#include <cstdint>
#include <vector>

#include "../../csrc/task.h"

struct Processor {
  const char* name;
  int every;  // of the combinations of options, one in so many
  std::vector<int64_t> sizes;
  void (*run)(const icr_kernels::Task&);  // with a sum of the losses too, unless all terms are asked for
  void (*scale)(const icr_kernels::Scaling&);
  void (*add_to_table)(const icr_kernels::Scaling&, const icr_kernels::Rows& table);
};

std::vector<Processor> processors();
