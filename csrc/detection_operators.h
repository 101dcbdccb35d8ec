// The operators of a dense head's boxes and loss: from tensors to a task, as assignment_operators.h does it.
#pragma once

#include "assignment_operators.h"

namespace icr_kernels {

// Memory for a gradient, with points or channels side by side, as the logits have them. icr_kernels/operators.py says
// the same.
inline Tensor like_a_head(const Tensor& logits, MatricesOut& out) {
  const int64_t images = logits.size(0), points = logits.size(1), channels = logits.size(2);
  const bool are_points_first = logits.stride(1) < logits.stride(2);
  const int64_t row = are_points_first ? 1 : channels, column = are_points_first ? points : 1;
  const Tensor gradient =
      empty(logits, {images, points, channels}, logits.scalar_type(), {points * channels, row, column});
  out = {gradient.data_ptr(), type_of(gradient), points * channels, row, column};
  return gradient;
}

inline DecodingTask decoding_task(Inputs& inputs, const Tensor& box_logits, const Tensor& points,
                                  const Tensor& strides, bool in_double) {
  DecodingTask head;
  head.in_double = in_double;
  head.images = box_logits.size(0);
  head.points = box_logits.size(1);
  head.bins = int(box_logits.size(2) / 4);
  STD_TORCH_CHECK(head.images * head.points <= 0x7fffffff, "icr_kernels: more points than 2^31 - 1");
  head.logits = matrices(inputs, box_logits);
  head.positions = matrices(inputs, points);
  head.strides = inputs.column(strides);
  return head;
}

template <class Backend>
Tensor decoded(Tensor box_logits, Tensor points, Tensor strides) {
  const Backend backend(box_logits);
  Inputs inputs(3);
  const bool in_double = box_logits.scalar_type() == ScalarType::Double;
  DecodingTask head = decoding_task(inputs, box_logits, points, strides, in_double);
  const Tensor boxes = empty(box_logits, {head.images, head.points, 4}, scalar_type(in_double));
  head.boxes = boxes.data_ptr();
  backend.decode(head);
  return boxes;
}

template <class Backend>
Tensor decoded_backward(Tensor gradient, Tensor box_logits, Tensor points, Tensor strides, int64_t) {
  const Backend backend(box_logits);
  Inputs inputs(4);
  const bool in_double = box_logits.scalar_type() == ScalarType::Double;
  DecodingTask head = decoding_task(inputs, box_logits, points, strides, in_double);
  head.grad_boxes = inputs.rows(gradient);
  const Tensor result = like_a_head(box_logits, head.grad_logits);
  backend.decode(head);
  return result;
}

inline DetectionTask detection_task(Inputs& inputs, const Tensor& box_logits, const Tensor& class_logits,
                                    const Tensor& points, const Tensor& strides, const Tensor& truth,
                                    const Tensor& labels, const Tensor& index, const Tensor& score,
                                    const OptionalTensor& anchor_index, const OptionalTensor& class_weight,
                                    const OptionalTensor& wise_mean, const OptionalTensor& normalizer,
                                    const Numbers& numbers) {
  constexpr size_t own = 7;
  STD_TORCH_CHECK(numbers.size() > own, "icr_kernels: expected more than ", own, " numbers, got ", numbers.size());
  const auto number = numbers.begin();
  DetectionTask task;
  task.head = decoding_task(inputs, box_logits, points, strides, any_double(box_logits, class_logits, truth));
  task.formula = {formula_of({number + own, numbers.end()}), number[5], number[6], number[6] > 0};
  if (!anchor_index.has_value()) task.formula.pair.penalty = -1;
  task.gains[kBox] = task.gains[kPenalty] = number[0];
  task.gains[kClassification] = number[1];
  task.gains[kDistribution] = number[2];
  task.given_normalizer = number[3];
  task.is_uniform = number[4] != 0;
  task.classes = class_logits.size(2);
  task.rows = truth.size(0);
  STD_TORCH_CHECK(class_logits.numel() <= int64_t(1) << 34,
                  "icr_kernels: more logits of classes than 2^34");
  task.class_logits = matrices(inputs, class_logits);
  task.truth = inputs.rows(truth);
  task.labels = inputs.column(labels);
  task.index = inputs.column(index);
  task.score = inputs.column(score);
  task.anchor_index = inputs.column(anchor_index);
  task.class_weight = inputs.column(class_weight);
  task.wise_mean = inputs.column(wise_mean);
  task.normalizer = inputs.column(normalizer);
  return task;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> detection_loss(
    Tensor box_logits, Tensor class_logits, Tensor points, Tensor strides, Tensor truth, Tensor labels, Tensor index,
    Tensor score, OptionalTensor anchor_index, OptionalTensor class_weight, OptionalTensor wise_mean,
    OptionalTensor normalizer, Numbers numbers) {
  const Backend backend(box_logits);
  Inputs inputs(12);
  DetectionTask task = detection_task(inputs, box_logits, class_logits, points, strides, truth, labels, index, score,
                                      anchor_index, class_weight, wise_mean, normalizer, numbers);
  const auto result = [&](const std::vector<int64_t>& shape, void*& out) {
    const Tensor values = empty(box_logits, shape, scalar_type(task.head.in_double));
    out = values.data_ptr();
    return values;
  };
  const Tensor box = result({}, task.terms[kBox]), classification = result({}, task.terms[kClassification]);
  const Tensor distribution = result({}, task.terms[kDistribution]), penalty = result({}, task.terms[kPenalty]);
  const Tensor divisors = result({2}, task.divisors);
  backend.detect(task);
  return {box, classification, distribution, penalty, divisors};
}

template <class Backend>
std::tuple<Tensor, Tensor> detection_loss_backward(
    OptionalTensor grad_box, OptionalTensor grad_classification, OptionalTensor grad_distribution,
    OptionalTensor grad_penalty, Tensor box_logits, Tensor class_logits, Tensor points, Tensor strides, Tensor truth,
    Tensor labels, Tensor index, Tensor score, OptionalTensor anchor_index, OptionalTensor class_weight,
    OptionalTensor wise_mean, OptionalTensor normalizer, Numbers numbers, int64_t wanted) {
  const Backend backend(box_logits);
  Inputs inputs(16);
  STD_TORCH_CHECK(normalizer.has_value() && normalizer->numel() == 2,
                  "icr_kernels: normalizer: expected the two numbers that the terms were divided by");
  DetectionTask task = detection_task(inputs, box_logits, class_logits, points, strides, truth, labels, index, score,
                                      anchor_index, class_weight, wise_mean, normalizer, numbers);
  task.upstream[kBox] = inputs.column(grad_box);
  task.upstream[kClassification] = inputs.column(grad_classification);
  task.upstream[kDistribution] = inputs.column(grad_distribution);
  task.upstream[kPenalty] = inputs.column(grad_penalty);
  OptionalTensor of_boxes, of_classes;
  if (wanted & kFirst) of_boxes = like_a_head(box_logits, task.head.grad_logits);
  if (wanted & kSecond) of_classes = like_a_head(class_logits, task.grad_class_logits);
  backend.detection_gradient(task);
  return {or_nothing(of_boxes, box_logits, box_logits.scalar_type()),
          or_nothing(of_classes, class_logits, class_logits.scalar_type())};
}

}  // namespace icr_kernels
