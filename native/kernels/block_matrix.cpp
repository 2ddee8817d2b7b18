#include "block_matrix.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <future>
#include <limits>
#include <stdexcept>
#include <vector>

namespace edgellm::kernels {

namespace {

constexpr size_t kElementsPerThread = 1 << 20;  // fewer are not worth a thread

BlockShape checked(const BlockShape& shape) {
  const bool width = shape.bits == 4 || (shape.bits == 8 && !shape.zeros);
  if (!width || shape.rows == 0 || shape.columns == 0 || shape.block == 0 || shape.block % kGroup != 0 ||
      shape.columns % shape.block != 0) {
    throw std::invalid_argument("a matrix of blocks has 4 bits, or 8 without zeros, and blocks of n * 32 columns");
  }
  if (shape.columns > std::numeric_limits<size_t>::max() / 64 / (shape.rows + kTile)) {
    throw std::invalid_argument("a matrix of blocks has more elements than memory");
  }
  return shape;
}

}  // namespace

BlockMatrix::BlockMatrix(const BlockShape& shape, const ReadRow& read, size_t threads)
    : shape_(checked(shape)),
      codes_(tiles() * columns() / kGroup * group_bytes()),
      scales_(tiles() * blocks() * kTile),
      zeros_(shape.zeros ? tiles() * blocks() * kTile : 0) {
  const size_t wanted = std::min(threads, rows() * columns() / kElementsPerThread);
  const size_t parts = std::clamp<size_t>(wanted, 1, tiles());
  std::vector<std::future<void>> others;  // whose destructors wait, so that an error leaves no thread behind
  others.reserve(parts - 1);
  size_t part = 1;
  try {
    for (; part < parts; ++part) {
      others.push_back(std::async(std::launch::async, [this, &read, part, parts] {
        lay_out(read, tiles() * part / parts, tiles() * (part + 1) / parts);
      }));
    }
  } catch (const std::exception&) {  // no more threads, or no memory for one: this one does the rest
    lay_out(read, tiles() * part / parts, tiles());
  }
  lay_out(read, 0, tiles() / parts);
  for (std::future<void>& other : others) other.get();
}

void BlockMatrix::lay_out(const ReadRow& read, size_t first_tile, size_t last_tile) {
  const size_t tile_codes = columns() / kGroup * group_bytes(), tile_blocks = blocks() * kTile;
  const bool with_zeros = zeros_.size() != 0;
  std::vector<uint8_t> row_codes(columns()), row_zeros(with_zeros ? blocks() : 0);
  std::vector<float> row_scales(blocks());
  for (size_t tile = first_tile; tile < last_tile; ++tile) {
    uint8_t* const tile_zeros = with_zeros ? zeros_.get() + tile * tile_blocks : nullptr;
    if ((tile + 1) * kTile > rows()) {  // rows that are not there
      std::memset(codes_.get() + tile * tile_codes, 0, tile_codes);
      std::memset(scales_.get() + tile * tile_blocks, 0, tile_blocks * sizeof(float));
      if (with_zeros) std::memset(tile_zeros, 0, tile_blocks);
    }
    for (size_t r = 0; r < kTile && tile * kTile + r < rows(); ++r) {
      read(tile * kTile + r, row_codes.data(), row_scales.data(), row_zeros.data());
      lay_out_codes(row_codes.data(), codes_.get() + tile * tile_codes + r * 4);
      for (size_t b = 0; b < blocks(); ++b) {
        scales_.get()[tile * tile_blocks + b * kTile + r] = row_scales[b];
        if (with_zeros) tile_zeros[b * kTile + r] = row_zeros[b];
      }
    }
  }
}

void BlockMatrix::lay_out_codes(const uint8_t* row, uint8_t* target) const {
  for (size_t group = 0; group < columns() / kGroup; ++group, row += kGroup, target += group_bytes()) {
    if (bits() == 8) {
      for (size_t v = 0; v < 8; ++v) std::memcpy(target + v * kAlign, row + 4 * v, 4);
      continue;
    }
    uint8_t both[kGroup / 2];
    for (size_t i = 0; i < kGroup / 2; ++i) both[i] = static_cast<uint8_t>(row[i] | row[16 + i] << 4);
    for (size_t v = 0; v < 4; ++v) std::memcpy(target + v * kAlign, both + 4 * v, 4);
  }
}

}  // namespace edgellm::kernels
