// The launches over all pairs of two sets of boxes, as those of kernels.h. They want a task that has some results, and
// the number of multiprocessors of the device.
#pragma once

#include <cuda_runtime.h>

#include "../task.h"

namespace icr_cuda {

using icr_kernels::CostTask;
using icr_kernels::PairwiseTask;
using icr_kernels::SelectionTask;

// The smallest and the largest group in a tile of candidates.
struct GroupRange {
  int32_t smallest, largest;
};

cudaError_t all_pairs(const PairwiseTask& task, int multiprocessors, cudaStream_t stream);
// Of the first boxes or the second, from the gradient of the matrix.
cudaError_t gradient_of_boxes(const PairwiseTask& task, bool of_second, int multiprocessors, cudaStream_t stream);

// How many ranges of groups a selection needs: none where there are no groups.
int64_t count_group_ranges(const SelectionTask& task);
cudaError_t find_group_ranges(const SelectionTask& task, GroupRange* ranges, int multiprocessors, cudaStream_t stream);
cudaError_t select_candidates(const SelectionTask& task, const GroupRange* ranges, int multiprocessors,
                              cudaStream_t stream);

cudaError_t matching_costs(const CostTask& task, int multiprocessors, cudaStream_t stream);

}  // namespace icr_cuda
