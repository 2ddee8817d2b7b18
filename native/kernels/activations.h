// Rows of X as products read them.
//
//   bytes32    int8 codes with a scale per 32 columns: code = round(x / scale) in [-127, 127], scale = largest
//              |x| of the 32 / 127
//   bytes256   the same per 256 columns
//   floats     as they are
//
// What a row becomes depends on nothing but the row. Blocks without a number above 1e-36 become 0; the scale of one
// that holds an infinity or NaN is NaN.
//
// Prepared rows lie in groups of up to kGroupRows, of about the same size; a group holds, for each block of columns,
// the blocks of its rows one behind another, so that a kernel finds the rows of a group at constant distances.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edgellm::kernels {

enum class Form { bytes32, bytes256, floats };

constexpr size_t kGroupRows = 12;

struct Bytes32 {
  int8_t codes[32];
  float scale;
  int32_t sum;  // of the codes, times -8
};

// A sum s of codes is also kept in two bytes, s = 64 * high + low with low in [0, 63], for exact products of bytes with
// the minima of a block.
struct Bytes256 {
  int8_t codes[256];
  int32_t sums[16];                // of 16 codes, times -32
  int8_t high_16[16], low_16[16];  // of 16 codes
  int8_t high_32[8], low_32[8];    // of 32 codes
  float scale;
};

struct Activations {
  Form form;
  size_t count, columns;
  const float* x;  // row r begins at x + r * stride
  size_t stride;
  std::byte* out;    // activation_bytes, at a multiple of 64
  float factor = 1;  // that the scales of bytes32 are multiplied with, a power of two

  size_t groups() const { return (count + kGroupRows - 1) / kGroupRows; }
  size_t group_rows() const { return (count + groups() - 1) / groups(); }  // of each but the last, which may have fewer

  // The first block of a prepared row; the next are each group_rows() blocks further. Block is Bytes32 or Bytes256.
  template <typename Block>
  Block* blocks(size_t row) const {
    const size_t rows = group_rows(), blocks = columns / sizeof(Block::codes);
    return reinterpret_cast<Block*>(out) + row / rows * rows * blocks + row % rows;
  }
};

// Bytes that `count` prepared rows take; 0 for floats, which are read where they are.
inline size_t activation_bytes(Form form, size_t columns, size_t count) {
  if (form == Form::floats || count == 0) return 0;
  const Activations all{form, count, columns, nullptr, 0, nullptr};
  const size_t rows = all.groups() * all.group_rows();
  return form == Form::bytes32 ? rows * (columns / 32) * sizeof(Bytes32) : rows * (columns / 256) * sizeof(Bytes256);
}

}  // namespace edgellm::kernels
