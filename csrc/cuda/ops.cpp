// The operators on CUDA tensors, and the Python module that says what was built.
#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>

#include <string>
#include <utility>
#include <vector>

#include "../register.h"
#include "backend.h"

namespace {

// Of the driver itself: CUDA's runtime would initialise it to find out, and from then on no forked process could use a
// GPU, nor would CUDA_VISIBLE_DEVICES be read again.
int driver_version() {
  void* const driver = dlopen("libcuda.so.1", RTLD_LAZY);
  const auto get = driver == nullptr ? nullptr : reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuDriverGetVersion"));
  int version = 0;
  return get != nullptr && get(&version) == 0 ? version : 0;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(icr_kernels, CUDA, m) { icr_kernels::implement<icr_cuda::Cuda>(m); }

PYBIND11_MODULE(_C_cuda, m) {
  m.attr("direct") = pybind11::capsule(&icr_kernels::direct<icr_cuda::Cuda>, icr_kernels::Direct::kName);
  m.def("compiler", [] { return std::string(ICR_KERNELS_NVCC); }, "The version of nvcc of this build.");
  m.def("cuda_versions", [] {
    int runtime = 0;
    cudaRuntimeGetVersion(&runtime);
    return std::pair(driver_version(), runtime);
  }, "The newest CUDA version that the driver knows (0: there is no driver), and that of the runtime of this build.");
  m.def("architectures", [] { return std::vector<std::string>{ICR_KERNELS_ARCHITECTURES}; },
        "The GPU architectures that this build has code for: sm_90; compute_120 is PTX, for newer GPUs too.");
}
