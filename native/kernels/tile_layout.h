// How a tile, 16 rows of a matrix, lies in memory: for each block of columns, one behind another,
//
//   scale      16 halves; not for floats
//   offset     16 halves, where the type has them (the minimum of Q4_1 and Q5_1, "dmin" of Q2_K, Q4_K and Q5_K)
//   scales     of the sub-blocks of K types
//                Q4_K, Q5_K, Q6_K  per sub-block 16 bytes
//                Q2_K  4 vectors of 16 rows x 4 sub-blocks: scale in the low, minimum in the high four bits
//                Q3_K  2 vectors of 16 rows x 4 bytes: four bits of the sub-blocks 4 k + j, in byte j of vector k / 2,
//                      in its low half for even k; then a vector with their upper two bits, in bits 2 k of byte j
//   minima     Q4_K, Q5_K: 2 vectors of 16 rows x 4 sub-blocks; INT4 with zero points: 16 bytes, the zeros
//   groups     per 32 columns the codes, in one or two planes: first the high bits of codes of 3, 5 and 6 bits, then
//              the rest
//
// A vector is 64 bytes, four to a row. The 32 codes of a group make 8 vectors: byte j of row r of vector v is column
// 4 v + j. A plane packs the bits of these: of 8 bits as they are; of 4 bits v and v + 4 into the halves of vector v;
// of 2 bits v into bits 2 (v % 4) of vector v / 4; of 1 bit v into bit v of the only vector.
//
// Of floats, there are for each column 16 numbers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "storage.h"

namespace edgellm::kernels {

struct TileLayout {
  size_t columns;              // of a block
  size_t low_bits, high_bits;  // of a code, in the two planes
  bool offset;
  size_t sub_blocks;                  // 0 for none
  size_t scale_bytes, minimum_bytes;  // of all sub-blocks

  constexpr size_t offset_at() const { return 32; }
  constexpr size_t scales_at() const { return offset ? 64 : 32; }
  constexpr size_t minima_at() const { return scales_at() + scale_bytes; }
  constexpr size_t groups_at() const { return minima_at() + minimum_bytes; }
  constexpr size_t high_bytes() const { return 64 * high_bits; }  // of a group
  constexpr size_t group_bytes() const { return 64 * (low_bits + high_bits); }
  constexpr size_t bytes() const { return groups_at() + columns / 32 * group_bytes(); }
};

constexpr TileLayout tile_layout(Type type) {
  switch (type) {
    case Type::q4_0:
    case Type::iq4_nl:
      return {32, 4, 0, false, 0, 0, 0};
    case Type::q4_1:
      return {32, 4, 0, true, 0, 0, 0};
    case Type::int4_zero:
      return {32, 4, 0, false, 1, 0, 16};
    case Type::q5_0:
      return {32, 4, 1, false, 0, 0, 0};
    case Type::q5_1:
      return {32, 4, 1, true, 0, 0, 0};
    case Type::q8_0:
      return {32, 8, 0, false, 0, 0, 0};
    case Type::q2_k:
      return {256, 2, 0, true, 16, 256, 0};
    case Type::q3_k:
      return {256, 2, 1, false, 16, 192, 0};
    case Type::q4_k:
      return {256, 4, 0, true, 8, 128, 128};
    case Type::q5_k:
      return {256, 4, 1, true, 8, 128, 128};
    case Type::q6_k:
      return {256, 4, 2, false, 16, 256, 0};
    default:
      return {};
  }
}

constexpr bool is_float(Type type) { return type == Type::f32 || type == Type::f16 || type == Type::bf16; }

// Of IQ4_NL: what its codes stand for, plus 128.
constexpr uint8_t kIq4Table[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

// Call `work.template operator()<type>()`.
template <typename Work>
auto with_type(Type type, const Work& work) {
  switch (type) {
    case Type::f32:
      return work.template operator()<Type::f32>();
    case Type::f16:
      return work.template operator()<Type::f16>();
    case Type::bf16:
      return work.template operator()<Type::bf16>();
    case Type::q4_0:
      return work.template operator()<Type::q4_0>();
    case Type::int4_zero:
      return work.template operator()<Type::int4_zero>();
    case Type::q4_1:
      return work.template operator()<Type::q4_1>();
    case Type::q5_0:
      return work.template operator()<Type::q5_0>();
    case Type::q5_1:
      return work.template operator()<Type::q5_1>();
    case Type::q8_0:
      return work.template operator()<Type::q8_0>();
    case Type::q2_k:
      return work.template operator()<Type::q2_k>();
    case Type::q3_k:
      return work.template operator()<Type::q3_k>();
    case Type::q4_k:
      return work.template operator()<Type::q4_k>();
    case Type::q5_k:
      return work.template operator()<Type::q5_k>();
    case Type::q6_k:
      return work.template operator()<Type::q6_k>();
    case Type::iq4_nl:
      break;
  }
  return work.template operator()<Type::iq4_nl>();
}

}  // namespace edgellm::kernels
