#include "file_block.h"

#include <cstring>

#include "tile_layout.h"

namespace edgellm::kernels {

namespace {

uint16_t half_at(const uint8_t* at) { return static_cast<uint16_t>(at[0] | at[1] << 8); }

// The six bits of eight scales and eight minima of Q4_K and Q5_K, in 12 bytes.
void take_six_bits(const uint8_t* from, FileBlock& block) {
  for (size_t i = 0; i < 4; ++i) {
    block.scales[i] = from[i] & 63;
    block.minima[i] = from[4 + i] & 63;
    block.scales[4 + i] = static_cast<uint8_t>((from[8 + i] & 15) | (from[i] >> 6 << 4));
    block.minima[4 + i] = static_cast<uint8_t>((from[8 + i] >> 4) | (from[4 + i] >> 6 << 4));
  }
}

// The sixteen scales of six bits of Q3_K, in 12 bytes.
void take_q3_scales(const uint8_t* from, FileBlock& block) {
  for (size_t i = 0; i < 16; ++i) {
    const int low = from[i % 8] >> (i / 8 * 4) & 15, high = from[8 + i % 4] >> (i / 4 * 2) & 3;
    block.scales[i] = static_cast<uint8_t>(low | high << 4);
  }
}

// `count` bytes, each with the bits of several numbers that are `count` apart: 8 / kBits runs of codes.
template <int kBits>
void take_runs(const uint8_t* from, size_t count, uint8_t* codes) {
  for (int run = 0; run < 8 / kBits; ++run, codes += count) {
    for (size_t i = 0; i < count; ++i) codes[i] = static_cast<uint8_t>(from[i] >> (run * kBits) & ((1 << kBits) - 1));
  }
}
template <int kBits>
void add_runs(const uint8_t* from, size_t count, int shift, uint8_t* codes) {
  for (int run = 0; run < 8 / kBits; ++run, codes += count) {
    for (size_t i = 0; i < count; ++i)
      codes[i] = static_cast<uint8_t>(codes[i] | (from[i] >> (run * kBits) & ((1 << kBits) - 1)) << shift);
  }
}

}  // namespace

template <Type kType>
void take_apart(const uint8_t* file, FileBlock& block) {
  block.offset = 0;
  if constexpr (kType == Type::q2_k) {
    for (size_t i = 0; i < 16; ++i) {
      block.scales[i] = file[i] & 15;
      block.minima[i] = file[i] >> 4;
    }
    for (size_t half = 0; half < 2; ++half) take_runs<2>(file + 16 + 32 * half, 32, block.codes + 128 * half);
    block.scale = half_at(file + 80);
    block.offset = half_at(file + 82);
  } else if constexpr (kType == Type::q3_k) {
    for (size_t half = 0; half < 2; ++half) take_runs<2>(file + 32 + 32 * half, 32, block.codes + 128 * half);
    add_runs<1>(file, 32, 2, block.codes);
    take_q3_scales(file + 96, block);
    block.scale = half_at(file + 108);
  } else if constexpr (kType == Type::q6_k) {
    for (size_t half = 0; half < 2; ++half) {
      take_runs<4>(file + 64 * half, 64, block.codes + 128 * half);
      add_runs<2>(file + 128 + 32 * half, 32, 4, block.codes + 128 * half);
    }
    std::memcpy(block.scales, file + 192, 16);
    block.scale = half_at(file + 208);
  } else {
    constexpr size_t kHigh = kType == Type::q5_k ? 32 : 0;
    block.scale = half_at(file);
    block.offset = half_at(file + 2);
    take_six_bits(file + 4, block);
    for (size_t pair = 0; pair < 4; ++pair) take_runs<4>(file + 16 + kHigh + 32 * pair, 32, block.codes + 64 * pair);
    if (kHigh != 0) add_runs<1>(file + 16, 32, 4, block.codes);
  }
}

template <Type kType>
void numbers(const FileBlock& block, float* out) {
  constexpr TileLayout kLayout = tile_layout(kType);
  const float scale = from_half(block.scale), offset = from_half(block.offset);
  for (size_t i = 0; i < kLayout.columns; ++i) {
    const int code = block.codes[i];
    if constexpr (kLayout.columns == 32) {
      constexpr int kZero = kLayout.offset ? 0 : kLayout.low_bits == 8 ? 128 : kLayout.high_bits != 0 ? 16 : 8;
      const int zero = kType == Type::int4_zero ? block.minima[0] : kZero;
      const int whole = kType == Type::iq4_nl ? kIq4Table[code & 15] - 128 : code - zero;
      out[i] = scale * static_cast<float>(whole) + offset;
    } else {
      const size_t sub_block = i / (kLayout.columns / kLayout.sub_blocks);
      int factor = block.scales[sub_block], whole = code;
      if (kType == Type::q3_k) factor -= 32, whole -= 4;
      if (kType == Type::q6_k) factor = (factor ^ 128) - 128, whole -= 32;
      out[i] = scale * static_cast<float>(factor) * static_cast<float>(whole);
      if (kLayout.offset) out[i] -= offset * static_cast<float>(block.minima[sub_block]);
    }
  }
}

#define EDGELLM_NUMBERS(type) template void numbers<Type::type>(const FileBlock&, float*);
#define EDGELLM_BLOCKS(type)                                        \
  template void take_apart<Type::type>(const uint8_t*, FileBlock&); \
  EDGELLM_NUMBERS(type)
EDGELLM_NUMBERS(q4_0)
EDGELLM_NUMBERS(int4_zero)
EDGELLM_NUMBERS(q4_1)
EDGELLM_NUMBERS(q5_0)
EDGELLM_NUMBERS(q5_1)
EDGELLM_NUMBERS(q8_0)
EDGELLM_NUMBERS(iq4_nl)
EDGELLM_BLOCKS(q2_k)
EDGELLM_BLOCKS(q3_k)
EDGELLM_BLOCKS(q4_k)
EDGELLM_BLOCKS(q5_k)
EDGELLM_BLOCKS(q6_k)
#undef EDGELLM_BLOCKS
#undef EDGELLM_NUMBERS

}  // namespace edgellm::kernels
