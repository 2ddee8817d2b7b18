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

uint16_t to_half(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000U, size = bits & 0x7fffffffU;
  if (size > 0x7f800000U) return static_cast<uint16_t>(sign | 0x7e00U);   // not a number
  if (size >= 0x477ff000U) return static_cast<uint16_t>(sign | 0x7c00U);  // 65,520 and above
  if (size < 0x38800000U) {  // below 2^-14: the addition rounds to a multiple of 2^-24
    const float sum = std::bit_cast<float>(size) + 0.5F;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(sum) - 0x3f000000U));
  }
  const uint32_t rounded = size + 0xfffU + (size >> 13 & 1);
  return static_cast<uint16_t>(sign | (rounded - (112U << 23)) >> 13);
}

}  // namespace edgellm::kernels
