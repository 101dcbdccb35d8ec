// The operators on CPU tensors (icr_kernels/operators.py has their schemas), and the Python module: what Python asks the
// build, and the math of a single pair.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <optional>
#include <stdexcept>
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

template <class... Variants>
std::vector<std::string> names(icr::List<Variants...>) {
  return {Variants::name...};
}

template <class... Variants>
int number(icr::List<Variants...> list, const std::string& argument, const std::string& name) {
  const auto known = names(list);
  for (size_t i = 0; i < known.size(); ++i) {
    if (known[i] == name) return int(i);
  }
  throw std::invalid_argument(argument + ": expected a name that this build has, got '" + name + "'");
}


// Value of one pair of boxes in double, and its gradient with respect to prediction, target and anchor object.
std::pair<double, std::vector<double>> pair(const std::string& loss, const std::string& penalty,
                                            const Coordinates& pred, const Coordinates& target,
                                            const std::optional<Coordinates>& anchor, double eps,
                                            double penalty_weight, bool relative) {
  const icr::Formula<double> formula{number(icr::Losses{}, "loss", loss),
                                     anchor ? number(icr::Penalties{}, "penalty", penalty) : -1, relative,
                                     penalty_weight, eps, icr::kXYXY};
  double p[4], g[4], a[4] = {};
  std::copy(pred.begin(), pred.end(), p);
  std::copy(target.begin(), target.end(), g);
  if (anchor) std::copy(anchor->begin(), anchor->end(), a);
  const icr::Boxes<double> boxes{icr::corners(p, icr::kXYXY), icr::corners(g, icr::kXYXY), icr::corners(a, icr::kXYXY)};
  icr::Gradients<double> gradients{};
  const double value =
      icr::pair_loss<icr::kPred | icr::kTarget | icr::kAnchorObject>(formula, boxes, anchor.has_value(), gradients);
  icr::pull_back(p, icr::kXYXY, gradients.pred);
  icr::pull_back(g, icr::kXYXY, gradients.target);
  icr::pull_back(a, icr::kXYXY, gradients.anchor);
  std::vector<double> gradient(gradients.pred, gradients.pred + 4);
  gradient.insert(gradient.end(), gradients.target, gradients.target + 4);
  gradient.insert(gradient.end(), gradients.anchor, gradients.anchor + 4);
  return {value, gradient};
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  namespace py = pybind11;
  m.def("losses", [] { return names(icr::Losses{}); }, "Names of the compiled losses, in the order of their numbers.");
  m.def("penalties", [] { return names(icr::Penalties{}); },
        "Names of the compiled penalties, in the order of their numbers.");
  m.def("instruction_sets", &icr_cpu::compiled_instruction_sets, "Instruction sets that this build has loops for.");
  m.def("usable_instruction_sets", &icr_cpu::usable_instruction_sets, "Those that this processor can run.");
  m.def("instruction_set", &icr_cpu::instruction_set, "The one in use.");
  m.def("set_instruction_set", &icr_cpu::set_instruction_set, py::arg("name"), "Use another one.");
  m.def("compiler", [] { return std::string(kCompiler) + __VERSION__; }, "The compiler of this build.");
  m.def("pair", &pair, py::arg("loss"), py::arg("penalty"), py::arg("pred"), py::arg("target"), py::arg("anchor"),
        py::arg("eps") = 1e-7, py::arg("penalty_weight") = 1.0, py::arg("relative") = false,
        "Loss of one pair of boxes (x1, y1, x2, y2) in double and its gradient: 12 numbers, for prediction, target and "
        "anchor object (None: no anchor object).");
}
