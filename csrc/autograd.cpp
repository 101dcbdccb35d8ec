// The short way of an ordinary call: arguments checked in one pass, no dispatcher, and a node of autograd in C++. For
// the torch that it was built with, and no other: it needs more of libtorch than what keeps from version to version.
//
// It takes only what it is sure of. Of anything else (an argument that is an error, a subclass, a mode or transform
// that looks on, saved-tensor hooks) it says None, and icr_kernels/functional.py goes the long way, which does the
// same. So does the node with an upstream gradient that is not an ordinary one, by icr_kernels/autograd.py.
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/SavedTensorHooks.h>
#include <ATen/core/Tensor.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/anomaly_mode.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <cfloat>
#include <string>
#include <vector>

#include "direct.h"

namespace icr_kernels {
namespace {

namespace autograd = torch::autograd;

// Between the two kinds of tensors

Tensor stable(const at::Tensor& tensor) { return Tensor(reinterpret_cast<AtenTensorHandle>(new at::Tensor(tensor))); }

OptionalTensor stable_or_none(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(stable(tensor)) : std::nullopt;
}

at::Tensor plain(const Tensor& tensor) { return *reinterpret_cast<const at::Tensor*>(tensor.get()); }

at::Tensor plain(const OptionalTensor& tensor) { return tensor.has_value() ? plain(*tensor) : at::Tensor(); }

// What is ordinary

constexpr auto kOfTensors =
    c10::DispatchKeySet({c10::DispatchKey::CPU, c10::DispatchKey::CUDA, c10::DispatchKey::ADInplaceOrView,
                         c10::DispatchKey::AutogradCPU, c10::DispatchKey::AutogradCUDA, c10::DispatchKey::AutocastCPU,
                         c10::DispatchKey::AutocastCUDA});

bool is_within(c10::DispatchKeySet keys, c10::DispatchKeySet known) {
  return (keys.raw_repr() & ~known.raw_repr()) == 0;
}

bool is_ordinary(const at::Tensor& tensor) {
  return is_within(tensor.key_set(), kOfTensors) && !tensor.is_inference();
}

// Whether no mode, transform or tracer looks on.
bool nobody_looks_on() {
  return c10::impl::tls_local_dispatch_key_set().included_ == c10::default_included_set &&
         !at::impl::torch_function_mode_enabled() && !autograd::AnomalyMode::is_enabled();
}

bool is_floating(const at::Tensor& tensor) {
  const auto type = tensor.scalar_type();
  return type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16;
}

bool is_index(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kLong || tensor.scalar_type() == at::kInt;
}

// The node

constexpr int kBoxes = 3;

PyObject* backward_of_any = nullptr;  // icr_kernels.autograd.backward_of_any

struct IcrLossBackward : autograd::Node {
  const Direct* direct = nullptr;
  at::ScalarType dtypes[kBoxes];
  autograd::SavedVariable boxes[kBoxes], anchor_index;
  // Nobody else has these.
  at::Tensor gradients[kBoxes], pending;

  std::string name() const override { return "IcrLossBackward"; }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (int i = 0; i < kBoxes; ++i) {
      boxes[i].reset_data();
      gradients[i].reset();
    }
    anchor_index.reset_data();
    pending.reset();
  }

  autograd::variable_list apply(autograd::variable_list&& upstream) override {
    autograd::variable_list results(kBoxes);
    if (!upstream[0].defined()) return results;
    std::unique_lock<std::mutex> lock(mutex_);
    at::Tensor unpacked[kBoxes];
    for (int i = 0; i < kBoxes; ++i) {
      unpacked[i] = boxes[i].unpack();
      TORCH_CHECK(!unpacked[i].defined() || gradients[i].defined(), autograd::ERR_BACKWARD_TWICE);
    }
    const at::Tensor index = anchor_index.unpack();
    const bool is_plain = !c10::GradMode::is_enabled() && is_ordinary(upstream[0]) && nobody_looks_on() &&
                          !autograd::isFwGradDefined(upstream[0]);
    if (!is_plain) {
      const at::Tensor kept[] = {gradients[0], gradients[1], gradients[2]}, factor = pending;
      lock.unlock();
      return by_python(upstream[0], unpacked, index, factor, kept);
    }
    const bool is_last = !autograd::get_current_graph_task_keep_graph();
    const OptionalTensor factor = stable(upstream[0]), more = stable_or_none(pending);
    for (int i = 0; i < kBoxes; ++i) {
      if (!unpacked[i].defined() || !task_should_compute_output(i)) continue;
      const bool of_table = i == 2 && index.defined();
      const bool in_place = is_last && !of_table && gradients[i].scalar_type() == dtypes[i];
      ScalingCall call{stable(gradients[i]), factor, more, dtypes[i], std::nullopt, std::nullopt, in_place};
      if (of_table) {
        call.table = stable(unpacked[i]);
        call.table_index = stable(index);
      }
      // What is changed here is no longer the gradient that this node promises.
      if (in_place) gradients[i].reset();
      results[i] = plain(direct->scaled(call));
    }
    return results;
  }

  autograd::variable_list by_python(const at::Tensor& upstream, const at::Tensor (&boxes)[kBoxes],
                                    const at::Tensor& index, const at::Tensor& pending,
                                    const at::Tensor (&gradients)[kBoxes]) {
    pybind11::gil_scoped_acquire gil;
    const auto wrapped = [](const at::Tensor& tensor) {
      return tensor.defined() ? pybind11::reinterpret_steal<pybind11::object>(THPVariable_Wrap(tensor))
                              : pybind11::none();
    };
    const auto found = pybind11::reinterpret_steal<pybind11::object>(PyObject_CallFunctionObjArgs(
        backward_of_any, wrapped(upstream).ptr(), wrapped(boxes[0]).ptr(), wrapped(boxes[1]).ptr(),
        wrapped(boxes[2]).ptr(), wrapped(index).ptr(), wrapped(pending).ptr(), wrapped(gradients[0]).ptr(),
        wrapped(gradients[1]).ptr(), wrapped(gradients[2]).ptr(), nullptr));
    if (!found) {
      python_error error;
      error.persist();
      throw std::move(error);
    }
    autograd::variable_list results(kBoxes);
    for (int i = 0; i < kBoxes; ++i) {
      PyObject* const each = PyTuple_GET_ITEM(found.ptr(), i);
      if (each != Py_None) results[i] = THPVariable_Unpack(each);
    }
    return results;
  }

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    for (int i = 0; i < kBoxes; ++i) {
      args.collect(boxes[i], false);
      args.collect(gradients[i]);
    }
    args.collect(anchor_index, false);
    args.collect(pending);
  }

  autograd::variable_list apply_with_saved(const autograd::variable_list& upstream,
                                           torch::dynamo::autograd::SwapSavedVariables& saved) override {
    for (int i = 0; i < kBoxes; ++i) {
      saved.before(boxes[i]);
      saved.before(gradients[i]);
    }
    saved.before(anchor_index);
    saved.before(pending);
    autograd::variable_list results = apply(autograd::variable_list(upstream));
    for (int i = 0; i < kBoxes; ++i) {
      saved.after(boxes[i]);
      saved.after(gradients[i]);
    }
    saved.after(anchor_index);
    saved.after(pending);
    return results;
  }
};

// Nodes are counted by shared pointers up to torch 2.11, and by themselves from 2.13 on at the latest.
template <class Node>
auto make_node() {
  if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, Node>) {
    return c10::make_intrusive<Node>();
  } else {
    return std::shared_ptr<Node>(new Node(), [](Node* node) { deleteNode(node); });
  }
}

// Arguments

// The losses or the penalties of icr_kernels/specifications.py: their class, and what its objects pack under each name.
struct Specifications {
  PyObject *type, *packed;
};
Specifications losses{}, penalties{};
PyObject *box_formats = nullptr, *reductions = nullptr;  // names -> numbers

struct Backend {
  PyObject* name;
  c10::DeviceType device;
  bool is_first;  // of those that a call without a name could take
  const Direct* direct;
};
std::vector<Backend> backends;

struct Arguments {
  at::Tensor boxes[kBoxes], index, weight, mask, normalizer;
  FullFormula<double> formula{};
  double scale = 1;
  int64_t reduction;
  const Direct* direct;
};

// True as well where there is none.
bool read_tensor(PyObject* value, at::Tensor& tensor) {
  if (value == Py_None) return true;
  if (!THPVariable_CheckExact(value)) return false;
  tensor = THPVariable_Unpack(value);
  return is_ordinary(tensor);
}

bool read_place(PyObject* known, PyObject* name, int& place) {
  if (!PyUnicode_CheckExact(name)) return false;
  PyObject* const found = PyDict_GetItem(known, name);
  if (found == nullptr) return false;
  place = int(PyLong_AsLong(found));
  return place >= 0;
}

// The numbers that a name or an object stands for. An object out of a file may be of another version of its class, and
// reading one runs Python: what that raises, an interrupt too, is for the caller.
bool read_packed(const Specifications& known, PyObject* given, std::initializer_list<int*> choices, double* numbers,
                 size_t most) {
  pybind11::object found;
  if (PyUnicode_CheckExact(given)) {
    found = pybind11::reinterpret_borrow<pybind11::object>(PyDict_GetItem(known.packed, given));
    if (!found) return false;
  } else if (reinterpret_cast<PyObject*>(Py_TYPE(given)) == known.type) {
    found = pybind11::reinterpret_steal<pybind11::object>(PyObject_GetAttrString(given, "packed"));
    if (!found) throw pybind11::error_already_set();
  } else {
    return false;
  }
  const size_t count = size_t(PyTuple_GET_SIZE(found.ptr()));
  if (count > choices.size() + most) return false;
  PyObject* const* const items = PySequence_Fast_ITEMS(found.ptr());
  size_t i = 0;
  for (int* const choice : choices) *choice = int(PyLong_AsLong(items[i++]));
  for (; i < count; ++i) numbers[i - choices.size()] = PyFloat_AsDouble(items[i]);
  if (PyErr_Occurred() != nullptr) throw pybind11::error_already_set();
  return true;
}

bool read_number(PyObject* value, double least, double& number) {
  if (PyFloat_CheckExact(value)) {
    number = PyFloat_AS_DOUBLE(value);
  } else if (PyLong_CheckExact(value)) {
    number = PyLong_AsDouble(value);
    if (number == -1 && PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      return false;
    }
  } else {
    return false;
  }
  return least <= number && number <= double(FLT_MAX);
}

const Direct* choose(PyObject* name, c10::DeviceType device) {
  for (const Backend& backend : backends) {
    if (backend.device != device) continue;
    if (name == Py_None ? backend.is_first
                        : PyUnicode_CheckExact(name) && PyUnicode_Compare(name, backend.name) == 0) {
      return backend.direct;
    }
  }
  return nullptr;
}

bool is_per_pair(const at::Tensor& values, const at::Tensor& pred) {
  return values.sizes() == pred.sizes().slice(0, pred.dim() - 1) && values.device() == pred.device();
}

enum Argument {
  kOfPred, kOfTarget, kOfAnchorObjects, kOfAnchorIndex, kOfWeight, kOfMask, kOfNormalizer, kOfReduction, kOfLoss,
  kOfPenalty, kOfBoxFormat, kOfRelative, kOfPenaltyWeight, kOfEps, kOfBackend, kArguments
};

// Whether all is as icr_kernels/arguments.py demands, and ordinary.
bool read(PyObject* const* given, Py_ssize_t count, Arguments& a) {
  if (count != kArguments || !nobody_looks_on()) return false;
  if (!is_within(c10::impl::tls_local_dispatch_key_set().excluded_, c10::default_excluded_set)) return false;
  if (autograd::ForwardADLevel::try_get_by_idx(0) != nullptr) return false;
  if (at::SavedTensorDefaultHooks::get_hooks().has_value()) return false;

  const at::Tensor &pred = a.boxes[0], &table = a.boxes[2];
  for (int i = 0; i < kBoxes; ++i) {
    const at::Tensor& rows = a.boxes[i];
    if (!read_tensor(given[kOfPred + i], a.boxes[i])) return false;
    if (!rows.defined()) {
      if (i < 2) return false;
      continue;
    }
    if (!is_floating(rows) || rows.dim() == 0 || rows.size(-1) != 4 || rows.device() != pred.device()) return false;
  }
  if (a.boxes[1].sizes() != pred.sizes()) return false;
  if (!read_tensor(given[kOfAnchorIndex], a.index)) return false;
  if (a.index.defined()) {
    if (!table.defined() || table.dim() != 2 || !is_index(a.index) || !is_per_pair(a.index, pred)) return false;
  } else if (table.defined() && table.sizes() != pred.sizes()) {
    return false;
  }
  if (!read_tensor(given[kOfWeight], a.weight) || !read_tensor(given[kOfMask], a.mask)) return false;
  const bool with_grad = c10::GradMode::is_enabled();
  if (a.weight.defined()) {
    if (!is_floating(a.weight) || !is_per_pair(a.weight, pred)) return false;
    if (with_grad && a.weight.requires_grad()) return false;
  }
  if (a.mask.defined() && (a.mask.scalar_type() != at::kBool || !is_per_pair(a.mask, pred))) return false;

  FullFormula<double>& formula = a.formula;
  int reduction;
  if (!read_packed(losses, given[kOfLoss], {&formula.loss, &formula.modifiers}, formula.of_loss, kLossNumberCount) ||
      (formula.modifiers & (kWise2 | kWise3)) != 0 ||  // these need a running mean
      !read_packed(penalties, given[kOfPenalty], {&formula.penalty}, &formula.numbers[kClamp], 1) ||
      !read_place(box_formats, given[kOfBoxFormat], formula.box_format) ||
      !read_place(reductions, given[kOfReduction], reduction) || !PyBool_Check(given[kOfRelative]) ||
      !read_number(given[kOfPenaltyWeight], -double(FLT_MAX), formula.numbers[kPenaltyWeight]) ||
      !read_number(given[kOfEps], 1e-30, formula.numbers[kEps])) {
    return false;
  }
  formula.relative = given[kOfRelative] == Py_True;
  a.reduction = reduction;
  PyObject* const normalizer = given[kOfNormalizer];
  if (normalizer != Py_None) {
    if (reduction != kMean) return false;
    if (THPVariable_CheckExact(normalizer)) {
      const at::Tensor& number = a.normalizer;
      if (!read_tensor(normalizer, a.normalizer) || number.dim() != 0 || !(is_floating(number) || is_index(number)) ||
          number.device() != pred.device() || (with_grad && number.requires_grad())) {
        return false;
      }
    } else {
      double number;
      if (!read_number(normalizer, -double(FLT_MAX), number)) return false;
      a.scale = 1 / std::max(number, formula.numbers[kEps]);
      a.reduction = kSum;
    }
  }
  a.direct = choose(given[kOfBackend], pred.device().type());
  return a.direct != nullptr;
}

LossResult run(const Arguments& a, int64_t wanted, bool in_box_dtype) {
  RECORD_FUNCTION("icr_kernels::loss", {});
  pybind11::gil_scoped_release no_gil;
  return a.direct->loss({stable(a.boxes[0]), stable(a.boxes[1]), stable_or_none(a.boxes[2]), std::nullopt,
                         stable_or_none(a.index), stable_or_none(a.weight), stable_or_none(a.mask),
                         std::nullopt, std::nullopt, stable_or_none(a.normalizer), a.scale, a.reduction, a.formula,
                         wanted, in_box_dtype});
}

// icr_loss(pred, target, anchor_objects, anchor_index, weight, mask, normalizer, reduction, loss, penalty, box_format,
// relative, penalty_weight, eps, backend): the loss, or None.
PyObject* icr_loss(PyObject*, PyObject* const* given, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  Arguments a;
  if (!read(given, count, a)) Py_RETURN_NONE;
  int64_t wanted = 0;
  if (c10::GradMode::is_enabled()) {
    for (int i = 0; i < kBoxes; ++i) {
      if (a.boxes[i].defined() && a.boxes[i].requires_grad()) wanted |= 1 << i;
    }
  }
  const LossResult found = run(a, wanted, false);
  at::Tensor value = plain(found.value);
  if (wanted != 0) {
    const auto node = make_node<IcrLossBackward>();
    const OptionalTensor* const gradients[] = {&found.grad_pred, &found.grad_target, &found.grad_anchor_objects};
    node->set_next_edges(autograd::collect_next_edges(a.boxes[0], a.boxes[1], a.boxes[2]));
    node->direct = a.direct;
    for (int i = 0; i < kBoxes; ++i) {
      if (!(wanted & (1 << i))) continue;
      node->boxes[i] = autograd::SavedVariable(a.boxes[i], false);
      node->dtypes[i] = a.boxes[i].scalar_type();
      node->gradients[i] = plain(*gradients[i]);
    }
    if (wanted & kAnchorObject) node->anchor_index = autograd::SavedVariable(a.index, false);
    node->pending = plain(found.pending);
    autograd::set_history(value, node);
  }
  return THPVariable_Wrap(std::move(value));
  END_HANDLE_TH_ERRORS
}

// Of the same arguments: the loss and its gradient with respect to pred, or None.
PyObject* icr_loss_and_grad(PyObject*, PyObject* const* given, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  Arguments a;
  if (!read(given, count, a)) Py_RETURN_NONE;
  // The gradient is rounded once: by the loss, or by the scaling that is left to do.
  const bool may_lack_count = a.reduction == kMean && a.mask.defined() && !a.normalizer.defined();
  const LossResult found = run(a, kPred, !may_lack_count);
  Tensor gradient = *found.grad_pred;
  const auto dtype = a.boxes[0].scalar_type();
  if (may_lack_count) {
    const bool in_place = plain(gradient).scalar_type() == dtype;
    gradient = a.direct->scaled({gradient, found.pending, std::nullopt, dtype, std::nullopt, std::nullopt, in_place});
  }
  return Py_BuildValue("NN", THPVariable_Wrap(plain(found.value)), THPVariable_Wrap(plain(gradient)));
  END_HANDLE_TH_ERRORS
}

// set_up(backward_of_any, BoxLoss, losses, Penalty, penalties, box_formats, reductions): what of Python is needed here.
PyObject* set_up(PyObject*, PyObject* arguments) {
  if (!PyArg_ParseTuple(arguments, "OO!O!O!O!O!O!", &backward_of_any, &PyType_Type, &losses.type, &PyDict_Type,
                        &losses.packed, &PyType_Type, &penalties.type, &PyDict_Type, &penalties.packed, &PyDict_Type,
                        &box_formats, &PyDict_Type, &reductions)) {
    return nullptr;
  }
  for (PyObject* each : {backward_of_any, losses.type, losses.packed, penalties.type, penalties.packed, box_formats,
                         reductions}) {
    Py_INCREF(each);
  }
  Py_RETURN_NONE;
}

// add_backend(name, is_cuda, is_first, direct)
PyObject* add_backend(PyObject*, PyObject* arguments) {
  PyObject *name, *capsule;
  int is_cuda, is_first;
  if (!PyArg_ParseTuple(arguments, "UppO", &name, &is_cuda, &is_first, &capsule)) return nullptr;
  const auto* direct = static_cast<const Direct*>(PyCapsule_GetPointer(capsule, Direct::kName));
  if (direct == nullptr) return nullptr;
  Py_INCREF(name);
  Py_INCREF(capsule);
  backends.push_back({name, is_cuda ? c10::kCUDA : c10::kCPU, is_first != 0, direct});
  Py_RETURN_NONE;
}

template <class Function>
PyCFunction method(Function* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"icr_loss", method(&icr_loss), METH_FASTCALL, "The loss, or None: not a call for this module."},
    {"icr_loss_and_grad", method(&icr_loss_and_grad), METH_FASTCALL, "The loss and the gradient of pred, or None."},
    {"set_up", &set_up, METH_VARARGS, "What of Python is needed here."},
    {"add_backend", &add_backend, METH_VARARGS, "A processor that is called directly."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C_autograd", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace icr_kernels

// The name has the version of torch in it: see setup.py.
#define JOINED(a, b) a##b
#define INIT_OF(name) JOINED(PyInit_, name)

PyMODINIT_FUNC INIT_OF(TORCH_EXTENSION_NAME)() { return PyModule_Create(&icr_kernels::module); }
