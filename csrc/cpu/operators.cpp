// From tensors to the loops: views, allocations, threads, reductions.
#include "operators.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <stdexcept>

#include "task.h"

namespace icr_cpu {
namespace {

// Below this many chunks a thread has less to do than it costs to wake it.
constexpr int64_t kChunksPerThread = 2;

constexpr int64_t kWantPred = 1, kWantTarget = 2, kWantAnchors = 4;
enum Reduction : int64_t { kNone = 0, kSum = 1, kMean = 2 };

std::vector<InstructionSet> compiled() {
#if defined(__x86_64__)
  return {generic, avx2, avx512};
#else
  return {generic};
#endif
}

bool usable(const std::string& name) {
#if defined(__x86_64__)
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (name == "avx2") return has_avx2;
  if (name == "avx512") {
    return has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return name == "generic";
}

InstructionSet best() {
  InstructionSet chosen = generic;
  for (const auto& set : compiled()) {
    if (usable(set.name)) chosen = set;
  }
  return chosen;
}

InstructionSet& current() {
  static InstructionSet set = best();
  return set;
}

Type type_of(const Tensor& tensor) {
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

// The tensor with all but its last `trailing` dimensions seen as one, of this stride. Copies only what cannot be seen so.
struct Flat {
  Tensor tensor;
  int64_t stride = 0;
};

Flat flat(Tensor tensor, int64_t trailing) {
  int64_t stride = 0, covered = 1;
  for (int64_t d = tensor.dim() - trailing - 1; d >= 0; --d) {
    if (tensor.size(d) == 1) continue;
    if (covered == 1) {
      stride = tensor.stride(d);
    } else if (tensor.stride(d) != stride * covered) {
      tensor = torch::stable::contiguous(tensor);
      return {tensor, trailing == 0 ? 1 : tensor.size(tensor.dim() - 1)};
    }
    covered *= tensor.size(d);
  }
  return {tensor, stride};
}

// Tensors that a task points into live as long as this.
class Inputs {
 public:
  explicit Inputs(size_t count) { tensors_.reserve(count); }

  Rows rows(const Tensor& boxes) {
    const Flat view = flat(boxes, 1);
    tensors_.push_back(view.tensor);
    Rows rows;
    rows.data = view.tensor.data_ptr();
    rows.type = type_of(view.tensor);
    rows.row_stride = view.stride;
    rows.column_stride = view.tensor.stride(view.tensor.dim() - 1);
    if (boxes.numel() == 4) rows.row_stride = 4;
    return rows;
  }

  Column column(const OptionalTensor& values) {
    if (!values.has_value()) return {};
    const Flat view = flat(*values, 0);
    tensors_.push_back(view.tensor);
    return {view.tensor.data_ptr(), type_of(view.tensor), view.stride};
  }

  Rows anchors(const OptionalTensor& boxes, const OptionalTensor& index) {
    if (!boxes.has_value()) return {};
    Rows result = rows(*boxes);
    if (index.has_value()) {
      const Column numbers = column(index);
      result.index = numbers.data;
      result.index_type = numbers.type;
      result.index_stride = numbers.stride;
      result.row_count = boxes->size(0);
    }
    return result;
  }

 private:
  std::vector<Tensor> tensors_;
};

double scalar(const Tensor& tensor) {
  const void* data = tensor.data_ptr();
  switch (type_of(tensor)) {
    case Type::kFloat: return *static_cast<const float*>(data);
    case Type::kDouble: return *static_cast<const double*>(data);
    case Type::kHalf: return float(*static_cast<const torch::headeronly::Half*>(data));
    case Type::kBFloat16: return float(*static_cast<const torch::headeronly::BFloat16*>(data));
    case Type::kInt32: return *static_cast<const int32_t*>(data);
    default: return double(*static_cast<const int64_t*>(data));
  }
}

int64_t count_true(const Column& mask, int64_t pairs) {
  if (mask.data == nullptr) return pairs;
  const auto* values = static_cast<const uint8_t*>(mask.data);
  int64_t count = 0;
  for (int64_t i = 0; i < pairs; ++i) count += values[i * mask.stride] != 0;
  return count;
}

// A contiguous tensor on the CPU, allocated without going through the dispatcher.
Tensor empty(const std::vector<int64_t>& shape, ScalarType dtype) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= std::max<int64_t>(shape[d], 1);
  }
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(shape.size()), shape.data(), strides.data(),
                                                         static_cast<int32_t>(dtype), aoti_torch_device_type_cpu(), 0,
                                                         &handle));
  return Tensor(handle);
}

std::vector<int64_t> shape_of(const Tensor& tensor, int64_t trailing) {
  const auto sizes = tensor.sizes();
  return std::vector<int64_t>(sizes.begin(), sizes.end() - trailing);
}

// Not asked for: a tensor of no elements, because an operator returns as many tensors as its schema says.
Tensor nothing(ScalarType dtype) { return empty({0}, dtype); }

RowsOut rows_out(const Tensor& rows) { return {rows.data_ptr(), type_of(rows)}; }

bool any_double(const Tensor& pred, const Tensor& target, const OptionalTensor& anchors) {
  return pred.scalar_type() == ScalarType::Double || target.scalar_type() == ScalarType::Double ||
         (anchors.has_value() && anchors->scalar_type() == ScalarType::Double);
}

// The part of a task that the loss and the terms share.
Task make_task(Inputs& inputs, const Tensor& pred, const Tensor& target, const OptionalTensor& anchors,
               const OptionalTensor& anchor_index, const OptionalTensor& mask, int64_t loss, int64_t penalty,
               double penalty_weight, bool relative, double eps, int64_t box_format) {
  Task task;
  task.pairs = pred.numel() / 4;
  task.in_double = any_double(pred, target, anchors);
  task.pred = inputs.rows(pred);
  task.target = inputs.rows(target);
  task.anchors = inputs.anchors(anchors, anchor_index);
  task.mask = inputs.column(mask);
  task.loss = int(loss);
  task.penalty = anchors.has_value() ? int(penalty) : -1;
  task.relative = relative;
  task.penalty_weight = penalty_weight;
  task.eps = eps;
  task.box_format = int(box_format);
  return task;
}

int64_t chunks(int64_t pairs) { return (pairs + kChunk - 1) / kChunk; }

void run(const Task& task) {
  const auto loops = current().run;
  const int64_t count = chunks(task.pairs);
  if (count <= kChunksPerThread) return loops(task, 0, count);
  torch::stable::parallel_for(0, count, kChunksPerThread,
                              [&](int64_t begin, int64_t end) { loops(task, begin, end); });
}

// The gradient of a table: the rows of the pairs, added up in their order.
template <class T>
void scatter(const T* rows, int64_t pairs, const Rows& table, T* sums) {
  for (int64_t i = 0; i < pairs; ++i) {
    const int64_t at = i * table.index_stride;
    const int64_t row = table.index_type == Type::kInt64 ? static_cast<const int64_t*>(table.index)[at]
                                                         : static_cast<const int32_t*>(table.index)[at];
    if (row < 0 || row >= table.row_count) continue;
    for (int c = 0; c < 4; ++c) sums[4 * row + c] += rows[4 * i + c];
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> loss(Tensor pred, Tensor target, OptionalTensor anchors,
                                                OptionalTensor anchor_index, OptionalTensor weight, OptionalTensor mask,
                                                OptionalTensor normalizer, double scale, int64_t reduction,
                                                int64_t loss, int64_t penalty, double penalty_weight, bool relative,
                                                double eps, int64_t box_format, int64_t wanted, bool in_box_dtype) {
  Inputs inputs(6);
  Task task = make_task(inputs, pred, target, anchors, anchor_index, mask, loss, penalty, penalty_weight, relative, eps,
                        box_format);
  task.weight = inputs.column(weight);
  if (reduction == kMean) {
    scale /= normalizer.has_value() ? std::max(scalar(*normalizer), eps)
                                    : double(std::max<int64_t>(count_true(task.mask, task.pairs), 1));
  }
  task.scale = scale;

  const ScalarType dtype = task.in_double ? ScalarType::Double : ScalarType::Float;
  const auto gradient = [&](const OptionalTensor& boxes, int64_t bit, RowsOut& out) {
    if (!boxes.has_value() || !(wanted & bit)) return nothing(dtype);
    Tensor rows = empty(shape_of(pred, 0), in_box_dtype ? boxes->scalar_type() : dtype);
    out = rows_out(rows);
    return rows;
  };
  Tensor grad_pred = gradient(pred, kWantPred, task.grad_pred);
  Tensor grad_target = gradient(target, kWantTarget, task.grad_target);
  Tensor grad_anchors = gradient(anchors, kWantAnchors, task.grad_anchors);

  if (reduction == kNone) {
    Tensor losses = empty(shape_of(pred, 1), dtype);
    task.loss_out = losses.data_ptr();
    run(task);
    return {losses, grad_pred, grad_target, grad_anchors};
  }
  std::vector<double> sums(chunks(task.pairs));
  task.chunk_sums = sums.data();
  run(task);
  double total = 0;
  for (const double sum : sums) total += sum;
  Tensor result = empty({}, dtype);
  if (task.in_double) {
    *static_cast<double*>(result.data_ptr()) = total * scale;
  } else {
    *static_cast<float*>(result.data_ptr()) = float(total * scale);
  }
  return {result, grad_pred, grad_target, grad_anchors};
}

Tensor scaled(Tensor gradient, Tensor factor, ScalarType dtype, OptionalTensor anchors, OptionalTensor anchor_index) {
  if (!gradient.is_contiguous()) gradient = torch::stable::contiguous(gradient);
  Inputs inputs(3);
  const int64_t pairs = gradient.numel() / 4;
  Scaling scaling;
  scaling.in_double = gradient.scalar_type() == ScalarType::Double;
  scaling.gradient = gradient.data_ptr();
  scaling.factor = inputs.column(factor);
  const bool scattered = anchor_index.has_value();
  Tensor rows = empty(shape_of(gradient, 0), scattered ? gradient.scalar_type() : dtype);
  scaling.out = rows_out(rows);
  const auto loops = current().scale;
  torch::stable::parallel_for(0, pairs, kChunksPerThread * kChunk,
                              [&](int64_t begin, int64_t end) { loops(scaling, begin, end); });
  if (!scattered) return rows;

  const Rows table = inputs.anchors(anchors, anchor_index);
  Tensor sums = torch::stable::new_zeros(gradient, {table.row_count, 4}, gradient.scalar_type());
  if (scaling.in_double) {
    scatter(static_cast<const double*>(rows.data_ptr()), pairs, table, static_cast<double*>(sums.data_ptr()));
  } else {
    scatter(static_cast<const float*>(rows.data_ptr()), pairs, table, static_cast<float*>(sums.data_ptr()));
  }
  if (dtype == gradient.scalar_type()) return sums;
  Tensor rounded = empty({table.row_count, 4}, dtype);
  const double one = 1;
  Scaling rounding;
  rounding.in_double = scaling.in_double;
  rounding.gradient = sums.data_ptr();
  rounding.factor = {&one, Type::kDouble, 0};
  rounding.out = rows_out(rounded);
  loops(rounding, 0, table.row_count);
  return rounded;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> terms(Tensor pred, Tensor target, OptionalTensor anchors,
                                                 OptionalTensor anchor_index, OptionalTensor mask, int64_t loss,
                                                 int64_t penalty, double penalty_weight, bool relative, double eps,
                                                 int64_t box_format) {
  Inputs inputs(5);
  Task task = make_task(inputs, pred, target, anchors, anchor_index, mask, loss, penalty, penalty_weight, relative, eps,
                        box_format);
  task.terms = true;
  const ScalarType dtype = task.in_double ? ScalarType::Double : ScalarType::Float;
  const auto term = [&](void*& out) {
    Tensor values = empty(shape_of(pred, 1), dtype);
    out = values.data_ptr();
    return values;
  };
  Tensor losses = term(task.loss_out), iou = term(task.iou_out);
  Tensor containment = term(task.containment_out), penalties = term(task.penalty_out);
  run(task);
  return {losses, iou, containment, penalties};
}

std::tuple<Tensor, Tensor, Tensor> terms_backward(Tensor grad_loss, Tensor grad_iou, Tensor grad_containment,
                                                  Tensor grad_penalty, Tensor pred, Tensor target,
                                                  OptionalTensor anchors, OptionalTensor anchor_index,
                                                  OptionalTensor mask, int64_t loss, int64_t penalty,
                                                  double penalty_weight, bool relative, double eps, int64_t box_format,
                                                  int64_t wanted) {
  Inputs inputs(9);
  Task task = make_task(inputs, pred, target, anchors, anchor_index, mask, loss, penalty, penalty_weight, relative, eps,
                        box_format);
  task.terms = true;
  task.grad_loss = inputs.column(grad_loss);
  task.grad_iou = inputs.column(grad_iou);
  task.grad_containment = inputs.column(grad_containment);
  task.grad_penalty = inputs.column(grad_penalty);
  const ScalarType dtype = task.in_double ? ScalarType::Double : ScalarType::Float;
  const auto gradient = [&](const OptionalTensor& boxes, int64_t bit, ScalarType type, RowsOut& out) {
    if (!boxes.has_value() || !(wanted & bit)) return nothing(dtype);
    Tensor rows = empty(shape_of(pred, 0), type);
    out = rows_out(rows);
    return rows;
  };
  const bool scattered = anchor_index.has_value();
  Tensor grad_pred = gradient(pred, kWantPred, pred.scalar_type(), task.grad_pred);
  Tensor grad_target = gradient(target, kWantTarget, target.scalar_type(), task.grad_target);
  Tensor grad_anchors =
      gradient(anchors, kWantAnchors, !anchors.has_value() || scattered ? dtype : anchors->scalar_type(), task.grad_anchors);
  run(task);
  if (scattered && (wanted & kWantAnchors)) {
    Tensor one = torch::stable::new_zeros(pred, {}, dtype);
    one = torch::stable::fill_(one, 1.0);
    grad_anchors = scaled(grad_anchors, one, anchors->scalar_type(), anchors, anchor_index);
  }
  return {grad_pred, grad_target, grad_anchors};
}

std::vector<std::string> compiled_instruction_sets() {
  std::vector<std::string> names;
  for (const auto& set : compiled()) names.push_back(set.name);
  return names;
}

std::vector<std::string> usable_instruction_sets() {
  std::vector<std::string> names;
  for (const auto& set : compiled()) {
    if (usable(set.name)) names.push_back(set.name);
  }
  return names;
}

std::string instruction_set() { return current().name; }

void set_instruction_set(const std::string& name) {
  for (const auto& set : compiled()) {
    if (set.name == name && usable(name)) {
      current() = set;
      return;
    }
  }
  throw std::invalid_argument("set_instruction_set: expected one that this build has and this processor can run, got '" +
                              name + "'");
}

}  // namespace icr_cpu
