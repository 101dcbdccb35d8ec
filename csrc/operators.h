// The operators: from tensors to a task, and from its results to tensors. `Backend` is the processor that the task runs
// on: icr_cpu::Cpu, icr_cuda::Cuda.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "direct.h"

namespace icr_kernels {

inline Type type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Type::kFloat;
    case ScalarType::Double: return Type::kDouble;
    case ScalarType::Half: return Type::kHalf;
    case ScalarType::BFloat16: return Type::kBFloat16;
    case ScalarType::Int: return Type::kInt32;
    case ScalarType::Long: return Type::kInt64;
    case ScalarType::Bool: return Type::kBool;
    default: STD_TORCH_CHECK(false, "icr_kernels: a tensor of a dtype that no kernel reads");
  }
  return Type::kFloat;
}

// The tensor with all but its last `trailing` dimensions seen as one, of this stride. Copies only what cannot be seen
// so.
struct Flat {
  Tensor tensor;
  int64_t stride = 0;
};

inline Flat flat(Tensor tensor, int64_t trailing) {
  int64_t stride = 0, covered = 1;
  for (int64_t d = tensor.dim() - trailing - 1; d >= 0; --d) {
    if (tensor.size(d) == 1) continue;
    if (covered == 1) {
      stride = tensor.stride(d);
    } else if (tensor.stride(d) != stride * covered) {
      tensor = torch::stable::contiguous(tensor);
      int64_t elements = 1;
      for (int64_t t = 1; t <= trailing; ++t) elements *= tensor.size(tensor.dim() - t);
      return {tensor, elements};
    }
    covered *= tensor.size(d);
  }
  return {tensor, stride};
}

inline bool is_aligned(const Rows& rows) {
  const size_t bytes = rows.type == Type::kDouble || rows.type == Type::kFloat ? 16 : 8;
  return rows.column_stride == 1 && rows.row_stride % 4 == 0 && uintptr_t(rows.data) % bytes == 0;
}

// Tensors that a task points into live as long as this.
class Inputs {
 public:
  explicit Inputs(size_t count) { tensors_.reserve(count); }

  const Tensor& keep(const Tensor& tensor) {
    tensors_.push_back(tensor);
    return tensors_.back();
  }

  // With an index, those of a table.
  Rows rows(const Tensor& boxes, const OptionalTensor& index = std::nullopt) {
    const Flat view = flat(boxes, 1);
    keep(view.tensor);
    Rows rows;
    rows.data = view.tensor.data_ptr();
    rows.type = type_of(view.tensor);
    rows.row_stride = view.stride;
    rows.column_stride = view.tensor.stride(view.tensor.dim() - 1);
    if (boxes.numel() == 4) rows.row_stride = 4;
    rows.aligned = is_aligned(rows);
    if (index.has_value()) {
      const Column numbers = column(index);
      rows.index = numbers.data;
      rows.index_type = numbers.type;
      rows.index_stride = numbers.stride;
      rows.row_count = boxes.size(0);
    }
    return rows;
  }

  Column column(const OptionalTensor& values) {
    if (!values.has_value()) return {};
    const Flat view = flat(*values, 0);
    keep(view.tensor);
    return {view.tensor.data_ptr(), type_of(view.tensor), view.stride};
  }

 private:
  std::vector<Tensor> tensors_;
};

// A tensor where `like` is, allocated without going through the dispatcher.
inline Tensor empty(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype,
                    const std::vector<int64_t>& strides) {
  int32_t device_type, device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle = nullptr;
  if (aoti_torch_empty_strided(int64_t(shape.size()), shape.data(), strides.data(), static_cast<int32_t>(dtype),
                               device_type, device_index, &handle) != AOTI_TORCH_SUCCESS) {
    double elements = 1;
    for (const int64_t size : shape) elements *= double(size);
    // In the words that trainers look for, to try again with a smaller batch. Why PyTorch refused is not known here.
    STD_TORCH_CHECK(false, device_type == aoti_torch_device_type_cuda() ? "CUDA" : "CPU",
                    " out of memory. icr_kernels tried to allocate a tensor of ", elements, " elements, ",
                    "and PyTorch refused; where memory is free, the reason is an earlier error of the device");
  }
  return Tensor(handle);
}

// A contiguous one.
inline Tensor empty(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= shape[d] > 1 ? shape[d] : 1;
  }
  return empty(like, shape, dtype, strides);
}

inline std::vector<int64_t> shape_of(const Tensor& tensor, int64_t trailing) {
  const auto sizes = tensor.sizes();
  return std::vector<int64_t>(sizes.begin(), sizes.end() - trailing);
}

// Memory for the gradient of some boxes, if they are there, one row per pair.
inline OptionalTensor gradient_rows(const Tensor& pred, const OptionalTensor& boxes, bool in_box_dtype,
                                    ScalarType dtype, RowsOut& out) {
  if (!boxes.has_value()) return std::nullopt;
  Tensor rows = empty(pred, shape_of(pred, 0), in_box_dtype ? boxes->scalar_type() : dtype);
  out = {rows.data_ptr(), type_of(rows)};
  return rows;
}

// An operator returns as many tensors as its schema says: one of no elements for what is not there.
inline Tensor or_nothing(const OptionalTensor& tensor, const Tensor& like, ScalarType dtype) {
  return tensor.has_value() ? *tensor : empty(like, {0}, dtype);
}

inline bool any_double(const Tensor& pred, const Tensor& target, const OptionalTensor& anchor_objects) {
  return pred.scalar_type() == ScalarType::Double || target.scalar_type() == ScalarType::Double ||
         (anchor_objects.has_value() && anchor_objects->scalar_type() == ScalarType::Double);
}

// The description of a formula: names as their places in icr_kernels/variants.py, and numbers. icr_kernels/calls.py
// packs it, and here it is read.
using Numbers = std::vector<double>;

inline void check_count(const Numbers& numbers, size_t count) {
  STD_TORCH_CHECK(numbers.size() == count, "icr_kernels: expected a formula of ", count, " numbers, got ",
                  numbers.size());
}

// Where a common loss is not modified, its own numbers are left out.
inline FullFormula<double> formula_of(const Numbers& numbers) {
  constexpr size_t choices = 5;  // loss, penalty, format, relative, modifiers
  check_count(numbers, choices + kNumberCount + (numbers.size() > choices + kNumberCount ? kLossNumberCount : 0));
  FullFormula<double> formula{{int(numbers[0]), int(numbers[1]), numbers[3] != 0, {}, int(numbers[2])},
                              int(numbers[4]), {}, 1, 1};
  const auto of_loss = numbers.begin() + choices + kNumberCount;
  std::copy(numbers.begin() + choices, of_loss, formula.numbers);
  std::copy(of_loss, numbers.end(), formula.of_loss);
  return formula;
}

// The part of a task that the loss and the terms share.
inline Task make_task(Inputs& inputs, const Tensor& pred, const Tensor& target, const OptionalTensor& anchor_objects,
                      const OptionalTensor& target_index, const OptionalTensor& anchor_index,
                      const OptionalTensor& mask, const OptionalTensor& pixels, const OptionalTensor& wise_mean,
                      const FullFormula<double>& formula) {
  Task task;
  task.formula = formula;
  if (!anchor_objects.has_value()) task.formula.penalty = -1;
  task.pairs = pred.numel() / 4;
  task.in_double = any_double(pred, target, anchor_objects);
  task.pred = inputs.rows(pred);
  task.target = inputs.rows(target, target_index);
  if (anchor_objects.has_value()) task.anchor_objects = inputs.rows(*anchor_objects, anchor_index);
  task.mask = inputs.column(mask);
  task.pixels = inputs.column(pixels);
  task.wise_mean = inputs.column(wise_mean);
  return task;
}

template <class Backend>
LossResult loss_of(const LossCall& call) {
  const Tensor& pred = call.pred;
  const Backend backend(pred);
  Inputs inputs(10);
  Task task = make_task(inputs, pred, call.target, call.anchor_objects, call.target_index, call.anchor_index,
                        call.mask, call.pixels, call.wise_mean, call.formula);
  task.weight = inputs.column(call.weight);
  task.normalizer = inputs.column(call.normalizer);
  task.scale = call.scale;

  const ScalarType dtype = task.in_double ? ScalarType::Double : ScalarType::Float;
  const auto gradient = [&](const OptionalTensor& boxes, int64_t bit, RowsOut& out) {
    return gradient_rows(pred, call.wanted & bit ? boxes : std::nullopt, call.in_box_dtype, dtype, out);
  };
  OptionalTensor grad_pred = gradient(pred, kPred, task.grad_pred);
  OptionalTensor grad_target = gradient(call.target, kTarget, task.grad_target);
  OptionalTensor grad_anchor_objects = gradient(call.anchor_objects, kAnchorObject, task.grad_anchor_objects);
  if (call.reduction == kNone) {
    Tensor losses = empty(pred, shape_of(pred, 1), dtype);
    task.loss_out = losses.data_ptr();
    backend.run(task);
    return {losses, std::nullopt, grad_pred, grad_target, grad_anchor_objects};
  }
  const bool over_count = call.reduction == kMean && !call.normalizer.has_value();
  auto [total, pending] = backend.sum(task, over_count, call.mask.has_value() || call.target_index.has_value());
  return {total, pending, grad_pred, grad_target, grad_anchor_objects};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> loss(Tensor pred, Tensor target, OptionalTensor anchor_objects,
                                                        OptionalTensor target_index, OptionalTensor anchor_index,
                                                        OptionalTensor weight, OptionalTensor mask,
                                                        OptionalTensor pixels, OptionalTensor wise_mean,
                                                        OptionalTensor normalizer, double scale, int64_t reduction,
                                                        Numbers numbers, int64_t wanted, bool in_box_dtype) {
  const LossResult found =
      loss_of<Backend>({pred, target, anchor_objects, target_index, anchor_index, weight, mask, pixels, wise_mean,
                        normalizer, scale, reduction, formula_of(numbers), wanted, in_box_dtype});
  const ScalarType dtype = found.value.scalar_type();
  return {found.value, or_nothing(found.pending, pred, dtype), or_nothing(found.grad_pred, pred, dtype),
          or_nothing(found.grad_target, pred, dtype), or_nothing(found.grad_anchor_objects, pred, dtype)};
}

template <class Backend>
Tensor scaled_of(const ScalingCall& call) {
  const Backend backend(call.gradient);
  STD_TORCH_CHECK(call.gradient.scalar_type() == ScalarType::Float || call.gradient.scalar_type() == ScalarType::Double,
                  "icr_kernels: gradient: expected float32 or float64");
  STD_TORCH_CHECK(!call.in_place || (call.gradient.is_contiguous() &&
                                     reinterpret_cast<uintptr_t>(call.gradient.data_ptr()) % 16 == 0),
                  "icr_kernels: gradient: expected a contiguous tensor, at a multiple of 16 bytes, to scale in place");
  const Tensor gradient =
      call.gradient.is_contiguous() ? call.gradient : torch::stable::contiguous(call.gradient);
  Inputs inputs(5);
  Scaling scaling;
  scaling.pairs = gradient.numel() / 4;
  for (const OptionalTensor& factor : {call.factor, call.pending}) {
    STD_TORCH_CHECK(!factor.has_value() || factor->numel() == 1 || factor->numel() == scaling.pairs,
                    "icr_kernels: factor: expected one value, or one for each of ", scaling.pairs, " pairs");
  }
  STD_TORCH_CHECK(!call.table_index.has_value() || call.table_index->numel() == scaling.pairs,
                  "icr_kernels: table_index: expected one for each of ", scaling.pairs, " pairs");
  scaling.in_double = gradient.scalar_type() == ScalarType::Double;
  scaling.gradient = inputs.rows(gradient);
  scaling.factor = inputs.column(call.factor);
  scaling.pending = inputs.column(call.pending);
  const bool of_table = call.table_index.has_value();
  Tensor out =
      call.in_place ? gradient : empty(gradient, shape_of(of_table ? *call.table : gradient, 0), call.dtype);
  scaling.out = {out.data_ptr(), type_of(out)};
  if (of_table) {
    backend.add_to_table(scaling, inputs.rows(*call.table, call.table_index));
  } else {
    backend.scale(scaling);
  }
  return out;
}

template <class Backend>
Tensor scaled(Tensor gradient, OptionalTensor factor, OptionalTensor pending, ScalarType dtype, OptionalTensor table,
              OptionalTensor table_index) {
  return scaled_of<Backend>({gradient, factor, pending, dtype, table, table_index, false});
}

// In the place of the gradient.
template <class Backend>
void scaled_in_place(Tensor gradient, OptionalTensor factor, OptionalTensor pending) {
  scaled_of<Backend>({gradient, factor, pending, gradient.scalar_type(), std::nullopt, std::nullopt, true});
}

template <class Backend>
constexpr Direct direct{&loss_of<Backend>, &scaled_of<Backend>};

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> terms(Tensor pred, Tensor target, OptionalTensor anchor_objects,
                                                 OptionalTensor target_index, OptionalTensor anchor_index,
                                                 OptionalTensor mask, OptionalTensor pixels,
                                                 OptionalTensor wise_mean, Numbers numbers) {
  const Backend backend(pred);
  Inputs inputs(8);
  Task task = make_task(inputs, pred, target, anchor_objects, target_index, anchor_index, mask, pixels, wise_mean,
                        formula_of(numbers));
  task.terms = true;
  const ScalarType dtype = task.in_double ? ScalarType::Double : ScalarType::Float;
  const auto term = [&](void*& out) {
    Tensor values = empty(pred, shape_of(pred, 1), dtype);
    out = values.data_ptr();
    return values;
  };
  Tensor losses = term(task.loss_out), iou = term(task.iou_out);
  Tensor containment = term(task.containment_out), penalties = term(task.penalty_out);
  backend.run(task);
  return {losses, iou, containment, penalties};
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> terms_backward(Tensor grad_loss, Tensor grad_iou, Tensor grad_containment,
                                                  Tensor grad_penalty, Tensor pred, Tensor target,
                                                  OptionalTensor anchor_objects, OptionalTensor target_index,
                                                  OptionalTensor anchor_index, OptionalTensor mask,
                                                  OptionalTensor pixels, OptionalTensor wise_mean, Numbers numbers,
                                                  int64_t wanted) {
  const Backend backend(pred);
  Inputs inputs(12);
  Task task = make_task(inputs, pred, target, anchor_objects, target_index, anchor_index, mask, pixels, wise_mean,
                        formula_of(numbers));
  task.terms = true;
  task.grad_loss = inputs.column(grad_loss);
  task.grad_iou = inputs.column(grad_iou);
  task.grad_containment = inputs.column(grad_containment);
  task.grad_penalty = inputs.column(grad_penalty);
  const ScalarType dtype = task.in_double ? ScalarType::Double : ScalarType::Float;
  // Of a table first those of its pairs.
  const auto gradient = [&](const OptionalTensor& boxes, const OptionalTensor& index, int64_t bit, RowsOut& out) {
    return gradient_rows(pred, wanted & bit ? boxes : std::nullopt, !index.has_value(), dtype, out);
  };
  const auto finished = [&](const OptionalTensor& rows, const OptionalTensor& boxes, const OptionalTensor& index) {
    if (!rows.has_value() || !index.has_value()) return or_nothing(rows, pred, dtype);
    return scaled<Backend>(*rows, std::nullopt, std::nullopt, boxes->scalar_type(), boxes, index);
  };
  const OptionalTensor grad_pred = gradient(pred, std::nullopt, kPred, task.grad_pred);
  const OptionalTensor grad_target = gradient(target, target_index, kTarget, task.grad_target);
  const OptionalTensor grad_anchor_objects =
      gradient(anchor_objects, anchor_index, kAnchorObject, task.grad_anchor_objects);
  backend.run(task);
  return {or_nothing(grad_pred, pred, dtype), finished(grad_target, target, target_index),
          finished(grad_anchor_objects, anchor_objects, anchor_index)};
}

}  // namespace icr_kernels
