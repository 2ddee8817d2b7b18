// Lanes of AVX-VNNI (lanes_256.inc): AVX2 with products of bytes.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace edgellm::kernels::avx_vnni {

#include "lanes_256.inc"

// AVX-512 has the same instruction in another encoding, with which tests run these kernels where AVX-VNNI is not.
inline I dot(I sum, B codes, Q x) {
#if defined(__AVXVNNI__)
  return {_mm256_dpbusd_avx_epi32(sum.a, codes.a, x), _mm256_dpbusd_avx_epi32(sum.b, codes.b, x)};
#else
  return {_mm256_dpbusd_epi32(sum.a, codes.a, x), _mm256_dpbusd_epi32(sum.b, codes.b, x)};
#endif
}
constexpr bool kSignedCodes = false;
inline I dot_wide(I sum, B codes, Q x) { return dot(sum, codes, x); }
inline I dot(I sum, W words, P x) {
#if defined(__AVXVNNI__)
  return {_mm256_dpwssd_avx_epi32(sum.a, words.a, x.v), _mm256_dpwssd_avx_epi32(sum.b, words.b, x.v)};
#else
  return {_mm256_dpwssd_epi32(sum.a, words.a, x.v), _mm256_dpwssd_epi32(sum.b, words.b, x.v)};
#endif
}

}  // namespace edgellm::kernels::avx_vnni
