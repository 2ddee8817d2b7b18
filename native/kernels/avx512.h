// What the kernels of 512 bits share.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <limits>

#include "attention.h"

namespace edgellm::kernels {

// e^x for x <= 0, to 2 units in the last place; 0 below -87. The polynomial is the Taylor series to the degree 6 on
// [-ln 2 / 2, ln 2 / 2].
inline __m512 exp_below_0(__m512 x) {
  const __mmask16 seen = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0F), _CMP_GE_OQ);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504F)), _MM_FROUND_TO_NEAREST_INT);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752F), x);  // ln 2 in two parts
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6F), r);
  __m512 p = _mm512_set1_ps(1.0F / 720);
  for (const float c : {1.0F / 120, 1.0F / 24, 1.0F / 6, 0.5F, 1.0F, 1.0F})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  return _mm512_maskz_scalef_ps(seen, p, n);
}

// 16 x 16 values of 32 bits: rows become columns.
inline void transpose(__m512i (&m)[16]) {
  __m512i a[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(m[i], m[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(m[i], m[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    m[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    m[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    m[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    m[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {  // m[4 g + i]: column 4 l + i in the 128-bit lane l, rows 4 g to 4 g + 3
    a[i] = _mm512_shuffle_i32x4(m[i], m[4 + i], 0x88);
    a[4 + i] = _mm512_shuffle_i32x4(m[i], m[4 + i], 0xdd);
    a[8 + i] = _mm512_shuffle_i32x4(m[8 + i], m[12 + i], 0x88);
    a[12 + i] = _mm512_shuffle_i32x4(m[8 + i], m[12 + i], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    m[i] = _mm512_shuffle_i32x4(a[i], a[8 + i], 0x88);
    m[8 + i] = _mm512_shuffle_i32x4(a[i], a[8 + i], 0xdd);
    m[4 + i] = _mm512_shuffle_i32x4(a[4 + i], a[12 + i], 0x88);
    m[12 + i] = _mm512_shuffle_i32x4(a[4 + i], a[12 + i], 0xdd);
  }
}

// A head of `size` numbers at a position, rotated: numbers i and i + rotary / 2 are a point in the plane.
inline void rotate(const Attention& call, const float* from, size_t position, float* to) {
  const size_t half = call.rotary / 2;
  const float *cos = call.cos + position * half, *sin = call.sin + position * half;
  for (size_t i = 0; i < half; i += 16) {
    const auto mask = static_cast<__mmask16>(half - i >= 16 ? 0xffffU : (1U << (half - i)) - 1);
    const __m512 a = _mm512_maskz_loadu_ps(mask, from + i), b = _mm512_maskz_loadu_ps(mask, from + half + i);
    const __m512 c = _mm512_maskz_loadu_ps(mask, cos + i), s = _mm512_maskz_loadu_ps(mask, sin + i);
    _mm512_mask_storeu_ps(to + i, mask, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
    _mm512_mask_storeu_ps(to + half + i, mask, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
  }
  std::copy(from + call.rotary, from + call.size, to + call.rotary);
}

// Put the key and value of a token into the cache.
inline void append(const Attention& call, size_t b, size_t token, size_t position) {
  const size_t at = b * call.tokens + token;
  for (size_t head = 0; head < call.kv_heads; ++head) {
    const size_t cell = ((b * call.kv_heads + head) * call.capacity + position) * call.size;
    rotate(call, call.key + at * call.key_stride + head * call.size, position, call.keys + cell);
    const float* value = call.value + at * call.value_stride + head * call.size;
    std::copy(value, value + call.size, call.values + cell);
  }
}

// The first position that a query at `position` sees.
inline size_t first_seen(const Attention& call, size_t position) {
  return position + 1 > call.window ? position + 1 - call.window : 0;
}

constexpr float kNever = -std::numeric_limits<float>::infinity();

}  // namespace edgellm::kernels
