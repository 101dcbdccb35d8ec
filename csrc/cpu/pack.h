// Pack: N numbers in the lanes of SIMD registers, in the vector types that GCC and Clang share, so that the same code
// becomes SSE2, AVX2, AVX-512 or NEON by the target that it is compiled for.
#pragma once

#include "../number.h"
#include "system_headers.h"

namespace {
namespace icr {

template <class T, int N>
struct VectorOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};

template <class T, int N>
struct Pack {
  using Vector = typename VectorOf<T, N>::type;
  using Integers = typename VectorOf<std::conditional_t<sizeof(T) == 4, int32_t, int64_t>, N>::type;

  Vector v;

  Pack() = default;
  ICR_INLINE Pack(Vector x) : v(x) {}
  ICR_INLINE Pack(T x) : v(broadcast(x, std::make_integer_sequence<int, N>{})) {}

  template <int... I>
  ICR_INLINE static Vector broadcast(T x, std::integer_sequence<int, I...>) {
    return Vector{((void)I, x)...};
  }
  // The lanes 0 to count - 1.
  ICR_INLINE static auto first_lanes(int count) {
    return lane_numbers(std::make_integer_sequence<int, N>{}) < Pack(T(count));
  }
  template <int... I>
  ICR_INLINE static Pack lane_numbers(std::integer_sequence<int, I...>) {
    return Vector{T(I)...};
  }
  ICR_INLINE static Pack load(const T* from) {
    Pack x;
    memcpy(&x.v, from, sizeof(x.v));
    return x;
  }
  ICR_INLINE void store(T* to) const { memcpy(to, &v, sizeof(v)); }

  // A condition a lane: all bits set or none.
  struct Mask {
    Integers m;
    ICR_INLINE friend Mask operator&(Mask a, Mask b) { return {a.m & b.m}; }
    ICR_INLINE friend Mask operator|(Mask a, Mask b) { return {a.m | b.m}; }
    ICR_INLINE friend Mask operator!(Mask a) { return {~a.m}; }
  };

  ICR_INLINE friend Pack operator+(Pack a, Pack b) { return a.v + b.v; }
  ICR_INLINE friend Pack operator-(Pack a, Pack b) { return a.v - b.v; }
  ICR_INLINE friend Pack operator*(Pack a, Pack b) { return a.v * b.v; }
  ICR_INLINE friend Pack operator/(Pack a, Pack b) { return a.v / b.v; }
  ICR_INLINE friend Pack operator-(Pack a) { return -a.v; }
  ICR_INLINE friend Mask operator<(Pack a, Pack b) { return {a.v < b.v}; }
  ICR_INLINE friend Mask operator<=(Pack a, Pack b) { return {a.v <= b.v}; }
  ICR_INLINE friend Mask operator>(Pack a, Pack b) { return {a.v > b.v}; }
  ICR_INLINE friend Mask operator==(Pack a, Pack b) { return {a.v == b.v}; }
  ICR_INLINE friend Pack select(Mask condition, Pack a, Pack b) { return condition.m ? a.v : b.v; }

  ICR_INLINE Integers bits() const {
    Integers i;
    memcpy(&i, &v, sizeof(i));
    return i;
  }
  ICR_INLINE static Pack from_bits(Integers i) {
    Pack x;
    memcpy(&x.v, &i, sizeof(i));
    return x;
  }
};

template <class T, int N>
ICR_INLINE bool any_lane(typename Pack<T, N>::Integers m) {
#if defined(ICR_AVX512)
  if constexpr (sizeof(T) == 4) return _mm512_movepi32_mask(__m512i(m)) != 0;
  if constexpr (sizeof(T) == 8) return _mm512_movepi64_mask(__m512i(m)) != 0;
#elif defined(ICR_AVX2)
  return _mm256_movemask_epi8(__m256i(m)) != 0;
#endif
  bool found = false;
  for (int i = 0; i < N; ++i) found |= m[i] != 0;
  return found;
}

template <class T, int N>
ICR_INLINE Pack<T, N> abs(Pack<T, N> x) {
  using P = Pack<T, N>;
  return P::from_bits(x.bits() & ~P(T(-0.0)).bits());
}

template <class T, int N>
ICR_INLINE Pack<T, N> lesser(Pack<T, N> a, Pack<T, N> b) {
#if defined(ICR_AVX512)
  if constexpr (sizeof(T) == 4) return _mm512_min_ps(a.v, b.v);
#elif defined(ICR_AVX2)
  if constexpr (sizeof(T) == 4) return _mm256_min_ps(a.v, b.v);
#endif
  return select(a < b, a, b);
}
template <class T, int N>
ICR_INLINE Pack<T, N> greater(Pack<T, N> a, Pack<T, N> b) {
#if defined(ICR_AVX512)
  if constexpr (sizeof(T) == 4) return _mm512_max_ps(a.v, b.v);
#elif defined(ICR_AVX2)
  if constexpr (sizeof(T) == 4) return _mm256_max_ps(a.v, b.v);
#endif
  return select(a > b, a, b);
}

template <class T, int N>
ICR_INLINE Pack<T, N> square_root(Pack<T, N> x) {
#if defined(ICR_AVX512)
  if constexpr (sizeof(T) == 4) return _mm512_sqrt_ps(x.v);
#elif defined(ICR_AVX2)
  if constexpr (sizeof(T) == 4) return _mm256_sqrt_ps(x.v);
#endif
  for (int i = 0; i < N; ++i) x.v[i] = square_root(T(x.v[i]));
  return x;
}

// In 512 bits the divider is slow: there one step of Newton from the processor's estimate.
template <class T, int N>
ICR_INLINE Pack<T, N> reciprocal(Pack<T, N> x) {
#if defined(ICR_AVX512)
  if constexpr (sizeof(T) == 4) {
    // Denominators are guarded from below and boxes limited from above: the estimate does not overflow.
    const auto e = _mm512_rcp14_ps(x.v);
    return _mm512_fmadd_ps(e, _mm512_fnmadd_ps(x.v, e, _mm512_set1_ps(1.0f)), e);
  }
#endif
  return Pack<T, N>(T(1)) / x;
}

// a / b, given r = 1 / b: a r, corrected by the remainder that a fused multiplication leaves. Exactly 1 for a == b.
template <class T, int N>
ICR_INLINE Pack<T, N> quotient(Pack<T, N> a, Pack<T, N> b, Pack<T, N> r) {
#if defined(ICR_AVX512)
  if constexpr (sizeof(T) == 4) {
    const auto q = a.v * r.v;
    return _mm512_fmadd_ps(_mm512_fnmadd_ps(q, b.v, a.v), r.v, q);
  }
#elif defined(ICR_AVX2)
  if constexpr (sizeof(T) == 4) {
    const auto q = a.v * r.v;
    return _mm256_fmadd_ps(_mm256_fnmadd_ps(q, b.v, a.v), r.v, q);
  }
#endif
  (void)r;
  return a / b;
}

template <class T, int N>
ICR_INLINE Pack<T, N> rounded_product(Pack<T, N> a, Pack<T, N> b) {
  Pack<T, N> product = a * b;
#if defined(ICR_AVX512)
  asm("" : "+v"(product.v));
#elif defined(ICR_AVX2)
  asm("" : "+x"(product.v));
#elif !defined(__x86_64__)
  asm("" : "+m"(product.v));
#endif
  return product;
}

// exp and log in float: argument reduction and a minimax polynomial. In double each lane asks libm:
// that precision serves checking, not training.

template <int N>
ICR_INLINE Pack<float, N> exp(Pack<float, N> x) {
  using P = Pack<float, N>;
  x = lesser(P(88.0f), greater(P(-87.0f), x));
  const P shift(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, found in the low bits
  const P shifted = x * P(1.44269504f) + shift;
  const P n = shifted - shift;
  const P r = (x - n * P(0.693359375f)) - n * P(-2.12194440e-4f);
  P q(0.00139517058f);
  q = q * r + P(0.00836959016f);
  q = q * r + P(0.0416661873f);
  q = q * r + P(0.166665137f);
  q = q * r + P(0.5f);
  const P two_to_n = P::from_bits((shifted.bits() << 23) + P(1.0f).bits());
  return (q * (r * r) + r + P(1.0f)) * two_to_n;
}

template <int N>
ICR_INLINE Pack<float, N> log(Pack<float, N> x) {
  using P = Pack<float, N>;
  // x = m 2^e with m in [sqrt(1/2), sqrt(2))
  const auto e = (x.bits() - P(0.70710678f).bits()) >> 23;
  const P f = P::from_bits(x.bits() - (e << 23)) - P(1.0f);
  const P exponent(__builtin_convertvector(e, typename P::Vector));
  P q(-0.0763120949f);
  q = q * f + P(0.128549263f);
  q = q * f + P(-0.132078901f);
  q = q * f + P(0.141900063f);
  q = q * f + P(-0.166165233f);
  q = q * f + P(0.200016156f);
  q = q * f + P(-0.25001061f);
  q = q * f + P(0.333333284f);
  const P f2 = f * f;
  const P result = (q * f - P(0.5f)) * f2 + f + exponent * P(0.693147181f);
  return select(x == x, result, x);
}

// log(1 + x) of x from 0 to 1, exact for small x: 2 atanh(s) with s = x / (2 + x).
template <int N>
ICR_INLINE Pack<float, N> log1p(Pack<float, N> x) {
  using P = Pack<float, N>;
  const P s = x * reciprocal(P(2.0f) + x), z = s * s;
  P q(0.281783193f);
  q = q * z + P(0.279606074f);
  q = q * z + P(0.400249094f);
  q = q * z + P(0.66666317f);
  return (q * z + P(2.0f)) * s;
}

template <int N>
ICR_INLINE Pack<float, N> atan2(Pack<float, N> y, Pack<float, N> x) {
  return first_quadrant_angle(y, x);
}

template <int N>
ICR_INLINE Pack<double, N> exp(Pack<double, N> x) {
  for (int i = 0; i < N; ++i) x.v[i] = exp(double(x.v[i]));
  return x;
}
template <int N>
ICR_INLINE Pack<double, N> log(Pack<double, N> x) {
  for (int i = 0; i < N; ++i) x.v[i] = log(double(x.v[i]));
  return x;
}
template <int N>
ICR_INLINE Pack<double, N> log1p(Pack<double, N> x) {
  for (int i = 0; i < N; ++i) x.v[i] = log1p(double(x.v[i]));
  return x;
}
template <int N>
ICR_INLINE Pack<double, N> atan2(Pack<double, N> y, Pack<double, N> x) {
  for (int i = 0; i < N; ++i) y.v[i] = atan2(double(y.v[i]), double(x.v[i]));
  return y;
}

// Rows and columns: N rows of four coordinates lie in memory as four vectors; the arithmetic wants one per coordinate.

// The lanes of a (0 to N-1) and b (N to 2N-1) of those numbers.
template <int... Lanes, class V>
ICR_INLINE V permute(V a, V b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Lanes...);
#else
  return __builtin_shuffle(a, b, decltype(a == b){Lanes...});
#endif
}

template <class T, int N, int... I>
ICR_INLINE void rows_to_columns(Pack<T, N> (&x)[4], std::integer_sequence<int, I...>) {
  static_assert(N >= 4, "a vector holds whole rows");
  // Half of the rows give coordinates 0 and 1 (then 2 and 3), one after the other; two such halves make a column each.
  constexpr int half = N / 2;
  const auto a01 = permute<(I < half ? 4 * I : 4 * (I - half) + 1)...>(x[0].v, x[1].v);
  const auto b01 = permute<(I < half ? 4 * I : 4 * (I - half) + 1)...>(x[2].v, x[3].v);
  const auto a23 = permute<(I < half ? 4 * I + 2 : 4 * (I - half) + 3)...>(x[0].v, x[1].v);
  const auto b23 = permute<(I < half ? 4 * I + 2 : 4 * (I - half) + 3)...>(x[2].v, x[3].v);
  x[0].v = permute<(I < half ? I : N + I - half)...>(a01, b01);
  x[1].v = permute<(I < half ? half + I : N + I)...>(a01, b01);
  x[2].v = permute<(I < half ? I : N + I - half)...>(a23, b23);
  x[3].v = permute<(I < half ? half + I : N + I)...>(a23, b23);
}

template <class T, int N, int... I>
ICR_INLINE void columns_to_rows(Pack<T, N> (&x)[4], std::integer_sequence<int, I...>) {
  // The inverse: columns 0 and 1 (2 and 3) interleave, then pairs of both alternate.
  constexpr int half = N / 2;
  const auto a01 = permute<((I % 2 ? N : 0) + I / 2)...>(x[0].v, x[1].v);
  const auto b01 = permute<((I % 2 ? N : 0) + I / 2 + half)...>(x[0].v, x[1].v);
  const auto a23 = permute<((I % 2 ? N : 0) + I / 2)...>(x[2].v, x[3].v);
  const auto b23 = permute<((I % 2 ? N : 0) + I / 2 + half)...>(x[2].v, x[3].v);
  x[0].v = permute<((I % 4 < 2 ? 0 : N) + 2 * (I / 4) + I % 2)...>(a01, a23);
  x[1].v = permute<((I % 4 < 2 ? 0 : N) + 2 * (I / 4) + I % 2 + half)...>(a01, a23);
  x[2].v = permute<((I % 4 < 2 ? 0 : N) + 2 * (I / 4) + I % 2)...>(b01, b23);
  x[3].v = permute<((I % 4 < 2 ? 0 : N) + 2 * (I / 4) + I % 2 + half)...>(b01, b23);
}

}  // namespace icr
}  // namespace
