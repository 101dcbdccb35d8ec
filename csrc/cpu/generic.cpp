// The instruction set that every machine of this architecture has: SSE2 on x86-64, NEON on 64-bit Arm.
#include "loops.h"

const icr_cpu::InstructionSet icr_cpu::generic = {"generic", icr::run<4, 4>, icr::scale};
