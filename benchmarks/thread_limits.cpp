// What a thread of this processor can do: read memory, and multiply bytes. For kernels.py, which compiles it.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#if defined(__AVX512VNNI__)
using Register = __m512i;
inline Register zero() { return _mm512_setzero_si512(); }
inline Register load(const void* at) { return _mm512_loadu_si512(at); }
inline Register add(Register a, Register b) { return _mm512_add_epi32(a, b); }
inline Register dot(Register sum, Register a, Register b) { return _mm512_dpbusd_epi32(sum, a, b); }
#elif defined(__AVXVNNI__)
using Register = __m256i;
inline Register zero() { return _mm256_setzero_si256(); }
inline Register load(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }
inline Register add(Register a, Register b) { return _mm256_add_epi32(a, b); }
inline Register dot(Register sum, Register a, Register b) { return _mm256_dpbusd_avx_epi32(sum, a, b); }
#else
using Register = __m256i;
inline Register zero() { return _mm256_setzero_si256(); }
inline Register load(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }
inline Register add(Register a, Register b) { return _mm256_add_epi32(a, b); }
inline Register dot(Register sum, Register a, Register b) {
  return add(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
}
#endif

// As if somebody read it, so that nothing is left out.
inline void keep(Register& x) { asm volatile("" : "+v"(x)); }

// In two streams, asked for ahead, as the kernels read.
extern "C" void read_memory(const uint8_t* data, size_t bytes) {
  constexpr size_t kStep = 4 * sizeof(Register);
  Register sum[8];
  for (Register& each : sum) each = zero();
  const size_t half = bytes / 2 / kStep * kStep;
  for (size_t at = 0; at < half; at += kStep) {
    for (size_t line = 0; line < kStep; line += 64) {
      __builtin_prefetch(data + at + line + 2048);
      __builtin_prefetch(data + half + at + line + 2048);
    }
    for (size_t i = 0; i < 4; ++i) {
      sum[i] = add(sum[i], load(data + at + i * sizeof(Register)));
      sum[4 + i] = add(sum[4 + i], load(data + half + at + i * sizeof(Register)));
    }
  }
  for (size_t i = 1; i < 8; ++i) sum[0] = add(sum[0], sum[i]);
  keep(sum[0]);
}

// `count` times 12 instructions that do not wait for one another; how many operations that are.
extern "C" size_t multiply_bytes(const uint8_t* data, size_t count) {
  const Register x = load(data), y = load(data + 64);
  Register a = zero(), b = a, c = a, d = a, e = a, f = a, g = a, h = a, i = a, j = a, k = a, l = a;
  for (size_t n = 0; n < count; ++n) {
    a = dot(a, x, y), b = dot(b, x, y), c = dot(c, x, y), d = dot(d, x, y), e = dot(e, x, y), f = dot(f, x, y);
    g = dot(g, x, y), h = dot(h, x, y), i = dot(i, x, y), j = dot(j, x, y), k = dot(k, x, y), l = dot(l, x, y);
    asm volatile("" : "+v"(a), "+v"(b), "+v"(c), "+v"(d), "+v"(e), "+v"(f));  // else the twelve are one
    asm volatile("" : "+v"(g), "+v"(h), "+v"(i), "+v"(j), "+v"(k), "+v"(l));
  }
  return count * 12 * 2 * sizeof(Register);
}
