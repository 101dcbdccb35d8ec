// As much of CUDA as the kernels need, on the host: the real .cu sources compile against this header with a C++ compiler.
//
// Every CUDA thread is a fiber; those of a block take turns at barriers and shuffles, and blocks run one after the other,
// in an order that a test chooses. Shared memory is poisoned before each block. What CUDA leaves undefined (a barrier or
// a shuffle that some threads do not reach) ends the program with a message. For ThreadSanitizer each fiber is a thread
// of its own that only barriers and fences order, so it finds races that a GPU might show once in a million runs.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <algorithm>
#include <functional>
#include <tuple>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
// All in one section, so that it can be poisoned: what a template has, shared.ld puts there.
#define __shared__ static __attribute__((section("cuda_shared")))

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = struct CUstream_st*;
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };

// What a test sets, and what it reads.
namespace emulation {

struct Device {
  int multiprocessors = 2;
  enum Order { kForward, kBackward, kShuffled } order = kForward;
  bool is_capturing = false;
  bool fails = false;  // the next launch
  int launches = 0;
  int memsets = 0;
};
extern Device device;

void run(dim3 grid, dim3 block, const std::function<void()>& thread);
void barrier();
void fence();
// One more, or 0 beyond the limit; returns what was there. It orders nothing by itself.
unsigned increment(unsigned* address, unsigned limit);
// What is at an address becomes another number; returns what was there.
uint64_t replace(uint64_t* address, uint64_t (*by)(uint64_t before, uint64_t a, uint64_t b), uint64_t a, uint64_t b = 0);
void lower(int* address, int value);
// Offers a value to the lanes of the warp and returns what each of them offers.
const uint64_t* exchange(unsigned lanes, uint64_t bits);
// The largest or the smallest value of the lanes.
int reduced(unsigned lanes, int value, bool largest);

}  // namespace emulation

extern dim3 threadIdx, blockIdx, gridDim, blockDim;

inline void __syncthreads() { emulation::barrier(); }
inline void __threadfence() { emulation::fence(); }

template <class T>
T __shfl_sync(unsigned lanes, T value, int source) {
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  __builtin_memcpy(&value, &emulation::exchange(lanes, bits)[source % 32], sizeof(T));
  return value;
}
template <class T>
T __shfl_down_sync(unsigned lanes, T value, unsigned distance) {
  const unsigned lane = threadIdx.x % 32;
  return __shfl_sync(lanes, value, int(lane + distance < 32 ? lane + distance : lane));
}
template <class T>
T __shfl_up_sync(unsigned lanes, T value, unsigned distance) {
  const unsigned lane = threadIdx.x % 32;
  return __shfl_sync(lanes, value, int(lane >= distance ? lane - distance : lane));
}
inline unsigned __ballot_sync(unsigned lanes, bool vote) {
  const uint64_t* votes = emulation::exchange(lanes, vote);
  unsigned result = 0;
  for (unsigned lane = 0; lane < 32; ++lane) result |= (lanes >> lane & 1u) != 0 ? unsigned(votes[lane]) << lane : 0u;
  return result;
}
inline int __reduce_min_sync(unsigned lanes, int value) { return emulation::reduced(lanes, value, false); }
inline int __reduce_max_sync(unsigned lanes, int value) { return emulation::reduced(lanes, value, true); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

inline unsigned atomicInc(unsigned* address, unsigned limit) { return emulation::increment(address, limit); }

inline unsigned long long atomicMax(unsigned long long* address, unsigned long long value) {
  const auto larger = [](uint64_t before, uint64_t a, uint64_t) { return before > a ? before : a; };
  return emulation::replace(reinterpret_cast<uint64_t*>(address), larger, value);
}
inline unsigned long long atomicExch(unsigned long long* address, unsigned long long value) {
  return emulation::replace(reinterpret_cast<uint64_t*>(address), [](uint64_t, uint64_t a, uint64_t) { return a; }, value);
}
inline unsigned long long atomicCAS(unsigned long long* address, unsigned long long expected, unsigned long long value) {
  const auto exchanged = [](uint64_t before, uint64_t a, uint64_t b) { return before == a ? b : before; };
  return emulation::replace(reinterpret_cast<uint64_t*>(address), exchanged, expected, value);
}
inline void atomicMin(int* address, int value) { emulation::lower(address, value); }
using std::max;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  // Copied, as a launch does: a kernel may not see what the caller does afterwards.
  const auto copies = std::make_tuple(std::decay_t<Parameters>(arguments)...);
  if (emulation::device.fails || config->gridDim.x == 0) return cudaErrorInvalidConfiguration;
  ++emulation::device.launches;
  emulation::run(config->gridDim, config->blockDim, [&] { std::apply(kernel, copies); });
  return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int* index);
cudaError_t cudaSetDevice(int index);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int index);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream);
