#if defined(__x86_64__)
// GCC lexes a file before it sees the pragma, so the target is also named by a macro.
#define ICR_AVX512
#include "system_headers.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl")
#endif
#include "pairwise.h"

const icr_cpu::InstructionSet icr_cpu::avx512 = icr::instruction_set<16, 8>("avx512");

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
