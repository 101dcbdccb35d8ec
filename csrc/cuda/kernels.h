// The launches: each puts one kernel on a stream, and says what went wrong with that. Nothing here waits.
#pragma once

#include <cuda_runtime.h>

#include "../task.h"

namespace icr_cuda {

using icr_kernels::Rows;
using icr_kernels::Scaling;
using icr_kernels::Task;

// What one block found.
struct Partial {
  double loss;
  double count;  // of pairs that count, where some may not
};

// The sum of a task's losses, made in the same launch.
struct Sum {
  void* value = nullptr;    // in float or double as the task says; nullptr: no sum
  void* pending = nullptr;  // 1 / the number of pairs that count, which multiplies the value; nullptr: not asked for
  Partial* partials = nullptr;  // one per block; not needed for one block
  // Counts the blocks that are done; it is 0 before and after. nullptr: the kernel has one of its own, of that number.
  unsigned* ticket = nullptr;
  unsigned ticket_number = 0;
};

// How many of its own tickets the kernel has. So many calls would have to be in flight before two of them shared one.
constexpr unsigned kTickets = 1 << 16;

// The number of blocks of run_pairs: it depends on the number of pairs and on the device, so sums do not change from
// call to call.
int64_t blocks_of_pairs(int64_t pairs, int multiprocessors);

cudaError_t run_pairs(const Task& task, const Sum& sum, int64_t blocks, cudaStream_t stream);
cudaError_t scale_rows(const Scaling& scaling, cudaStream_t stream);
// The gradient of a table: to each row, the scaled gradients of its pairs, added up in a fixed order.
cudaError_t add_to_table(const Scaling& scaling, const Rows& table, cudaStream_t stream);

}  // namespace icr_cuda
