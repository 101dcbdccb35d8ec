// The loops, compiled once an instruction set.
#pragma once

#include "../task.h"

namespace icr_cpu {

using icr_kernels::Rows;
using icr_kernels::Scaling;
using icr_kernels::Task;

// The pairs of a chunk are summed together, whichever thread takes it: sums do not depend on the number of threads.
constexpr int64_t kChunk = 2048;

struct InstructionSet {
  const char* name;
  // The chunks [begin, end) of a task. Where chunk_sums is not null, the sums of their weighted losses.
  void (*run)(const Task&, double* chunk_sums, int64_t begin, int64_t end);
  // The rows [begin, end) of a scaling.
  void (*scale)(const Scaling&, int64_t begin, int64_t end);
};
extern const InstructionSet generic;
#if defined(__x86_64__)
extern const InstructionSet avx2, avx512;
#endif

// The gradient of a table: to each row, the scaled gradients of its pairs, added up in their order.
void add_to_table(const Scaling& scaling, const Rows& table);

}  // namespace icr_cpu
