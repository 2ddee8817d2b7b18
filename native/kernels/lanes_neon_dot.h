// Lanes of 64-bit Arm with the dot products of ARMv8.2 (lanes_neon.inc).
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace edgellm::kernels::neon_dot {

#include "lanes_neon.inc"

// Both sides of the instruction have a sign: codes up to 127 are the same with it.
inline I dot(I sum, B codes, Q x) {
  return each<I>([&](int i) { return vdotq_s32(sum.v[i], vreinterpretq_s8_u8(codes.v[i]), x); });
}
constexpr bool kSignedCodes = true;
inline I dot_wide(I sum, B codes, Q x) {
  return each<I>(
      [&](size_t i) { return vdotq_s32(sum.v[i], vreinterpretq_s8_u8(veorq_u8(codes.v[i], vdupq_n_u8(128))), x); });
}

}  // namespace edgellm::kernels::neon_dot
