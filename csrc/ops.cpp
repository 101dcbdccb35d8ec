// The operators on CPU tensors (icr_kernels/operators.py has their schemas), and the Python module: what Python asks
// the build, and the math of a single pair.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cpu/backend.h"
#include "pair.h"
#include "register.h"

STABLE_TORCH_LIBRARY_IMPL(icr_kernels, CPU, m) { icr_kernels::implement<icr_cpu::Cpu>(m); }

namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "";  // Clang's version begins with its name.
#else
constexpr const char* kCompiler = "GCC ";
#endif

using Coordinates = std::array<double, 4>;

// The name of a variant, and those of its parameters with the power of the boxes' unit.
using Described = std::pair<std::string, std::vector<std::pair<std::string, int>>>;

template <class Variant>
Described described() {
  Described result{Variant::name, {}};
  if constexpr (icr::parameter_count<Variant> > 0) {
    for (const icr::Parameter& each : Variant::parameters) result.second.emplace_back(each.name, each.power);
  }
  return result;
}
template <class... Variants>
std::vector<Described> described(icr::List<Variants...>) {
  return {described<Variants>()...};
}

// Value of one pair of boxes in double, and its gradient with respect to prediction, target and anchor object.
std::pair<double, std::vector<double>> pair(const icr_kernels::Numbers& numbers, const Coordinates& pred,
                                            const Coordinates& target, const std::optional<Coordinates>& anchor) {
  auto formula = icr::formula_in<icr::FullFormula<double>, double>(icr_kernels::formula_of(numbers));
  if (!anchor) formula.penalty = -1;
  const auto format = icr::BoxFormat(formula.box_format);
  double p[4], g[4], a[4] = {};
  std::copy(pred.begin(), pred.end(), p);
  std::copy(target.begin(), target.end(), g);
  if (anchor) std::copy(anchor->begin(), anchor->end(), a);
  const icr::Boxes<double> boxes{icr::corners(p, format), icr::corners(g, format), icr::corners(a, format)};
  icr::Gradients<double> gradients{};
  const double value =
      icr::pair_loss<icr::kPred | icr::kTarget | icr::kAnchorObject>(formula, boxes, anchor.has_value(), gradients);
  icr::pull_back(p, format, gradients.pred);
  icr::pull_back(g, format, gradients.target);
  icr::pull_back(a, format, gradients.anchor);
  std::vector<double> gradient(gradients.pred, gradients.pred + 4);
  gradient.insert(gradient.end(), gradients.target, gradients.target + 4);
  gradient.insert(gradient.end(), gradients.anchor, gradients.anchor + 4);
  return {value, gradient};
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  namespace py = pybind11;
  m.attr("direct") = py::capsule(&icr_kernels::direct<icr_cpu::Cpu>, icr_kernels::Direct::kName);
  m.def("losses", [] { return described(icr::Losses{}); },
        "Names of the compiled losses and of their parameters, in the order of their numbers.");
  m.def("penalties", [] { return described(icr::Penalties{}); },
        "Names of the compiled penalties and of their parameters, in the order of their numbers.");
  m.def("instruction_sets", &icr_cpu::compiled_instruction_sets, "Instruction sets that this build has loops for.");
  m.def("usable_instruction_sets", &icr_cpu::usable_instruction_sets, "Those that this processor can run.");
  m.def("instruction_set", &icr_cpu::instruction_set, "The one in use.");
  m.def("set_instruction_set", &icr_cpu::set_instruction_set, py::arg("name"), "Use another one.");
  m.def("compiler", [] { return std::string(kCompiler) + __VERSION__; }, "The compiler of this build.");
  m.def("pair", &pair, py::arg("formula"), py::arg("pred"), py::arg("target"), py::arg("anchor"),
        "Loss of one pair of boxes in double and its gradient: 12 numbers, for prediction, target and anchor object "
        "(None: no anchor object). The formula as icr_kernels/calls.py packs it.");
}
