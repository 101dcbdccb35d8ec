// Single elements and rows in memory, of whatever type.
#pragma once

#include "half.h"
#include "task.h"

namespace {
namespace icr {

using icr_kernels::BoxSet;
using icr_kernels::Column;
using icr_kernels::Matrices;
using icr_kernels::MatricesOut;
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

// Rounded to the type.
template <class T>
ICR_INLINE void store_element(void* data, Type type, int64_t i, T x) {
  switch (type) {
    case Type::kHalf: static_cast<uint16_t*>(data)[i] = float_to_half(float(x)); break;
    case Type::kBFloat16: static_cast<uint16_t*>(data)[i] = float_to_bfloat16(float(x)); break;
    case Type::kDouble: static_cast<double*>(data)[i] = double(x); break;
    default: static_cast<float*>(data)[i] = float(x);
  }
}

ICR_INLINE int64_t bytes_of(Type type) {
  switch (type) {
    case Type::kDouble:
    case Type::kInt64: return 8;
    case Type::kFloat:
    case Type::kInt32: return 4;
    case Type::kHalf:
    case Type::kBFloat16: return 2;
    case Type::kBool: return 1;
  }
  return 1;
}

// The boxes of a batch.
ICR_INLINE Rows rows_of(const BoxSet& set, int64_t batch) {
  Rows rows = set.rows;
  rows.index = nullptr;  // it is; code for an index then is none
  rows.data = static_cast<const char*>(rows.data) + batch * set.batch_stride * bytes_of(rows.type);
  return rows;
}

// A row of the matrix of a batch, or with `column` the one that begins there.
ICR_INLINE Column row_of(const Matrices& matrices, int64_t batch, int64_t row, int64_t column = 0) {
  const int64_t at = batch * matrices.batch_stride + row * matrices.row_stride + column * matrices.column_stride;
  return {static_cast<const char*>(matrices.data) + at * bytes_of(matrices.type), matrices.type,
          matrices.column_stride};
}

// The row of a table that a column names; -1 for none.
ICR_INLINE int64_t named_row(const Column& index, int64_t i, int64_t rows) {
  const int64_t row = index.data == nullptr ? -1 : element<int64_t>(index.data, index.type, i * index.stride);
  return row >= 0 && row < rows ? row : -1;
}

// The element of a matrix that is written.
ICR_INLINE int64_t place_of(const MatricesOut& out, int64_t batch, int64_t row, int64_t column) {
  return batch * out.batch_stride + row * out.row_stride + column * out.column_stride;
}

// The group of a box: -1 for one that is not a group, or is not there (then every box is of group 0).
ICR_INLINE int32_t group_of(const Column& groups, int64_t box) {
  if (groups.data == nullptr) return 0;
  const int64_t group = element<int64_t>(groups.data, groups.type, box * groups.stride);
  return group >= 0 && group <= 0x7fffffff ? int32_t(group) : -1;
}

// The row of a pair; -1 where it has none.
ICR_INLINE int64_t row_of(const Rows& rows, int64_t pair) {
  if (rows.index == nullptr) return pair;
  const int64_t i = pair * rows.index_stride;
  const int64_t row = rows.index_type == Type::kInt64 ? static_cast<const int64_t*>(rows.index)[i]
                                                      : static_cast<const int32_t*>(rows.index)[i];
  return row >= 0 && row < rows.row_count ? row : -1;
}

// Whether there are pairs that do not count: with a mask, or with targets from a table.
ICR_INLINE bool is_masked(const Task& task) { return task.mask.data != nullptr || task.target.index != nullptr; }

// Whether a pair counts: the mask keeps it, and it has a target.
ICR_INLINE bool counts(const Task& task, int64_t pair) {
  const auto* mask = static_cast<const uint8_t*>(task.mask.data);
  return (mask == nullptr || mask[pair * task.mask.stride] != 0) && row_of(task.target, pair) >= 0;
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

// A gradient that is 0 (a masked pair's) stays as it is, whatever the factor.
template <class T>
ICR_INLINE T scaled(T gradient, T factor) {
  return gradient == T(0) ? gradient : gradient * factor;
}

// Whether that would leave all gradients as they are.
template <class T>
ICR_INLINE bool is_by_one(const Scaling& scaling) {
  return scaling.factor.stride == 0 && factor_of<T>(scaling, 0) == T(1);
}

}  // namespace icr
}  // namespace
