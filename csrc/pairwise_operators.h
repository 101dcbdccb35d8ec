// The operators over all pairs of two sets of boxes: from tensors to a task, as operators.h does it for aligned pairs.
#pragma once

#include "operators.h"

namespace icr_kernels {

// Boxes (..., N, 4) as one set per batch.
inline BoxSet box_set(Inputs& inputs, const Tensor& boxes) {
  const Flat batches = flat(boxes, 2);
  const Tensor& view = inputs.keep(batches.tensor);
  BoxSet set;
  set.rows.data = view.data_ptr();
  set.rows.type = type_of(view);
  set.rows.row_stride = view.size(view.dim() - 2) == 1 ? 4 : view.stride(view.dim() - 2);
  set.rows.column_stride = view.stride(view.dim() - 1);
  set.count = view.size(view.dim() - 2);
  set.batch_stride = batches.stride;
  set.rows.row_count = set.count;
  set.rows.aligned = is_aligned(set.rows) && set.batch_stride % 4 == 0;
  return set;
}

inline Matrices matrices(Inputs& inputs, const Tensor& values) {
  const Flat batches = flat(values, 2);
  const Tensor& view = inputs.keep(batches.tensor);
  return {view.data_ptr(), type_of(view), batches.stride, view.stride(view.dim() - 2), view.stride(view.dim() - 1)};
}

inline int64_t batches_of(const Tensor& boxes) {
  int64_t batches = 1;
  for (int64_t d = 0; d < boxes.dim() - 2; ++d) batches *= boxes.size(d);
  return batches;
}

inline ScalarType scalar_type(bool in_double) { return in_double ? ScalarType::Double : ScalarType::Float; }

inline PairFunction<double> pair_function_of(const Numbers& numbers) {
  check_count(numbers, 3 + kMostParameters);
  PairFunction<double> function{int(numbers[0]), int(numbers[1]), numbers[2], {}};
  std::copy(numbers.begin() + 3, numbers.end(), function.parameters);
  return function;
}

inline Cost<double> cost_of(const Numbers& numbers, bool is_focal) {
  check_count(numbers, 8);
  const double gamma = numbers[5];
  return {int(numbers[0]), is_focal, gamma == 2, numbers[1], numbers[2], numbers[3], numbers[4], gamma, numbers[6],
          numbers[7]};
}

// The part of a task that the matrix and its gradient share.
inline PairwiseTask pairwise_task(Inputs& inputs, const Tensor& boxes1, const Tensor& boxes2, const Numbers& numbers) {
  PairwiseTask task;
  task.function = pair_function_of(numbers);
  task.in_double = any_double(boxes1, boxes2, std::nullopt);
  task.batches = batches_of(boxes1);
  task.first = box_set(inputs, boxes1);
  task.second = box_set(inputs, boxes2);
  return task;
}

template <class Backend>
Tensor pairwise(Tensor boxes1, Tensor boxes2, Numbers numbers) {
  const Backend backend(boxes1);
  Inputs inputs(2);
  PairwiseTask task = pairwise_task(inputs, boxes1, boxes2, numbers);
  std::vector<int64_t> shape = shape_of(boxes1, 1);
  shape.push_back(task.second.count);
  Tensor out = empty(boxes1, shape, scalar_type(task.in_double));
  task.out = out.data_ptr();
  backend.pairwise(task);
  return out;
}

template <class Backend>
std::tuple<Tensor, Tensor> pairwise_backward(Tensor gradient, Tensor boxes1, Tensor boxes2, Numbers numbers,
                                             int64_t wanted) {
  const Backend backend(boxes1);
  Inputs inputs(3);
  PairwiseTask task = pairwise_task(inputs, boxes1, boxes2, numbers);
  task.gradient = matrices(inputs, gradient);
  const auto rows = [&](const Tensor& boxes, int64_t bit, RowsOut& out) {
    if (!(wanted & bit)) return empty(boxes, {0}, boxes.scalar_type());
    Tensor result = empty(boxes, shape_of(boxes, 0), boxes.scalar_type());
    out = {result.data_ptr(), type_of(result)};
    return result;
  };
  Tensor grad1 = rows(boxes1, kFirst, task.grad_first), grad2 = rows(boxes2, kSecond, task.grad_second);
  backend.pairwise_backward(task);
  return {grad1, grad2};
}

template <class Backend>
std::tuple<Tensor, Tensor> selected(Tensor queries, Tensor candidates, OptionalTensor query_group,
                                    OptionalTensor candidate_group, OptionalTensor offset, OptionalTensor at_least,
                                    bool candidate_first, int64_t k, bool larger, Numbers numbers) {
  STD_TORCH_CHECK(k >= 0 && k <= kMostSelected, "icr_kernels: selected keeps at most 16 candidates of a query");
  STD_TORCH_CHECK(candidates.size(candidates.dim() - 2) <= 0x7fffffff, "icr_kernels: more candidates than 2^31 - 1");
  const Backend backend(queries);
  Inputs inputs(6);
  SelectionTask task;
  task.function = pair_function_of(numbers);
  task.in_double = any_double(queries, candidates, std::nullopt);
  task.batches = batches_of(queries);
  task.queries = box_set(inputs, queries);
  task.candidates = box_set(inputs, candidates);
  task.query_group = inputs.column(query_group);
  task.candidate_group = inputs.column(candidate_group);
  task.offset = inputs.column(offset);
  task.at_least = inputs.column(at_least);
  task.candidate_first = candidate_first;
  task.larger = larger;
  task.k = int(k);
  std::vector<int64_t> shape = shape_of(queries, 1);
  if (k > 0) shape.push_back(k);
  Tensor values = empty(queries, shape, scalar_type(task.in_double));
  Tensor indices = empty(queries, shape, ScalarType::Long);
  task.values = values.data_ptr();
  task.indices = static_cast<int64_t*>(indices.data_ptr());
  backend.select(task);
  return {values, indices};
}

template <class Backend>
Tensor matching_cost(Tensor boxes, Tensor logits, OptionalTensor log_normalizer, Tensor target_boxes, Tensor labels,
                     Tensor image, Numbers numbers) {
  const Backend backend(boxes);
  Inputs inputs(6);
  CostTask task;
  task.cost = cost_of(numbers, !log_normalizer.has_value());
  task.in_double = any_double(boxes, target_boxes, logits);
  task.targets = target_boxes.size(0);
  task.classes = logits.size(2);
  task.boxes = box_set(inputs, boxes);
  task.images = boxes.size(0);
  task.logits = matrices(inputs, logits);
  task.log_normalizer = inputs.column(log_normalizer);
  task.target_boxes = inputs.rows(target_boxes);
  task.labels = inputs.column(labels);
  task.image = inputs.column(image);
  Tensor out = empty(boxes, {task.targets, task.boxes.count}, scalar_type(task.in_double));
  task.out = out.data_ptr();
  backend.matching_cost(task);
  return out;
}

}  // namespace icr_kernels
