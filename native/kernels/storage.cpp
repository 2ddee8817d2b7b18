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

}  // namespace edgellm::kernels
