#include "block_matrix.h"

#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>

namespace edgellm::kernels {

namespace {

size_t checked(size_t rows, size_t columns, size_t block, int bits, bool zeros) {
  const bool width = bits == 4 || (bits == 8 && !zeros);
  if (!width || rows == 0 || columns == 0 || block == 0 || block % kGroup != 0 || columns % block != 0) {
    throw std::invalid_argument("a matrix of blocks has 4 bits, or 8 without zero points, and blocks of n * 32 columns");
  }
  if (columns > std::numeric_limits<size_t>::max() / 64 / (rows + kTile)) {
    throw std::invalid_argument("a matrix of blocks has more elements than memory");
  }
  return rows;
}

}  // namespace

BlockMatrix::BlockMatrix(size_t rows, size_t columns, size_t block, int bits, const uint8_t* codes,
                         const float* scales, const uint8_t* zeros)
    : rows_(checked(rows, columns, block, bits, zeros != nullptr)),
      columns_(columns),
      block_(block),
      bits_(bits),
      codes_(tiles() * columns / kGroup * group_bytes()),
      scales_(tiles() * blocks() * kTile) {
  std::memset(codes_.get(), 0, codes_.size());
  std::memset(scales_.get(), 0, scales_.size() * sizeof(float));
  const size_t row_bytes = columns * static_cast<size_t>(bits) / 8;
  for (size_t row = 0; row < rows; ++row) {
    const uint8_t* source = codes + row * row_bytes;
    uint8_t* target = codes_.get() + row / kTile * (columns / kGroup) * group_bytes() + row % kTile * 4;
    for (size_t group = 0; group < columns / kGroup; ++group, target += group_bytes()) {
      if (bits == 8) {
        for (size_t v = 0; v < 8; ++v) std::memcpy(target + v * kAlign, source + group * kGroup + 4 * v, 4);
        continue;
      }
      uint8_t each[kGroup], both[kGroup / 2];
      for (size_t i = 0; i < kGroup / 2; ++i) {
        each[2 * i] = source[group * kGroup / 2 + i] & 15;
        each[2 * i + 1] = source[group * kGroup / 2 + i] >> 4;
      }
      for (size_t i = 0; i < kGroup / 2; ++i) both[i] = static_cast<uint8_t>(each[i] | each[16 + i] << 4);
      for (size_t v = 0; v < 4; ++v) std::memcpy(target + v * kAlign, both + 4 * v, 4);
    }
    float* row_scales = scales_.get() + row / kTile * blocks() * kTile + row % kTile;
    for (size_t b = 0; b < blocks(); ++b) row_scales[b * kTile] = scales[row * blocks() + b];
  }
  if (zeros == nullptr) return;
  zeros_ = Aligned<uint8_t>(tiles() * blocks() * kTile);
  std::memset(zeros_.get(), 0, zeros_.size());
  const size_t zero_bytes = (blocks() + 1) / 2;
  for (size_t row = 0; row < rows; ++row) {
    uint8_t* row_zeros = zeros_.get() + row / kTile * blocks() * kTile + row % kTile;
    for (size_t b = 0; b < blocks(); ++b) {
      row_zeros[b * kTile] = zeros[row * zero_bytes + b / 2] >> (b % 2 * 4) & 15;
    }
  }
}

}  // namespace edgellm::kernels
