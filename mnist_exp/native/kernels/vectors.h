// Vectors of V floats (GNU C vector extensions: gcc and clang), the activations on them, and transposition.
// Comparisons keep their IEEE meaning here (no -ffast-math): a NaN in a weight or a pixel reaches the loss.
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#define V 16
#else
#define V 8
#endif
// aligned(4): loads and stores at any float; may_alias: of memory of any type.
typedef float vec __attribute__((vector_size(4 * V), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * V), aligned(4), may_alias));
typedef double dvec __attribute__((vector_size(4 * V), aligned(4), may_alias));
typedef double pair __attribute__((aligned(4), may_alias)); // two floats, only for copying
typedef float half __attribute__((vector_size(2 * V), aligned(4), may_alias));
typedef float wide __attribute__((vector_size(4 * V))); // the type of builtins
typedef float v8 __attribute__((vector_size(32), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))
#define MIN(A, B) ((A) < (B) ? (A) : (B))
#define MAX(A, B) ((A) > (B) ? (A) : (B))
#define ROUND_UP(n, m) (((n) + (m) - 1) / (m) * (m))

INLINE vec load(const float *p) { return *(const vec *)p; }
INLINE void store(float *p, vec a) { *(vec *)p = a; }
INLINE vec splat(float a) { return a - (vec){0}; } // x - 0 is x, for every x
// a x + y, rounded once where the processor can. gcc leaves out this instruction in some loops (-mtune=znver3 and others), and
// in others not: then the same sum would depend on the size of the tile.
// gcc's builtins, because including immintrin.h takes a seventh of a compilation. -1: all lanes; 4: the current rounding mode.
INLINE vec multiply_add(float a, vec x, vec y) {
#if defined(__AVX512F__) && !defined(__clang__)
  return (vec)__builtin_ia32_vfmaddps512_mask((wide)splat(a), (wide)x, (wide)y, -1, 4);
#elif defined(__FMA__) && !defined(__clang__)
  return (vec)__builtin_ia32_vfmaddps256((wide)splat(a), (wide)x, (wide)y);
#else
  return a * x + y; // clang always combines them with -ffp-contract=fast
#endif
}
INLINE vec choose(ivec condition, vec yes, vec no) {
  return (vec)((condition & (ivec)yes) | (~condition & (ivec)no));
}
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#define SHUFFLE8 SHUFFLE
#else
typedef int32_t i8 __attribute__((vector_size(32)));
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#define SHUFFLE8(a, b, ...) __builtin_shuffle(a, b, (i8){__VA_ARGS__})
#endif
// The even lanes, then the odd ones.
#if V == 16
INLINE vec unzip(vec a) { return SHUFFLE(a, a, 0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15); }
#else
INLINE vec unzip(vec a) { return SHUFFLE(a, a, 0, 2, 4, 6, 1, 3, 5, 7); }
#endif
#if V == 16
INLINE vec splat_pair(pair a) { return (vec)(dvec){a, a, a, a, a, a, a, a}; }
#else
INLINE vec splat_pair(pair a) { return (vec)(dvec){a, a, a, a}; }
#endif
INLINE float total(vec a) {
  float s = 0;
  for (int i = 0; i < V; i++) s += a[i];
  return s;
}

// e to the x: 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2, e^r by its Taylor polynomial; error below 2 ulp.
INLINE vec exponential(vec x) {
  const float low = -87.0f, high = 88.0f; // beyond them the result leaves the normal floats
  vec y = choose(x < low, splat(low), choose(x > high, splat(high), x));
  vec shifted = y * 1.44269504f + 12582912.0f; // 1.5 * 2^23: the sum's last bits are n
  vec n = shifted - 12582912.0f;
  vec r = (y - n * 0.693359375f) - n * -2.12194440e-4f;
  vec p = 1.0f + r * (1.0f + r * (0.5f + r * (1.6666667e-1f + r * (4.1666668e-2f + r * (8.3333338e-3f + r * 1.3888889e-3f)))));
  vec power = (vec)(((ivec)shifted << 23) + (ivec)p);
  return choose(x != x, x, power);
}

#define RELU 0
#define TANH 1
#define SIGMOID 2
#define GELU 3
#define SILU 4

// The activation f of z and its derivative there, as PyTorch defines them (GELU with the error function).
INLINE vec activation(vec z, vec *slope) {
#if ACTIVATION == RELU
  ivec dead = z <= 0;
  *slope = choose(dead, splat(0), splat(1));
  return choose(dead, splat(0), z);
#elif ACTIVATION == SIGMOID
  vec s = 1.0f / (1.0f + exponential(-z));
  *slope = s * (1.0f - s);
  return s;
#elif ACTIVATION == SILU
  vec s = 1.0f / (1.0f + exponential(-z));
  *slope = s * (1.0f + z * (1.0f - s));
  return z * s;
#elif ACTIVATION == TANH
  vec e = exponential(2.0f * z), q = z * z;
  // Near 0 the quotient loses precision, so the Taylor polynomial is used.
  vec near = z * (1.0f + q * (-0.33333333f + q * (0.13333333f + q * (-0.053968254f + q * 0.021869488f))));
  vec t = choose(q < 0.04f, near, 1.0f - 2.0f / (e + 1.0f));
  *slope = 1.0f - t * t;
  return t;
#elif ACTIVATION == GELU
  // Normal distribution function by Abramowitz and Stegun 7.1.26 (error below 1e-7).
  vec a = choose(z < 0, -z, z) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * a), bell = exponential(-a * a);
  vec tail = 0.5f * bell * t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  vec below = choose(z < 0, tail, 1.0f - tail);
  *slope = below + z * 0.39894228f * bell;
  return z * below;
#else
#error "ACTIVATION"
#endif
}

// to[c][r] = from[r][c] for r < rows, c < columns; rows of `from` and of `to` are from_stride and to_stride floats apart.
INLINE void transpose8(const float *from, long from_stride, float *to, long to_stride) {
  v8 a[8], b[8];
  for (int i = 0; i < 8; i++) a[i] = *(const v8 *)(from + i * from_stride);
  for (int i = 0; i < 8; i += 2) {
    b[i] = SHUFFLE8(a[i], a[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    b[i + 1] = SHUFFLE8(a[i], a[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; j++) {
      a[i + 2 * j] = SHUFFLE8(b[i + j], b[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      a[i + 2 * j + 1] = SHUFFLE8(b[i + j], b[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  for (int i = 0; i < 4; i++) {
    *(v8 *)(to + i * to_stride) = SHUFFLE8(a[i], a[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    *(v8 *)(to + (i + 4) * to_stride) = SHUFFLE8(a[i], a[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}
static void transpose(const float *from, long from_stride, float *to, long to_stride, long rows, long columns) {
  const long whole_rows = rows / 8 * 8, whole_columns = columns / 8 * 8;
  for (long r = 0; r < whole_rows; r += 8)
    for (long c = 0; c < whole_columns; c += 8)
      transpose8(from + r * from_stride + c, from_stride, to + c * to_stride + r, to_stride);
  for (long c = 0; c < columns; c++)
    for (long r = c < whole_columns ? whole_rows : 0; r < rows; r++) to[c * to_stride + r] = from[r * from_stride + c];
}
