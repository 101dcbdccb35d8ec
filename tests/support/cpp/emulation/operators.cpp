// The CUDA operators on the emulated device, as icr_kernels::emulated_* on CPU tensors, and a Python module to steer it.
#include <pybind11/pybind11.h>

#include "../../../../csrc/cuda/assignment.cu"
#include "../../../../csrc/cuda/backend.cpp"
#include "../../../../csrc/cuda/detection.cu"
#include "../../../../csrc/cuda/kernels.cu"
#include "../../../../csrc/cuda/pairwise.cu"
#include "../../../../csrc/cuda/selection.cu"
#include "../../../../csrc/register.h"

extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}

STABLE_TORCH_LIBRARY_IMPL(icr_kernels, CPU, m) { icr_kernels::implement<icr_cuda::Cuda>(m, "emulated_"); }

PYBIND11_MODULE(_emulated, m) {
  using emulation::Device;
  namespace py = pybind11;
  m.attr("direct") = py::capsule(&icr_kernels::direct<icr_cuda::Cuda>, icr_kernels::Direct::kName);
  py::enum_<Device::Order>(m, "Order")
      .value("forward", Device::kForward)
      .value("backward", Device::kBackward)
      .value("shuffled", Device::kShuffled);
  py::class_<Device>(m, "Device")
      .def_readwrite("multiprocessors", &Device::multiprocessors)
      .def_readwrite("order", &Device::order)
      .def_readwrite("is_capturing", &Device::is_capturing)
      .def_readwrite("fails", &Device::fails)
      .def_readwrite("launches", &Device::launches)
      .def_readwrite("memsets", &Device::memsets);
  m.attr("device") = py::cast(&emulation::device, py::return_value_policy::reference);
}
