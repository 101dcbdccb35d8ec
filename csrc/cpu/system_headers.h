// Every system header that the loops use. A translation unit for an optional instruction set includes them before it
// chooses its target, so that no inline function of theirs is compiled for a machine that may not be there.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <limits>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
