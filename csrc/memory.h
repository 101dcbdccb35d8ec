// Single elements and rows in memory, of whatever type.
#pragma once

#include "half.h"
#include "task.h"

namespace {
namespace icr {

using icr_kernels::Column;
using icr_kernels::Rows;
using icr_kernels::RowsOut;
using icr_kernels::Scaling;
using icr_kernels::Task;
using icr_kernels::Type;

template <class T>
constexpr Type type_of = sizeof(T) == sizeof(float) ? Type::kFloat : Type::kDouble;

template <class T>
ICR_INLINE T element(const void* data, Type type, int64_t i) {
  switch (type) {
    case Type::kFloat: return T(static_cast<const float*>(data)[i]);
    case Type::kDouble: return T(static_cast<const double*>(data)[i]);
    case Type::kHalf: return T(half_to_float(static_cast<const uint16_t*>(data)[i]));
    case Type::kBFloat16: return T(bfloat16_to_float(static_cast<const uint16_t*>(data)[i]));
    case Type::kInt32: return T(static_cast<const int32_t*>(data)[i]);
    case Type::kInt64: return T(static_cast<const int64_t*>(data)[i]);
    case Type::kBool: return T(static_cast<const uint8_t*>(data)[i] != 0);
  }
  return T(0);
}

// The row of a pair; -1 where it has none.
ICR_INLINE int64_t row_of(const Rows& rows, int64_t pair) {
  if (rows.index == nullptr) return pair;
  const int64_t i = pair * rows.index_stride;
  const int64_t row = rows.index_type == Type::kInt64 ? static_cast<const int64_t*>(rows.index)[i]
                                                      : static_cast<const int32_t*>(rows.index)[i];
  return row >= 0 && row < rows.row_count ? row : -1;
}

// The value of a pair, or `otherwise` where there are none.
template <class T>
ICR_INLINE T value_or(T otherwise, const Column& column, int64_t pair) {
  return column.data == nullptr ? otherwise : element<T>(column.data, column.type, pair * column.stride);
}

// What the gradient of a pair is multiplied by.
template <class T>
ICR_INLINE T factor_of(const Scaling& scaling, int64_t pair) {
  return value_or(T(1), scaling.factor, pair) * value_or(T(1), scaling.pending, pair);
}

// A gradient that is 0 (a masked pair's) stays 0, whatever the factor.
template <class T>
ICR_INLINE T scaled(T gradient, T factor) {
  return gradient == T(0) ? T(0) : gradient * factor;
}

}  // namespace icr
}  // namespace
