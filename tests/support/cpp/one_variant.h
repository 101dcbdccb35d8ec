// Included before the loops by the sanitizer build: one loss of each kind and one penalty instead of all. How memory is
// read and written does not depend on them, and instrumenting them all takes more than ten minutes.
#include "../../../csrc/iou_losses.h"
#include "../../../csrc/penalties.h"

namespace {
namespace icr {
using OneCommonLoss = List<CIoU>;
using OneFurtherLoss = List<MPDIoU>;
using OneLossOfEach = List<CIoU, MPDIoU>;
using OnePenalty = List<ContainmentPull>;
}  // namespace icr
}  // namespace
#define CommonLosses OneCommonLoss
#define FurtherLosses OneFurtherLoss
#define Losses OneLossOfEach
#define Penalties OnePenalty
