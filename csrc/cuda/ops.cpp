// The operators on CUDA tensors, and the Python module that says what was built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>

#include <string>
#include <utility>
#include <vector>

#include "../register.h"
#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(icr_kernels, CUDA, m) { icr_kernels::implement<icr_cuda::Cuda>(m); }

PYBIND11_MODULE(_C_cuda, m) {
  m.attr("direct") = pybind11::capsule(&icr_kernels::direct<icr_cuda::Cuda>, icr_kernels::Direct::kName);
  m.def("compiler", [] { return std::string(ICR_KERNELS_NVCC); }, "The version of nvcc of this build.");
  m.def("cuda_versions", [] {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    return std::pair(driver, runtime);
  }, "The newest CUDA version that the driver knows (0: there is no driver), and that of the runtime of this build.");
  m.def("architectures", [] { return std::vector<std::string>{ICR_KERNELS_ARCHITECTURES}; },
        "The GPU architectures that this build has code for: sm_90; compute_120 is PTX, for newer GPUs too.");
}
