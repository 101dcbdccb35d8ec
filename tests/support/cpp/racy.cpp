// A sum over blocks as in kernels.cu that lacks what RACE leaves out: ThreadSanitizer has to see it.
#include <cuda_runtime.h>

__global__ void sum_of_launch(float* partials, float* value, unsigned* ticket) {
  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    partials[blockIdx.x] = 1;
    if (RACE != 1) __threadfence();
    is_last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
    if (RACE != 2) __threadfence();
  }
  if (RACE != 3) __syncthreads();
  if (is_last && threadIdx.x < gridDim.x) value[threadIdx.x] = partials[threadIdx.x];
}

int main() {
  float partials[4], values[4];
  unsigned ticket = 0;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(4);
  config.blockDim = dim3(64);
  return cudaLaunchKernelEx(&config, sum_of_launch, &partials[0], &values[0], &ticket);
}
