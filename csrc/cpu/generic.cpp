// The instruction set that every machine of this architecture has: SSE2 on x86-64, NEON on 64-bit Arm.
#include "pairwise.h"

const icr_cpu::InstructionSet icr_cpu::generic = icr::instruction_set<4, 4>("generic");
