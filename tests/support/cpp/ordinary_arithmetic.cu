// What compilers make many instructions of: for a GPU and, by another compiler, for the host.
#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#define ON_DEVICE __device__
#else
#define ON_DEVICE static
#endif

struct Numbers {
  float a, b, c;
  int i, j;
  unsigned u, v;
  int64_t l;
};

struct Results {
  float floats[18];
  int ints[18];
  int64_t longs[6];
  double doubles[6];
};

ON_DEVICE float one_of(const Numbers& x) {
  switch (x.j & 7) {
    case 0: return x.a;
    case 1: return x.b * 3;
    case 2: return x.c - 1;
    case 3: return x.a / x.c;
    case 4: return sqrtf(fabsf(x.b));
    case 5: return x.a + x.b * x.c;
    case 6: return -x.b;
    default: return x.a * x.a;
  }
}

ON_DEVICE float series(const Numbers& x) {
  float sum = 0;
  for (int k = 0; k < (x.i & 15); ++k) {
    if (sum > x.c) continue;
    sum += x.a * k - x.b;
  }
  return sum;
}

ON_DEVICE Results compute(const Numbers& x) {
  return {
      {x.a / x.b, 1.0f / x.c, sqrtf(fabsf(x.a)), fminf(x.a, x.b) + fmaxf(x.b, x.c), fmaf(x.a, x.b, x.c),
       fminf(fmaxf(x.a, 0.0f), 1.0f), x.i * 0.5f + float(x.u), float(x.l), floorf(x.a) + truncf(x.b) + rintf(x.c),
       copysignf(x.a, x.b), fabsf(x.a) - x.b, x.a > x.b ? x.c : (x.b <= x.c ? x.a : x.b),
       float(x.a > x.b) + float(!(x.b > x.c)), float(double(x.a) * double(x.b)), one_of(x), series(x),
       x.a * 1e-38f * x.b, float(x.i) / float(x.v)},
      {x.i / (x.j | 1), x.i % (x.j | 1), int(x.u / (x.v | 1)), int(x.u % (x.v | 1)), x.i / 7, x.i % 10,
       int(x.u / 1000), x.i >> (x.j & 31), int(x.u << (x.v & 31)), int(x.u >> (x.v & 31)), x.i < x.j ? x.i : x.j,
       int(x.u > x.v ? x.u : x.v), int(x.a), int(unsigned(fabsf(x.b))), (x.i ^ x.j) | (x.i & int(x.v)),
       int((x.u >> 5) & 0x3f) + int8_t(x.i) + uint16_t(x.j), int(x.u * x.v + x.u), (x.i < 0 ? 3 : 5) + int16_t(x.j)},
      {int64_t(uint64_t(x.l) * uint64_t(x.i)), x.l / (x.j | 1), x.l % (int64_t(x.v) | 1), x.l >> (x.j & 63),
       int64_t(uint64_t(x.l) << (x.j & 63)), x.l < x.i ? x.l : int64_t(x.a)},
      {double(x.a) / double(x.b), double(x.l), double(x.i) + double(x.c), sqrt(double(fabsf(x.c))),
       x.a > x.c ? double(x.a) : double(x.c) * double(x.b), double(x.u) - double(x.a)},
  };
}

#ifdef __CUDACC__
__global__ void compute_all(const Numbers* numbers, Results* results, int count) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) results[i] = compute(numbers[i]);
}
#else
extern "C" void compute_all(const Numbers* numbers, Results* results, int count) {
  for (int i = 0; i < count; ++i) results[i] = compute(numbers[i]);
}
#endif
