#include "storage.h"

#include <bit>

namespace edgellm::kernels {

Storage storage(Type type) {
  switch (type) {
    case Type::f32:
      return {1, 4};
    case Type::f16:
    case Type::bf16:
      return {1, 2};
    case Type::q4_0:
    case Type::iq4_nl:
      return {32, 18};
    case Type::int4_zero:
      return {32, 19};
    case Type::q4_1:
      return {32, 20};
    case Type::q5_0:
      return {32, 22};
    case Type::q5_1:
      return {32, 24};
    case Type::q8_0:
      return {32, 34};
    case Type::q2_k:
      return {256, 84};
    case Type::q3_k:
      return {256, 110};
    case Type::q4_k:
      return {256, 144};
    case Type::q5_k:
      return {256, 176};
    case Type::q6_k:
      return {256, 210};
  }
  return {0, 0};
}

float from_half(uint16_t half) {
  const uint32_t sign = (half & 0x8000U) << 16, rest = half & 0x7fffU;
  if (rest >= 0x7c00U) return std::bit_cast<float>(sign | 0x7f800000U | (rest & 0x3ffU) << 13);
  if (rest < 0x400U) {  // a subnormal: a multiple of 2^-24
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(static_cast<float>(rest) * 0x1p-24F));
  }
  return std::bit_cast<float>(sign | ((rest << 13) + (112U << 23)));
}

uint16_t to_half(float number) {
  const auto bits = std::bit_cast<uint32_t>(number);
  const uint32_t sign = bits >> 16 & 0x8000U, rest = bits & 0x7fffffffU;
  uint32_t half = 0;
  if (rest > 0x7f800000U) {  // NaN
    half = 0x7e00U;
  } else if (rest >= 0x47800000U) {  // 2^16
    half = 0x7c00U;
  } else if (rest < 0x38800000U) {  // below 2^-14: a multiple of 2^-24, which a sum with 1/2 rounds to
    half = std::bit_cast<uint32_t>(std::bit_cast<float>(rest) + 0.5F) - 0x3f000000U;
  } else {
    half = (rest - (112U << 23) + 0xfffU + (rest >> 13 & 1)) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
}

}  // namespace edgellm::kernels
