// A block of numbers as a GGUF file holds it, taken apart.
// The types of blocks: gguf's Python package, quants.py
#pragma once

#include <cstddef>
#include <cstdint>

#include "storage.h"

namespace edgellm::kernels {

// A number is
//   Q4_0, Q5_0, Q8_0   scale * (code - 8, 16, 128)       IQ4_NL   scale * table[code]
//   Q4_1, Q5_1         scale * code + offset             INT4, zero points   scale * (code - minima[0])
//   Q2_K, Q4_K, Q5_K   scale * scales[s] * code - offset * minima[s]
//   Q3_K               scale * (scales[s] - 32) * (code - 4)
//   Q6_K               scale * int8(scales[s]) * (code - 32)
// s is the sub-block: of 32 numbers in Q4_K and Q5_K, else of 16.
struct FileBlock {
  uint16_t scale, offset;  // halves
  uint8_t codes[256];      // of the first 32 or all 256 numbers
  uint8_t scales[16], minima[16];
};

// Whether a half is.
constexpr bool is_finite(uint16_t half) { return (half & 0x7c00U) != 0x7c00U; }

// Of the types with blocks of 256 numbers: those of 32 are nearly as they are in memory.
template <Type kType>
void take_apart(const uint8_t* file, FileBlock& block);

// The 32 or 256 numbers.
template <Type kType>
void numbers(const FileBlock& block, float* out);

}  // namespace edgellm::kernels
