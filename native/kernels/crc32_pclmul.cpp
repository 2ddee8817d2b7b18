// After V. Gopal, E. Ozturk and others, "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction"
// (Intel, 2009): a part of the message that others follow may be replaced by anything that leaves the same remainder.
// Sixteen bytes are moved over the n bits behind them as the sum of their halves' products with x^(n + 64) and x^n,
// each reduced, and added to what is there. What is left at the end goes through the table.
#include <immintrin.h>

#include <cstring>

#include "crc32.h"

namespace edgellm::kernels {

namespace {

constexpr size_t kPart = 16, kLanes = 8;

// x^n modulo the polynomial of degree 32, the bit of x^31 being the lowest; times 2, as a product of two such numbers
// of 64 bits has 127 and lies a place lower than its 128.
constexpr uint64_t power(int n) {
  uint32_t x = uint32_t{1} << 31;
  for (int i = 0; i < n; ++i) x = (x >> 1) ^ (x % 2 != 0 ? 0xedb88320 : 0);
  return uint64_t{x} << 1;
}

// What moves sixteen bytes over so many bytes. The lower half holds the higher powers. The 32 bits that a factor has
// less than a half are taken off.
template <int bytes>
__m128i factors() {
  constexpr uint64_t kLow = power(8 * bytes + 64 - 32), kHigh = power(8 * bytes - 32);
  return _mm_set_epi64x(static_cast<int64_t>(kHigh), static_cast<int64_t>(kLow));
}

__m128i moved(__m128i x, __m128i by) {
  return _mm_xor_si128(_mm_clmulepi64_si128(x, by, 0x00), _mm_clmulepi64_si128(x, by, 0x11));
}

__m128i part(const uint8_t* at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); }

}  // namespace

uint32_t crc32_pclmul(const void* data, size_t bytes, uint32_t before) {
  if (bytes < kLanes * kPart) return crc32_by_table(data, bytes, before);
  const auto* at = static_cast<const uint8_t*>(data);
  __m128i lanes[kLanes];
  for (size_t i = 0; i < kLanes; ++i) lanes[i] = part(at + i * kPart);
  lanes[0] = _mm_xor_si128(lanes[0], _mm_cvtsi32_si128(static_cast<int>(~before)));
  at += kLanes * kPart;
  bytes -= kLanes * kPart;
  const __m128i over_all = factors<kLanes * kPart>(), over_one = factors<kPart>();
  for (; bytes >= kLanes * kPart; at += kLanes * kPart, bytes -= kLanes * kPart) {
    for (size_t i = 0; i < kLanes; ++i) lanes[i] = _mm_xor_si128(moved(lanes[i], over_all), part(at + i * kPart));
  }
  __m128i sum = lanes[0];
  for (size_t i = 1; i < kLanes; ++i) sum = _mm_xor_si128(moved(sum, over_one), lanes[i]);
  for (; bytes >= kPart; at += kPart, bytes -= kPart) sum = _mm_xor_si128(moved(sum, over_one), part(at));
  uint8_t left[kPart];
  std::memcpy(left, &sum, kPart);
  // The remainder of these sixteen bytes as they are: neither end is inverted.
  return crc32_by_table(at, bytes, crc32_by_table(left, kPart, ~uint32_t{0}));
}

}  // namespace edgellm::kernels
