// Vectors of LANES floats through the compiler's vector extension: one source for SSE, AVX2 and AVX-512.
// Included once by each kernel's object file, which is compiled for its own instruction set; everything is
// static, so that no function compiled for a newer set can be linked into an older one's path.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "common/rows.h"

#ifndef LANES
#error "define LANES"
#endif
#ifdef __AVX2__
#include <immintrin.h>
#endif

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));

static inline vf load(const float* p) {
  vf x;
  memcpy(&x, p, sizeof x);
  return x;
}
static inline void store(float* p, vf x) { memcpy(p, &x, sizeof x); }
static inline vf broadcast(float x) { return x - (vf){}; }

static inline float horizontal_max(vf x) {
  float best = x[0];
  for (int i = 1; i < LANES; i++) best = x[i] > best ? x[i] : best;
  return best;
}
static inline bool any_above(vf x, vf limit) {
#if LANES == 16 && defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)x, (__m512)limit, _CMP_GT_OQ) != 0;
#elif LANES == 8 && defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)x, (__m256)limit, _CMP_GT_OQ)) != 0;
#else
  return horizontal_max(x) > limit[0];
#endif
}
static inline float horizontal_sum(vf x) {
#if LANES == 16 && defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  float sum = x[0];
  for (int i = 1; i < LANES; i++) sum += x[i];
  return sum;
#endif
}

// a > b ? a : b, and b where either is NaN: one instruction, which compilers do not see in the comparison.
static inline vf larger(vf a, vf b) {
#if LANES == 16 && defined(__AVX512F__)
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif LANES == 8 && defined(__AVX2__)
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

// 2^x to 9e-8 relative; below -126 it gives 2^-126 or less, from 127.5 on infinity or NaN, and NaN stays NaN.
#if LANES == 16 && defined(__AVX512DQ__)
static inline vf exp2_vector(vf x) {
  const vf f = (vf)_mm512_reduce_ps((__m512)x, 1);  // x less the integer below, which scalef takes as the exponent
  vf p = broadcast(1.8671301e-3f);
  p = p * f + 9.0170303e-3f;
  p = p * f + 5.5799913e-2f;
  p = p * f + 2.4016445e-1f;
  p = p * f + 6.9315131e-1f;
  p = p * f + 1.0f;
  return (vf)_mm512_scalef_ps((__m512)p, (__m512)x);
}
#else
static inline vf exp2_vector(vf x) {
  // 1.5 * 2^23 rounds to an integer, 127 more and it is the exponent of a float. That one is multiplied: an addition to
  // the bits of p costs as much, and makes a number of a NaN whose lowest bits are set.
  const vf low = broadcast(-126.0f), magic = broadcast(12583039.0f);
  x = larger(low, x);
  vf shifted = x + magic;
  vf f = x - (shifted - magic);
  vf p = broadcast(1.3276471e-3f);
  p = p * f + 9.6755410e-3f;
  p = p * f + 5.5507131e-2f;
  p = p * f + 2.4022120e-1f;
  p = p * f + 6.9314694e-1f;
  p = p * f + 1.0f;
  return p * (vf)((vi)shifted << 23);
}
#endif

static inline float exp2_scalar(float x) { return exp2_vector(broadcast(x))[0]; }

static inline float widen_bfloat16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}

static inline float read_element(const void* data, int64_t index, Element element) {
  if (element == FLOAT32) return static_cast<const float*>(data)[index];
  uint16_t bits = static_cast<const uint16_t*>(data)[index];
  if (element == BFLOAT16) return widen_bfloat16(bits);
  uint32_t sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 31, fraction = bits & 0x3ffu, wide;
  if (exponent == 31) {
    wide = sign | 0x7f800000u | fraction << 13;
  } else if (exponent) {
    wide = sign | (exponent + 112) << 23 | fraction << 13;
  } else {  // zero or subnormal: fraction * 2^-24
    float value = static_cast<float>(fraction) * 5.9604644775390625e-8f;
    memcpy(&wide, &value, 4);
    wide |= sign;
  }
  float value;
  memcpy(&value, &wide, 4);
  return value;
}

static inline uint16_t to_bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;  // NaN
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline uint16_t to_float16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // subnormal: let the float adder round to multiples of 2^-24
    float scaled;
    memcpy(&scaled, &magnitude, 4);
    scaled += 0.5f;
    uint32_t rounded;
    memcpy(&rounded, &scaled, 4);
    return static_cast<uint16_t>(sign | (rounded - 0x3f000000u));
  }
  uint32_t rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1);
  return static_cast<uint16_t>(sign | rounded >> 13);
}

static inline int64_t row_offset(const Rows& rows, int64_t row) { return place_of(rows, row) * rows.stride; }

// Read one row as floats times `scale`, filled with zeros up to `width`.
static inline void read_row(const Rows& rows, int64_t row, int32_t head_dim, int32_t width, float scale, float* to) {
  int64_t offset = row_offset(rows, row);
  if (rows.element == FLOAT32) {
    const float* from = static_cast<const float*>(rows.data) + offset;
    for (int32_t x = 0; x < head_dim; x++) to[x] = from[x] * scale;
  } else if (rows.element == BFLOAT16) {
    const uint16_t* from = static_cast<const uint16_t*>(rows.data) + offset;
    for (int32_t x = 0; x < head_dim; x++) to[x] = widen_bfloat16(from[x]) * scale;
  } else {
    for (int32_t x = 0; x < head_dim; x++) to[x] = read_element(rows.data, offset + x, FLOAT16) * scale;
  }
  for (int32_t x = head_dim; x < width; x++) to[x] = 0;
}

// Write `count` numbers, value(0) and on, in the type of their tensor.
template <class F>
static inline void write_row(void* data, int64_t offset, Element element, int32_t count, const F& value) {
  if (element == FLOAT32) {
    float* to = static_cast<float*>(data) + offset;
    for (int32_t x = 0; x < count; x++) to[x] = value(x);
    return;
  }
  uint16_t* to = static_cast<uint16_t*>(data) + offset;
  if (element == BFLOAT16) {
    for (int32_t x = 0; x < count; x++) to[x] = to_bfloat16(value(x));
  } else {
    for (int32_t x = 0; x < count; x++) to[x] = to_float16(value(x));
  }
}
