// Every operator of icr_kernels/operators.py, implemented for a processor.
#pragma once

#include <string>

#include "detection_operators.h"

namespace icr_kernels {

template <class Backend>
void implement(torch::stable::detail::StableLibrary& library, const std::string& prefix = "") {
  library.impl((prefix + "loss").c_str(), TORCH_BOX(&loss<Backend>));
  library.impl((prefix + "scaled").c_str(), TORCH_BOX(&scaled<Backend>));
  library.impl((prefix + "scaled_").c_str(), TORCH_BOX(&scaled_in_place<Backend>));
  library.impl((prefix + "terms").c_str(), TORCH_BOX(&terms<Backend>));
  library.impl((prefix + "terms_backward").c_str(), TORCH_BOX(&terms_backward<Backend>));
  library.impl((prefix + "pairwise").c_str(), TORCH_BOX(&pairwise<Backend>));
  library.impl((prefix + "pairwise_backward").c_str(), TORCH_BOX(&pairwise_backward<Backend>));
  library.impl((prefix + "selected").c_str(), TORCH_BOX(&selected<Backend>));
  library.impl((prefix + "matching_cost").c_str(), TORCH_BOX(&matching_cost<Backend>));
  library.impl((prefix + "assigned").c_str(), TORCH_BOX(&assigned<Backend>));
  library.impl((prefix + "decoded").c_str(), TORCH_BOX(&decoded<Backend>));
  library.impl((prefix + "decoded_backward").c_str(), TORCH_BOX(&decoded_backward<Backend>));
  library.impl((prefix + "detection_loss").c_str(), TORCH_BOX(&detection_loss<Backend>));
  library.impl((prefix + "detection_loss_backward").c_str(), TORCH_BOX(&detection_loss_backward<Backend>));
}

}  // namespace icr_kernels
