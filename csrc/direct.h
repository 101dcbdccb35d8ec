// The way around torch's dispatcher: what csrc/autograd.cpp calls, which is a module of its own. Each module of a
// processor has a table of it.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <memory>
#include <optional>

#include "task.h"

namespace icr_kernels {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using ScalarType = torch::headeronly::ScalarType;

// The modules see different versions of torch's headers, and have to mean the same by a tensor.
static_assert(sizeof(Tensor) == sizeof(std::shared_ptr<void>));

enum Reduction : int64_t { kNone = 0, kSum = 1, kMean = 2 };

struct LossCall {
  Tensor pred, target;
  OptionalTensor anchor_objects, target_index, anchor_index, weight, mask, pixels, wise_mean, normalizer;
  double scale;
  int64_t reduction;
  FullFormula<double> formula;
  int64_t wanted;
  bool in_box_dtype;
};

// `pending` is what the gradients are still to be multiplied by. Of all but the value only what there is.
struct LossResult {
  Tensor value;
  OptionalTensor pending, grad_pred, grad_target, grad_anchor_objects;
};

// A gradient of the pairs times factor and pending, as far as they are there; of a table with its index, that of its
// rows.
struct ScalingCall {
  Tensor gradient;
  OptionalTensor factor, pending;
  ScalarType dtype;
  OptionalTensor table, table_index;
  bool in_place;  // the gradient itself is the result; only in its own dtype, and not of a table
};

struct Direct {
  LossResult (*loss)(const LossCall&);
  Tensor (*scaled)(const ScalingCall&);

  static constexpr const char* kName = "icr_kernels.direct";
};

}  // namespace icr_kernels
