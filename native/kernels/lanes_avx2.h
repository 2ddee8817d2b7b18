// Lanes of AVX2 (lanes_256.inc).
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace edgellm::kernels::avx2 {

#include "lanes_256.inc"

// Pairs of products are summed in 16 bits first: of codes up to 127 with numbers in [-127, 127] they fit.
inline __m256i pairs(__m256i codes, __m256i x) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1));
}
inline I dot(I sum, B codes, Q x) {
  return {_mm256_add_epi32(sum.a, pairs(codes.a, x)), _mm256_add_epi32(sum.b, pairs(codes.b, x))};
}
// The sign of a code goes over to x, and its size is at most 128, with which pairs fit too.
constexpr bool kSignedCodes = true;
inline __m256i signed_pairs(__m256i codes, __m256i x) {
  const __m256i number = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
  return pairs(_mm256_abs_epi8(number), _mm256_sign_epi8(x, number));
}
inline I dot_wide(I sum, B codes, Q x) {
  return {_mm256_add_epi32(sum.a, signed_pairs(codes.a, x)), _mm256_add_epi32(sum.b, signed_pairs(codes.b, x))};
}
inline I dot(I sum, W words, P x) {
  return {_mm256_add_epi32(sum.a, _mm256_madd_epi16(words.a, x.v)),
          _mm256_add_epi32(sum.b, _mm256_madd_epi16(words.b, x.v))};
}

}  // namespace edgellm::kernels::avx2
