// The launches of an assignment, as those of kernels.h. They are of one task and follow each other on one stream.
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

cudaError_t prepare_assignment(const AssignmentTask& task, const AssignmentMemory& memory, int multiprocessors,
                               cudaStream_t stream);
// Rows of the truth take points.
cudaError_t take_points(const AssignmentTask& task, const AssignmentMemory& memory, int multiprocessors,
                        cudaStream_t stream);
// Every point goes to one row.
cudaError_t settle_points(const AssignmentTask& task, const AssignmentMemory& memory, int multiprocessors,
                          cudaStream_t stream);
// Rows keep the best of their points, whose scores follow.
cudaError_t score_points(const AssignmentTask& task, const AssignmentMemory& memory, int multiprocessors,
                         cudaStream_t stream);

}  // namespace icr_cuda
