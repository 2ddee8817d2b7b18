#include "block_matrix.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <limits>
#include <stdexcept>
#include <thread>
#include <vector>

namespace edgellm::kernels {

namespace {

constexpr size_t kElementsPerThread = 1 << 20;  // fewer are not worth a thread

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

// The source of a matrix, in the operator's own layout.
struct BlockMatrix::Source {
  const uint8_t* codes;
  const float* scales;
  const uint8_t* zeros;
};

BlockMatrix::BlockMatrix(size_t rows, size_t columns, size_t block, int bits, const uint8_t* codes,
                         const float* scales, const uint8_t* zeros)
    : rows_(checked(rows, columns, block, bits, zeros != nullptr)),
      columns_(columns),
      block_(block),
      bits_(bits),
      codes_(tiles() * columns / kGroup * group_bytes()),
      scales_(tiles() * blocks() * kTile) {
  if (zeros != nullptr) zeros_ = Aligned<uint8_t>(tiles() * blocks() * kTile);
  const Source source{codes, scales, zeros};
  const size_t wanted = std::min<size_t>(std::thread::hardware_concurrency(), rows * columns / kElementsPerThread);
  const size_t parts = std::clamp<size_t>(wanted, 1, tiles());
  std::vector<std::thread> threads;
  threads.reserve(parts - 1);  // an error between here and the joins would end the process
  size_t part = 1;
  try {
    for (; part < parts; ++part) {
      threads.emplace_back([this, &source, part, parts] {
        copy(source, tiles() * part / parts, tiles() * (part + 1) / parts);
      });
    }
  } catch (const std::exception&) {  // no more threads, or no memory for one: this one does the rest
    copy(source, tiles() * part / parts, tiles());
  }
  copy(source, 0, tiles() / parts);
  for (std::thread& thread : threads) thread.join();
}

void BlockMatrix::copy(const Source& source, size_t first_tile, size_t last_tile) {
  const size_t tile_codes = columns_ / kGroup * group_bytes(), tile_blocks = blocks() * kTile;
  const size_t row_bytes = columns_ * static_cast<size_t>(bits_) / 8, zero_bytes = (blocks() + 1) / 2;
  for (size_t tile = first_tile; tile < last_tile; ++tile) {
    uint8_t* const tile_zeros = zeros_.size() == 0 ? nullptr : zeros_.get() + tile * tile_blocks;
    if ((tile + 1) * kTile > rows_) {  // rows that are not there
      std::memset(codes_.get() + tile * tile_codes, 0, tile_codes);
      std::memset(scales_.get() + tile * tile_blocks, 0, tile_blocks * sizeof(float));
      if (tile_zeros != nullptr) std::memset(tile_zeros, 0, tile_blocks);
    }
    for (size_t r = 0; r < kTile && tile * kTile + r < rows_; ++r) {
      const size_t row = tile * kTile + r;
      copy_codes(source.codes + row * row_bytes, codes_.get() + tile * tile_codes + r * 4);
      for (size_t b = 0; b < blocks(); ++b) {
        scales_.get()[tile * tile_blocks + b * kTile + r] = source.scales[row * blocks() + b];
        if (tile_zeros == nullptr) continue;
        tile_zeros[b * kTile + r] = source.zeros[row * zero_bytes + b / 2] >> (b % 2 * 4) & 15;
      }
    }
  }
}

void BlockMatrix::copy_codes(const uint8_t* source, uint8_t* target) const {
  for (size_t group = 0; group < columns_ / kGroup; ++group, target += group_bytes()) {
    if (bits_ == 8) {
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
}

}  // namespace edgellm::kernels
