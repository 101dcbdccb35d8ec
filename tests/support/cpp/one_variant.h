// Included before the loops by the sanitizer build: one loss and one penalty instead of all. How memory is read and
// written does not depend on them, and instrumenting them all takes more than ten minutes.
#include "../../../csrc/iou_losses.h"
#include "../../../csrc/penalties.h"

namespace {
namespace icr {
using OneLoss = List<CIoU>;
using OnePenalty = List<ContainmentPull>;
}  // namespace icr
}  // namespace
#define Losses OneLoss
#define Penalties OnePenalty
