// The operator of an assignment: from tensors to a task, as pairwise_operators.h does it for all pairs.
#pragma once

#include "pairwise_operators.h"

namespace icr_kernels {

inline AssignmentRule assignment_rule_of(const Numbers& numbers) {
  check_count(numbers, 9);
  const auto is_within = [&](int i, double least, double most) { return numbers[i] >= least && numbers[i] <= most; };
  STD_TORCH_CHECK(is_within(0, 0, 2) && is_within(1, 0, 2), "icr_kernels: expected box formats from 0 to 2, got ",
                  numbers[0], " and ", numbers[1]);
  STD_TORCH_CHECK(is_within(2, 1, kMostAssigned) && is_within(3, 0, kMostAssigned),
                  "icr_kernels: a row takes at most ", kMostAssigned, " points");
  return {int(numbers[0]),   int(numbers[1]),   int(numbers[2]),   int(numbers[3]),  numbers[4] != 0,
          float(numbers[5]), float(numbers[6]), float(numbers[7]), float(numbers[8])};
}

template <class Backend>
std::tuple<Tensor, Tensor> assigned(Tensor scores, Tensor boxes, Tensor points, Tensor truth, Tensor labels,
                                    Tensor image, Numbers numbers) {
  const Backend backend(boxes);
  Inputs inputs(6);
  AssignmentTask task;
  task.rule = assignment_rule_of(numbers);
  task.images = boxes.size(0);
  task.points = boxes.size(1);
  task.classes = scores.size(2);
  task.rows = truth.size(0);
  STD_TORCH_CHECK(task.points <= 0x7fffffff && task.rows <= 0x7fffffff,
                  "icr_kernels: more points or rows of the truth than 2^31 - 1");
  task.scores = matrices(inputs, scores);
  task.boxes = box_set(inputs, boxes);
  task.positions = matrices(inputs, points);
  task.truth = inputs.rows(truth);
  task.labels = inputs.column(labels);
  task.image = inputs.column(image);
  Tensor index = empty(boxes, shape_of(boxes, 1), ScalarType::Long);
  Tensor score = empty(boxes, shape_of(boxes, 1), ScalarType::Float);
  task.index = static_cast<int64_t*>(index.data_ptr());
  task.score = static_cast<float*>(score.data_ptr());
  backend.assign(task);
  return {index, score};
}

}  // namespace icr_kernels
