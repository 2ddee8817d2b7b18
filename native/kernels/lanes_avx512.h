// Lanes of AVX-512 with VNNI (see lanes_scalar.h): a register each.
// https://www.intel.com/content/www/us/en/docs/intrinsics-guide
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace edgellm::kernels::avx512 {

constexpr size_t kLanes = 16;
constexpr size_t kMaxRows = 12;
constexpr size_t kMaxSums = 12;  // two registers each, of 32
constexpr size_t kMaxSums16 = 9;
constexpr size_t kPairSums = 12;  // two registers each
constexpr size_t kWordSums = 24;

using F = __m512;
struct I {
  __m512i v;
};
struct B {
  __m512i v;
};
struct Q {
  const int8_t* at;
};
struct W {
  __m512i v;
};
struct P {
  __m512i v;
};

inline __mmask16 first(size_t n) { return static_cast<__mmask16>(n >= 16 ? 0xffffU : (1U << n) - 1); }

// Numbers

inline F set(float x) { return _mm512_set1_ps(x); }
inline F load(const float* x) { return _mm512_loadu_ps(x); }
inline F load(const float* x, size_t n) { return _mm512_maskz_loadu_ps(first(n), x); }
inline void store(float* to, F x) { _mm512_storeu_ps(to, x); }
inline void store(float* to, F x, size_t n) { _mm512_mask_storeu_ps(to, first(n), x); }
inline F set_pair(const float* x) {
  double two;
  std::memcpy(&two, x, sizeof two);
  return _mm512_castpd_ps(_mm512_set1_pd(two));
}
inline F add_pairs(F a, F b) {
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  return _mm512_add_ps(_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b));
}
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }
inline F max(F a, F b) { return _mm512_max_ps(a, b); }
inline F min(F a, F b) { return _mm512_min_ps(a, b); }
inline F abs(F a) { return _mm512_abs_ps(a); }
inline F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F times_power(F a, F n) { return _mm512_scalef_ps(a, n); }
inline float sum(F a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float most(F a) { return _mm512_reduce_max_ps(a); }

inline I set_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I add(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I mul(I a, I b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
template <int n>
inline I up(I a) {
  return {_mm512_slli_epi32(a.v, n)};
}
inline int32_t sum(I a) { return _mm512_reduce_add_epi32(a.v); }
inline F to_float(I a) { return _mm512_cvtepi32_ps(a.v); }
inline I to_int(F a) { return {_mm512_cvtps_epi32(a)}; }

inline F load_halves(const uint16_t* x) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}
inline F load_brains(const uint16_t* x) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

inline I load_int8(const int8_t* x) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)))};
}
inline I load_uint8(const uint8_t* x) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)))};
}
inline void store_int8(int8_t* to, I x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtsepi32_epi8(x.v));
}

// Words

inline W load_words(const int16_t* x) { return {_mm512_loadu_si512(x)}; }
inline W load_words(const int8_t* x) {
  return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)))};
}
inline P load_two(const int16_t* x) {
  int32_t two;
  std::memcpy(&two, x, sizeof two);
  return {_mm512_set1_epi32(two)};
}
inline void store_int16(int16_t* to, I x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtsepi32_epi16(x.v));
}
inline I dot(I sum, W words, P x) {
#if defined(__GNUC__)  // GCC 12 moves the sums of the intrinsic to and fro
  asm("vpdpwssd %2, %1, %0" : "+v"(sum.v) : "v"(words.v), "v"(x.v));
  return sum;
#else
  return {_mm512_dpwssd_epi32(sum.v, words.v, x.v)};
#endif
}

// Codes

inline B load_codes(const uint8_t* at) { return {_mm512_loadu_si512(at)}; }
inline B set_codes(uint8_t x) { return {_mm512_set1_epi8(static_cast<char>(x))}; }
inline B bit_and(B a, B b) { return {_mm512_and_si512(a.v, b.v)}; }
inline B bit_or(B a, B b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int n>
inline B down(B a) {
  return bit_and({_mm512_srli_epi16(a.v, n)}, set_codes(0xff >> n));
}
template <int n>
inline B up(B a) {
  return bit_and({_mm512_slli_epi16(a.v, n)}, set_codes(static_cast<uint8_t>(0xff << n)));
}
inline B look_up(const uint8_t* table, B codes) {
  const __m512i all = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm512_shuffle_epi8(all, codes.v)};
}

inline Q load_four(const int8_t* x) { return {x}; }
// The four bytes come with the instruction itself, which GCC 12 does not make of the intrinsics.
inline I dot(I sum, B codes, Q x) {
#if defined(__GNUC__)
  using Four [[gnu::may_alias]] = int32_t;
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum.v) : "v"(codes.v), "m"(*reinterpret_cast<const Four*>(x.at)));
  return sum;
#else
  int32_t four;
  std::memcpy(&four, x.at, 4);
  return {_mm512_dpbusd_epi32(sum.v, codes.v, _mm512_set1_epi32(four))};
#endif
}
constexpr bool kSignedCodes = false;
inline I dot_wide(I sum, B codes, Q x) { return dot(sum, codes, x); }

inline void prefetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T0); }
inline void prefetch_far(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T1); }

}  // namespace edgellm::kernels::avx512
