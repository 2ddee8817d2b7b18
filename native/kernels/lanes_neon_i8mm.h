// Lanes of 64-bit Arm with the products of mixed signs of ARMv8.6 (lanes_neon.inc).
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace edgellm::kernels::neon_i8mm {

#include "lanes_neon.inc"

inline I dot(I sum, B codes, Q x) {
  return each<I>([&](int i) { return vusdotq_s32(sum.v[i], codes.v[i], x); });
}
constexpr bool kSignedCodes = false;
inline I dot_wide(I sum, B codes, Q x) { return dot(sum, codes, x); }

}  // namespace edgellm::kernels::neon_i8mm
