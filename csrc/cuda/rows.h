// What the kernels share: blocks and warps, rows from memory to registers and back, a launch.
#pragma once

#include <cuda_runtime.h>

#include "../box.h"
#include "../memory.h"

namespace icr_cuda {
namespace {

using icr_kernels::Rows;
using icr_kernels::RowsOut;
using icr_kernels::Type;

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
// Enough warps to keep memory busy while others compute.
constexpr int kBlocksPerMultiprocessor = 4;
constexpr unsigned kAllLanes = 0xffffffffu;

struct alignas(8) FourHalves {
  uint16_t x, y, z, w;
};

template <class T>
__device__ void load_whole(const void* data, Type type, int64_t at, T (&x)[4]) {
  if (type == Type::kFloat) {
    const float4 row = *reinterpret_cast<const float4*>(static_cast<const float*>(data) + at);
    x[0] = T(row.x), x[1] = T(row.y), x[2] = T(row.z), x[3] = T(row.w);
  } else if (type == Type::kDouble) {
    const auto* rows = reinterpret_cast<const double2*>(static_cast<const double*>(data) + at);
    const double2 first = rows[0], second = rows[1];
    x[0] = T(first.x), x[1] = T(first.y), x[2] = T(second.x), x[3] = T(second.y);
  } else {
    const FourHalves row = *reinterpret_cast<const FourHalves*>(static_cast<const uint16_t*>(data) + at);
    const bool is_half = type == Type::kHalf;
    x[0] = T(is_half ? icr::half_to_float(row.x) : icr::bfloat16_to_float(row.x));
    x[1] = T(is_half ? icr::half_to_float(row.y) : icr::bfloat16_to_float(row.y));
    x[2] = T(is_half ? icr::half_to_float(row.z) : icr::bfloat16_to_float(row.z));
    x[3] = T(is_half ? icr::half_to_float(row.w) : icr::bfloat16_to_float(row.w));
  }
}

// The coordinates of a pair; a box like any other where it has no row. Returns whether it has one.
template <class T>
__device__ bool load_row(const Rows& rows, int64_t pair, T (&x)[4]) {
  const int64_t row = icr::row_of(rows, pair);
  if (row < 0) {
    x[0] = x[1] = T(0);
    x[2] = x[3] = T(1);
    return false;
  }
  const int64_t at = row * rows.row_stride;
  if (rows.aligned) {
    load_whole(rows.data, rows.type, at, x);
  } else {
    for (int c = 0; c < 4; ++c) x[c] = icr::element<T>(rows.data, rows.type, at + c * rows.column_stride);
  }
  return true;
}

template <class T>
__device__ icr::Box<T> load_box(const Rows& rows, int64_t row, int format) {
  T coordinates[4];
  load_row(rows, row, coordinates);
  return icr::corners(coordinates, icr::BoxFormat(format));
}

template <class T>
__device__ void store_row(const RowsOut& rows, int64_t row, const T (&x)[4]) {
  if (rows.type == Type::kFloat) {
    static_cast<float4*>(rows.data)[row] = make_float4(float(x[0]), float(x[1]), float(x[2]), float(x[3]));
  } else if (rows.type == Type::kDouble) {
    auto* to = static_cast<double2*>(rows.data) + 2 * row;
    to[0] = make_double2(double(x[0]), double(x[1]));
    to[1] = make_double2(double(x[2]), double(x[3]));
  } else {
    const bool is_half = rows.type == Type::kHalf;
    uint16_t rounded[4];
    for (int c = 0; c < 4; ++c) {
      rounded[c] = is_half ? icr::float_to_half(float(x[c])) : icr::float_to_bfloat16(float(x[c]));
    }
    static_cast<FourHalves*>(rows.data)[row] = {rounded[0], rounded[1], rounded[2], rounded[3]};
  }
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, cudaStream_t stream,
                   const Arguments&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(threads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The blocks of a sum over so many: it does not change from call to call.
inline int64_t blocks_of_sum(int64_t count, int multiprocessors) {
  const int64_t most = int64_t(multiprocessors) * kBlocksPerMultiprocessor, all = ceil_divide(count, kThreads);
  return all < most ? all : most;
}

// Work may be more than a grid has blocks; each then takes several pieces, one after the other.
inline int64_t blocks_of(int64_t pieces, int multiprocessors) {
  const int64_t most = int64_t(multiprocessors) * 256;
  return pieces < most ? pieces : most;
}

}  // namespace
}  // namespace icr_cuda
