// The launches of an assignment, four that follow each other on a stream. Nothing here waits.
#pragma once

#include <cuda_runtime.h>

#include "../task.h"

namespace icr_cuda {

using icr_kernels::AssignmentTask;

// What the launches of an assignment leave for each other; nothing needs to be in it before.
struct AssignmentMemory {
  // Of each image and point, the similarity to a row and its number; 0: none. First that of the row with the largest,
  // then that of the row that the point goes to.
  unsigned long long* owner;
  int* first_row;  // of each image
};

// Of some points.
cudaError_t assign_points(const AssignmentTask& task, const AssignmentMemory& memory, int multiprocessors,
                          cudaStream_t stream);

}  // namespace icr_cuda
