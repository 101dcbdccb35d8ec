#if defined(__x86_64__)
// GCC lexes a file before it sees the pragma, so the target is also named by a macro.
#define ICR_AVX2
#include "system_headers.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include "pairwise.h"

const icr_cpu::InstructionSet icr_cpu::avx2 = icr::instruction_set<8, 4>("avx2");

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
