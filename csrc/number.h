// Numbers that a loss is written over: plain float and double here, SIMD lanes in cpu/pack.h, and Dual, which carries
// its partial derivatives along. A formula written once over any of them gives its value, its value on every lane, and
// its gradient.
#pragma once

#include <math.h>

#include <type_traits>
#include <utility>

#if defined(__CUDACC__)
#define ICR_INLINE __host__ __device__ __forceinline__
#define ICR_INLINE_LAMBDA
#define ICR_UNROLL _Pragma("unroll")
#define ICR_APART __host__ __device__ __forceinline__
#else
#define ICR_INLINE inline __attribute__((always_inline))
#define ICR_INLINE_LAMBDA __attribute__((always_inline))
#define ICR_UNROLL
#if defined(__clang__)
#define ICR_APART __attribute__((noinline))
#else
#define ICR_APART __attribute__((noipa))
#endif
#endif

// ICR_APART: a function of its own on a CPU, whose code depends on nothing around it. A GPU calls none.

// Every translation unit gets its own copy: one compiler's, or one instruction set's, must not stand in for another's.
namespace {
namespace icr {

// Plain numbers

ICR_INLINE float select(bool condition, float a, float b) { return condition ? a : b; }
ICR_INLINE double select(bool condition, double a, double b) { return condition ? a : b; }
// The smaller and the larger of two; NaN if b is, in single floats if either is: there a GPU has an instruction for it.
#if defined(__CUDA_ARCH__)
ICR_INLINE float lesser(float a, float b) {
  float smaller;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(smaller) : "f"(a), "f"(b));
  return smaller;
}
ICR_INLINE float greater(float a, float b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
}
#else
ICR_INLINE float lesser(float a, float b) { return a < b || a != a ? a : b; }
ICR_INLINE float greater(float a, float b) { return a > b || a != a ? a : b; }
#endif
ICR_INLINE double lesser(double a, double b) { return a < b ? a : b; }
ICR_INLINE double greater(double a, double b) { return a > b ? a : b; }
ICR_INLINE float abs(float x) { return ::fabsf(x); }
ICR_INLINE double abs(double x) { return ::fabs(x); }
ICR_INLINE float exp(float x) { return ::expf(x); }
ICR_INLINE double exp(double x) { return ::exp(x); }
ICR_INLINE float log(float x) { return ::logf(x); }
ICR_INLINE double log(double x) { return ::log(x); }
ICR_INLINE float square_root(float x) { return ::sqrtf(x); }
ICR_INLINE double square_root(double x) { return ::sqrt(x); }
ICR_INLINE float log1p(float x) { return ::log1pf(x); }
ICR_INLINE double log1p(double x) { return ::log1p(x); }
// The angle of the point (x, y) of the first quadrant, where a side of -0 is a side of 0.
ICR_INLINE double atan2(double y, double x) { return ::atan2(y, x + 0.0); }
ICR_INLINE double reciprocal(double x) { return 1.0 / x; }
// a / b, given 1 / b.
ICR_INLINE double quotient(double a, double b, double) { return a / b; }

// Single floats are the numbers of a GPU, whose exact division takes a dozen instructions and a branch. Denominators
// are guarded from below and boxes limited from above, so that its estimate (1 ulp) neither overflows nor underflows; a
// step of Newton, and for a quotient the remainder that a fused multiplication leaves, make up for its error.
#if defined(__CUDA_ARCH__)
ICR_INLINE float estimated_reciprocal(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
#else
ICR_INLINE float estimated_reciprocal(float x) { return 1.0f / x; }
#endif
ICR_INLINE float reciprocal(float x) {
  const float r = estimated_reciprocal(x);
  return ::fmaf(r, ::fmaf(-x, r, 1.0f), r);
}
// Exactly 1 for a == b. Without the step of Newton, whose share in what the remainder corrects is too small to be seen.
ICR_INLINE float quotient(float a, float b, float) {
  const float r = estimated_reciprocal(b), q = a * r;
  return ::fmaf(::fmaf(-q, b, a), r, q);
}

// atan2 in single precision: a minimax polynomial up to the diagonal, mirrored beyond.
template <class S>
ICR_INLINE S first_quadrant_angle(S y, S x) {
  const auto steep = y > x;
  const S t = lesser(x, y) * reciprocal(greater(S(1.17549435e-38f), greater(x, y)));
  const S z = t * t;
  const S z2 = z * z, z4 = z2 * z2;
  const S q01 = S(0.199903965f) * z + S(-0.333329856f), q23 = S(0.10573931f) * z + S(-0.141859755f);
  const S q45 = S(0.0411218293f) * z + S(-0.0736670345f), q67 = S(0.00262223976f) * z + S(-0.0151325176f);
  const S q = (q67 * z2 + q45) * z4 + (q23 * z2 + q01);
  const S flat = q * z * t + t;
  return select(steep, S(1.57079633f) - flat, flat);
}
ICR_INLINE float atan2(float y, float x) { return first_quadrant_angle(y, x); }

// a * b rounded before anything is added to it. Two equal areas stay equal then, and identical boxes are at rest.
#if defined(__CUDA_ARCH__)
ICR_INLINE float rounded_product(float a, float b) { return __fmul_rn(a, b); }
ICR_INLINE double rounded_product(double a, double b) { return __dmul_rn(a, b); }
#else
template <class S>
ICR_INLINE S without_contraction(S x) {
#if defined(__aarch64__)
  asm("" : "+w"(x));
#elif defined(__x86_64__)
  asm("" : "+x"(x));
#endif
  return x;
}
ICR_INLINE float rounded_product(float a, float b) { return without_contraction(a * b); }
ICR_INLINE double rounded_product(double a, double b) { return without_contraction(a * b); }
#endif

// Dual: a value and its partial derivatives with respect to the variables whose bit is set in Vars. Derivatives that
// are known to vanish are not there: the width of a box costs two partials, not twelve.

ICR_INLINE constexpr int count_bits(unsigned bits) { return bits == 0 ? 0 : int(bits & 1u) + count_bits(bits >> 1); }

// Position of the n-th set bit.
ICR_INLINE constexpr int nth_bit(unsigned bits, int n) {
  return (bits & 1u) ? (n == 0 ? 0 : 1 + nth_bit(bits >> 1, n - 1)) : 1 + nth_bit(bits >> 1, n);
}

template <class S, unsigned Vars>
struct Dual {
  S value;
  S partial[count_bits(Vars)];
};

template <class X>
struct Traits {
  static constexpr unsigned vars = 0;
};
template <class S, unsigned Vars>
struct Traits<Dual<S, Vars>> {
  static constexpr unsigned vars = Vars;
};
template <class X>
constexpr unsigned vars_of = Traits<std::decay_t<X>>::vars;

template <class S>
ICR_INLINE S value_of(const S& x) {
  return x;
}
template <class S, unsigned Vars>
ICR_INLINE S value_of(const Dual<S, Vars>& x) {
  return x.value;
}

// Constant under differentiation: sg() in the papers.
template <class X>
ICR_INLINE auto constant(const X& x) {
  return value_of(x);
}

// Factors and derivatives known at compile time.
struct Zero {
  template <class S>
  ICR_INLINE explicit operator S() const { return S(0); }
};
struct One {};
struct MinusOne {};

template <class X>
ICR_INLINE Zero operator*(const X&, Zero) { return {}; }
template <class S>
ICR_INLINE S operator*(One, const S& x) { return x; }
ICR_INLINE Zero operator*(One, Zero) { return {}; }
template <class S>
ICR_INLINE S operator*(MinusOne, const S& x) { return -x; }
ICR_INLINE Zero operator*(MinusOne, Zero) { return {}; }
template <class S>
ICR_INLINE S operator+(Zero, const S& x) { return x; }
template <class S>
ICR_INLINE S operator+(const S& x, Zero) { return x; }
ICR_INLINE Zero operator+(Zero, Zero) { return {}; }

template <int Bit, class X>
ICR_INLINE auto partial(const X& x) {
  if constexpr ((vars_of<X> >> Bit) & 1u) {
    return x.partial[count_bits(vars_of<X> & ((1u << Bit) - 1u))];
  } else {
    return Zero{};
  }
}

template <class X>
using Partials = std::make_integer_sequence<int, count_bits(vars_of<X>)>;

// The chain rule: `value` with the derivative fa da + fb db.
template <unsigned Vars, class S, class FA, class A, class FB, class B, int... I>
ICR_INLINE Dual<S, Vars> chain(S value, FA fa, const A& a, FB fb, const B& b, std::integer_sequence<int, I...>) {
  return {value, {(fa * partial<nth_bit(Vars, I)>(a) + fb * partial<nth_bit(Vars, I)>(b))...}};
}
template <class S, class FA, class A, class FB, class B>
ICR_INLINE auto chain(S value, FA fa, const A& a, FB fb, const B& b) {
  constexpr unsigned vars = vars_of<A> | vars_of<B>;
  if constexpr (vars == 0) {
    return value;
  } else {
    return chain<vars>(value, fa, a, fb, b, std::make_integer_sequence<int, count_bits(vars)>{});
  }
}
template <class S, class FA, class A>
ICR_INLINE auto chain(S value, FA fa, const A& a) {
  return chain(value, fa, a, Zero{}, Zero{});
}

// Operators are for pairs of which at least one is a Dual; the other may be a plain number.
template <class A, class B>
using IfDual = std::enable_if_t<(vars_of<A> | vars_of<B>) != 0, int>;

template <class S, unsigned Vars>
ICR_INLINE auto operator-(const Dual<S, Vars>& a) {
  return chain(-a.value, MinusOne{}, a);
}
template <class A, class B, IfDual<A, B> = 0>
ICR_INLINE auto operator+(const A& a, const B& b) {
  return chain(value_of(a) + value_of(b), One{}, a, One{}, b);
}
template <class A, class B, IfDual<A, B> = 0>
ICR_INLINE auto operator-(const A& a, const B& b) {
  return chain(value_of(a) - value_of(b), One{}, a, MinusOne{}, b);
}
template <class A, class B, IfDual<A, B> = 0>
ICR_INLINE auto operator*(const A& a, const B& b) {
  return chain(value_of(a) * value_of(b), value_of(b), a, value_of(a), b);
}

// a / max(b, least). Its derivative is (da - q db) / b in just that form: where a == b and da == db, as for identical
// boxes, it is exactly 0. Where the guard holds the denominator is constant. NaN stays NaN.
template <unsigned Vars, class S, class A, class B, int... I>
ICR_INLINE Dual<S, Vars> ratio(S q, S r, S q_db, const A& a, const B& b, std::integer_sequence<int, I...>) {
  return {q, {((One{} * partial<nth_bit(Vars, I)>(a) + q_db * partial<nth_bit(Vars, I)>(b)) * r)...}};
}
template <class A, class B, class S>
ICR_INLINE auto ratio(const A& a, const B& b, S least) {
  const S denominator = greater(least, value_of(b));
  const S r = reciprocal(denominator);
  const S q = quotient(S(value_of(a)), denominator, r);
  constexpr unsigned vars = vars_of<A> | vars_of<B>;
  if constexpr (vars == 0) {
    return q;
  } else {
    const S q_db = select(value_of(b) <= least, S(0), -q);
    return ratio<vars>(q, r, q_db, a, b, std::make_integer_sequence<int, count_bits(vars)>{});
  }
}

template <class X>
ICR_INLINE auto square(const X& x) {
  const auto v = value_of(x);
  return chain(v * v, v + v, x);
}

// a * b of two sides, rounded: see rounded_product.
template <class A, class B>
ICR_INLINE auto area_of(const A& a, const B& b) {
  return chain(rounded_product(value_of(a), value_of(b)), value_of(b), a, value_of(a), b);
}

// relu(a) * relu(b), rounded. Nothing flows where either side is empty; NaN stays NaN.
template <class A, class B>
ICR_INLINE auto overlap_area(const A& a, const B& b) {
  const auto av = value_of(a), bv = value_of(b);
  using S = decltype(value_of(a));
  const S a_side = greater(S(0), av), b_side = greater(S(0), bv);
  return chain(rounded_product(a_side, b_side), select(av <= S(0), S(0), b_side), a,
               select(bv <= S(0), S(0), a_side), b);
}

// f(x), differentiated with respect to x first: cheaper where x depends on many variables.
template <class F, class X>
ICR_INLINE auto composed(F f, const X& x) {
  if constexpr (vars_of<X> == 0) {
    return f(x);
  } else {
    using S = decltype(value_of(x));
    const auto y = f(Dual<S, 1>{value_of(x), {S(1)}});
    return chain(y.value, partial<0>(y), x);
  }
}

// max(x, 0) with the derivative 0 at 0; NaN stays NaN.
template <class X>
ICR_INLINE auto relu(const X& x) {
  const auto v = value_of(x);
  using S = decltype(value_of(x));
  return chain(greater(S(0), v), select(v > S(0), S(1), S(0)), x);
}

// max(x, least). The derivative is 0 where the guard holds; NaN stays NaN.
template <class X, class S>
ICR_INLINE auto guard(const X& x, S least) {
  const S v = value_of(x);
  return chain(greater(least, v), select(v <= least, S(0), S(1)), x);
}

// |x| with the derivative 0 at 0.
template <class X>
ICR_INLINE auto magnitude(const X& x) {
  const auto v = value_of(x);
  using S = decltype(value_of(x));
  return chain(abs(v), select(v > S(0), S(1), select(v < S(0), S(-1), S(0))), x);
}

template <class X>
ICR_INLINE auto exponential(const X& x) {
  const auto e = exp(value_of(x));
  return chain(e, e, x);
}

template <class X>
ICR_INLINE auto logarithm(const X& x) {
  const auto v = value_of(x);
  return chain(log(v), reciprocal(v), x);
}

// The square root, with the derivative 0 at 0.
template <class X>
ICR_INLINE auto root(const X& x) {
  const auto v = value_of(x);
  using S = decltype(value_of(x));
  const S r = square_root(v);
  return chain(r, select(v <= S(0), S(0), S(0.5) * reciprocal(select(v <= S(0), S(1), r))), x);
}

// x^exponent of a number from 0 on, with the derivative 0 at 0.
template <class X, class S>
ICR_INLINE auto power(const X& x, S exponent) {
  const S v = value_of(x);
  const auto is_zero = v <= S(1e-37);
  const S base = select(is_zero, S(1), v), y = exp(exponent * log(base));
  return chain(select(is_zero, S(0), y), select(is_zero, S(0), exponent * y * reciprocal(base)), x);
}

// x within [-most, most]; nothing flows from beyond. NaN stays NaN.
template <class X, class S>
ICR_INLINE auto bounded(const X& x, S most) {
  const S v = value_of(x);
  return chain(lesser(most, greater(-most, v)), select(most < abs(v), S(0), S(1)), x);
}

// atan(y/x) in the first quadrant, with the denominator of its derivative guarded.
template <class Y, class X, class S>
ICR_INLINE auto arctangent(const Y& y, const X& x, S eps) {
  const S yv = value_of(y), xv = value_of(x);
  const S r = reciprocal(greater(eps, xv * xv + yv * yv));
  return chain(atan2(yv, xv), xv * r, y, -(yv * r), x);
}

// What the smaller of two numbers has of the first: all of it or nothing, and half where they are equal.
template <class S>
ICR_INLINE S share_of_first(S a, S b) {
  return select(a < b, S(1), select(a == b, S(0.5), S(0)));
}
#if defined(__CUDA_ARCH__)
// Without a comparison, of which a GPU makes half as many: any difference of two floats but the tiniest, times 2^127, is
// beyond 1.
ICR_INLINE float share_of_first(float a, float b) { return __saturatef(::fmaf(b - a, 0x1p127f, 0.5f)); }
#endif

// The smaller and the larger of two numbers. A tie splits the derivative in halves.
template <class Low, class High>
struct Ordered {
  Low low;
  High high;
};
template <class A, class B>
ICR_INLINE auto ordered(const A& a, const B& b) {
  const auto av = value_of(a), bv = value_of(b);
  using S = decltype(value_of(a));
  const S a_is_low = share_of_first(av, bv);
  const S b_is_low = S(1) - a_is_low;
  const auto low = chain(lesser(av, bv), a_is_low, a, b_is_low, b);
  const auto high = chain(greater(av, bv), b_is_low, a, a_is_low, b);
  return Ordered<std::decay_t<decltype(low)>, std::decay_t<decltype(high)>>{low, high};
}
template <class A, class B>
ICR_INLINE auto maximum(const A& a, const B& b) {
  return ordered(a, b).high;
}

// The number chosen by a condition, with its derivative.
template <class M, class A, class B>
ICR_INLINE auto choose(const M& condition, const A& a, const B& b) {
  const auto av = value_of(a), bv = value_of(b);
  using S = decltype(value_of(a));
  const S takes_a = select(condition, S(1), S(0));
  return chain(select(condition, av, bv), takes_a, a, S(1) - takes_a, b);
}

}  // namespace icr
}  // namespace
