// The launches of a dense head: its boxes, its loss, and the gradients of its logits. Nothing here waits.
#pragma once

#include <cuda_runtime.h>

#include "../task.h"

namespace icr_cuda {

using icr_kernels::DecodingTask;
using icr_kernels::DetectionSums;
using icr_kernels::DetectionTask;

// The blocks of the sums of a loss: so many over the points, and so many over the logits of classes.
struct DetectionBlocks {
  int64_t points, classes;
};
DetectionBlocks blocks_of_detection(const DetectionTask& task, int multiprocessors);

cudaError_t decode_points(const DecodingTask& head, int multiprocessors, cudaStream_t stream);
// Three launches; each of those blocks leaves its sums.
cudaError_t detect(const DetectionTask& task, DetectionBlocks blocks, DetectionSums* sums, cudaStream_t stream);
cudaError_t detection_gradients(const DetectionTask& task, int multiprocessors, cudaStream_t stream);

}  // namespace icr_cuda
