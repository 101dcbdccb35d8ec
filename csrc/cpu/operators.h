// The operators on CPU tensors.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace icr_cpu {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using ScalarType = torch::headeronly::ScalarType;

std::tuple<Tensor, Tensor, Tensor, Tensor> loss(Tensor pred, Tensor target, OptionalTensor anchors,
                                                OptionalTensor anchor_index, OptionalTensor weight, OptionalTensor mask,
                                                OptionalTensor normalizer, double scale, int64_t reduction,
                                                int64_t loss, int64_t penalty, double penalty_weight, bool relative,
                                                double eps, int64_t box_format, int64_t wanted, bool in_box_dtype);

Tensor scaled(Tensor gradient, Tensor factor, ScalarType dtype, OptionalTensor anchors, OptionalTensor anchor_index);

std::tuple<Tensor, Tensor, Tensor, Tensor> terms(Tensor pred, Tensor target, OptionalTensor anchors,
                                                 OptionalTensor anchor_index, OptionalTensor mask, int64_t loss,
                                                 int64_t penalty, double penalty_weight, bool relative, double eps,
                                                 int64_t box_format);

std::tuple<Tensor, Tensor, Tensor> terms_backward(Tensor grad_loss, Tensor grad_iou, Tensor grad_containment,
                                                  Tensor grad_penalty, Tensor pred, Tensor target,
                                                  OptionalTensor anchors, OptionalTensor anchor_index,
                                                  OptionalTensor mask, int64_t loss, int64_t penalty,
                                                  double penalty_weight, bool relative, double eps, int64_t box_format,
                                                  int64_t wanted);

// The instruction sets that this build has, that this processor can run, and the one in use.
std::vector<std::string> compiled_instruction_sets();
std::vector<std::string> usable_instruction_sets();
std::string instruction_set();
void set_instruction_set(const std::string& name);

}  // namespace icr_cpu
