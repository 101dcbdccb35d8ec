// The operators on CUDA tensors, and the Python module that says what was built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(icr_kernels, CUDA, m) {
  m.impl("loss", TORCH_BOX(&icr_kernels::loss<icr_cuda::Cuda>));
  m.impl("scaled", TORCH_BOX(&icr_kernels::scaled<icr_cuda::Cuda>));
  m.impl("terms", TORCH_BOX(&icr_kernels::terms<icr_cuda::Cuda>));
  m.impl("terms_backward", TORCH_BOX(&icr_kernels::terms_backward<icr_cuda::Cuda>));
}

PYBIND11_MODULE(_C_cuda, m) {
  m.def("compiler", [] { return std::string(ICR_KERNELS_NVCC); }, "The version of nvcc of this build.");
  m.def("architectures", [] { return std::vector<std::string>{ICR_KERNELS_ARCHITECTURES}; },
        "The GPU architectures that this build has code for: sm_90; compute_120 is PTX, for newer GPUs too.");
}
