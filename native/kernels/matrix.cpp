#include "matrix.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

#include "file_block.h"
#include "tile_layout.h"

namespace edgellm::kernels {

namespace {

constexpr size_t kPiece = 8;  // tiles that one piece of the work lays out

size_t checked_tile_bytes(Type type, size_t rows, size_t columns) {
  const Storage stored = storage(type);
  if (stored.numbers == 0) throw std::invalid_argument("no kernel reads this type of numbers");
  if (rows == 0 || columns == 0 || columns % stored.numbers != 0) {
    throw std::invalid_argument("the columns of a matrix are a multiple of " + std::to_string(stored.numbers) +
                                " in its type, and not 0; nor are its rows");
  }
  if (columns > std::numeric_limits<size_t>::max() / 128 / (rows + kTile)) {
    throw std::invalid_argument("a matrix has more numbers than memory");
  }
  if (is_float(type)) return columns * kTile * stored.bytes;
  const TileLayout layout = tile_layout(type);
  return columns / layout.columns * layout.bytes();
}

// Where the bits of vector v of a group lie in a plane: in which vector, from which bit on.
struct Place {
  size_t vector;
  int shift;
};
constexpr Place place(size_t bits, size_t v) {
  switch (bits) {
    case 1:
      return {0, static_cast<int>(v)};
    case 2:
      return {v / 4, static_cast<int>(2 * (v % 4))};
    case 4:
      return {v % 4, static_cast<int>(4 * (v / 4))};
    default:
      return {v, 0};
  }
}

constexpr uint32_t in_each_byte(uint32_t x) { return x * 0x01010101U; }

// The bits [kFrom, kFrom + kBits) of the 32 codes of a group, put into a row of a plane.
template <size_t kBits, int kFrom>
void put_plane(const uint8_t* codes, uint8_t* row) {
  uint32_t words[kBits] = {};
  for (size_t v = 0; v < 8; ++v) {
    uint32_t word;
    std::memcpy(&word, codes + 4 * v, 4);
    constexpr uint32_t kMask = in_each_byte((1U << kBits) - 1);
    words[place(kBits, v).vector] |= (word >> kFrom & kMask) << place(kBits, v).shift;
  }
  for (size_t vector = 0; vector < kBits; ++vector) std::memcpy(row + 64 * vector, words + vector, 4);
}

// 32 bits as a plane of one bit has them: bit 4 v + j becomes bit v of byte j.
uint32_t one_bit_plane(uint32_t bits) {
  uint32_t plane = 0;
  for (int j = 0; j < 4; ++j) {
    uint32_t each = bits >> j & 0x11111111U;
    each = (each | each >> 3) & 0x03030303U;
    each = (each | each >> 6) & 0x000f000fU;
    plane |= ((each | each >> 12) & 0xffU) << (8 * j);
  }
  return plane;
}

template <size_t kBits, int kFrom>
void take_plane(const uint8_t* row, uint8_t* codes) {
  for (size_t v = 0; v < 8; ++v) {
    uint32_t word, before;
    std::memcpy(&word, row + 64 * place(kBits, v).vector, 4);
    std::memcpy(&before, codes + 4 * v, 4);
    constexpr uint32_t kMask = in_each_byte((1U << kBits) - 1);
    before |= (word >> place(kBits, v).shift & kMask) << kFrom;
    std::memcpy(codes + 4 * v, &before, 4);
  }
}

// The scales and minima of sub-blocks, put into row r of a tile's block at `at`.
template <Type kType>
void put_scales(const FileBlock& block, size_t r, uint8_t* at) {
  constexpr TileLayout kLayout = tile_layout(kType);
  uint8_t* const scales = at + kLayout.scales_at();
  if constexpr (kType == Type::q2_k) {
    for (size_t s = 0; s < 16; ++s)
      scales[s / 4 * 64 + 4 * r + s % 4] = static_cast<uint8_t>(block.scales[s] | block.minima[s] << 4);
  } else if constexpr (kType == Type::q3_k) {
    for (size_t j = 0; j < 4; ++j) {
      const uint8_t* s = block.scales + j;
      scales[4 * r + j] = static_cast<uint8_t>((s[0] & 15) | (s[4] & 15) << 4);
      scales[64 + 4 * r + j] = static_cast<uint8_t>((s[8] & 15) | (s[12] & 15) << 4);
      scales[128 + 4 * r + j] = static_cast<uint8_t>(s[0] >> 4 | s[4] >> 4 << 2 | s[8] >> 4 << 4 | s[12] >> 4 << 6);
    }
  } else {
    for (size_t s = 0; s < kLayout.sub_blocks; ++s) scales[16 * s + r] = block.scales[s];
    for (size_t s = 0; s < kLayout.minimum_bytes / 16; ++s)
      at[kLayout.minima_at() + s / 4 * 64 + 4 * r + s % 4] = block.minima[s];
  }
}

template <Type kType>
void take_scales(const uint8_t* at, size_t r, FileBlock& block) {
  constexpr TileLayout kLayout = tile_layout(kType);
  const uint8_t* const scales = at + kLayout.scales_at();
  for (size_t s = 0; s < kLayout.sub_blocks; ++s) {
    const size_t j = s % 4, k = s / 4;
    if constexpr (kType == Type::int4_zero) {
      block.minima[0] = at[kLayout.minima_at() + r];
    } else if constexpr (kType == Type::q2_k) {
      block.scales[s] = scales[k * 64 + 4 * r + j] & 15;
      block.minima[s] = scales[k * 64 + 4 * r + j] >> 4;
    } else if constexpr (kType == Type::q3_k) {
      const int low = scales[k / 2 * 64 + 4 * r + j] >> (k % 2 * 4) & 15, high = scales[128 + 4 * r + j] >> (2 * k) & 3;
      block.scales[s] = static_cast<uint8_t>(low | high << 4);
    } else {
      block.scales[s] = scales[16 * s + r];
      if (kLayout.minimum_bytes != 0) block.minima[s] = at[kLayout.minima_at() + k * 64 + 4 * r + j];
    }
  }
}

// Row r of a block of 256 columns of a tile at `at`.
template <Type kType>
void put_block(const FileBlock& block, size_t r, uint8_t* at) {
  constexpr TileLayout kLayout = tile_layout(kType);
  std::memcpy(at + 2 * r, &block.scale, 2);
  if (kLayout.offset) std::memcpy(at + kLayout.offset_at() + 2 * r, &block.offset, 2);
  put_scales<kType>(block, r, at);
  uint8_t* row = at + kLayout.groups_at() + 4 * r;
  for (size_t group = 0; group < kLayout.columns / 32; ++group, row += kLayout.group_bytes()) {
    if constexpr (kLayout.high_bits != 0) put_plane<kLayout.high_bits, kLayout.low_bits>(block.codes + 32 * group, row);
    put_plane<kLayout.low_bits, 0>(block.codes + 32 * group, row + kLayout.high_bytes());
  }
}

// The same for a block of 32 numbers as it is in the file, where its planes lie nearly as in a tile. Whether it is
// finite.
template <Type kType>
bool put_small_block(const uint8_t* file, size_t r, uint8_t* at) {
  constexpr TileLayout kLayout = tile_layout(kType);
  uint16_t scale, offset = 0;
  std::memcpy(&scale, file, 2);
  std::memcpy(at + 2 * r, &scale, 2);
  file += 2;
  if constexpr (kLayout.offset) {
    std::memcpy(&offset, file, 2);
    std::memcpy(at + kLayout.offset_at() + 2 * r, &offset, 2);
    file += 2;
  }
  if constexpr (kType == Type::int4_zero) at[kLayout.minima_at() + r] = *file++;
  uint8_t* row = at + kLayout.groups_at() + 4 * r;
  if constexpr (kLayout.high_bits != 0) {
    uint32_t bits;
    std::memcpy(&bits, file, 4);
    bits = one_bit_plane(bits);
    std::memcpy(row, &bits, 4);
    file += 4;
    row += kLayout.high_bytes();
  }
  for (size_t vector = 0; vector < kLayout.low_bits; ++vector) {
    uint32_t word;
    std::memcpy(&word, file + 4 * vector, 4);
    if constexpr (kLayout.low_bits == 8) word ^= in_each_byte(0x80);
    std::memcpy(row + 64 * vector, &word, 4);
  }
  return is_finite(scale) && is_finite(offset);
}

template <Type kType>
void take_block(const uint8_t* at, size_t r, FileBlock& block) {
  constexpr TileLayout kLayout = tile_layout(kType);
  block = {};
  std::memcpy(&block.scale, at + 2 * r, 2);
  if (kLayout.offset) std::memcpy(&block.offset, at + kLayout.offset_at() + 2 * r, 2);
  if (kLayout.sub_blocks != 0) take_scales<kType>(at, r, block);
  const uint8_t* row = at + kLayout.groups_at() + 4 * r;
  for (size_t group = 0; group < kLayout.columns / 32; ++group, row += kLayout.group_bytes()) {
    if constexpr (kLayout.high_bits != 0)
      take_plane<kLayout.high_bits, kLayout.low_bits>(row, block.codes + 32 * group);
    take_plane<kLayout.low_bits, 0>(row + kLayout.high_bytes(), block.codes + 32 * group);
  }
}

// A row of the file, put into row r of a tile. Whether its scales, or its numbers, are finite.
template <Type kType>
bool put_row(const uint8_t* file, size_t columns, size_t r, uint8_t* tile) {
  bool finite = true;
  if constexpr (is_float(kType)) {
    using Word = std::conditional_t<kType == Type::f32, uint32_t, uint16_t>;
    constexpr Word kExponent = kType == Type::f32 ? 0x7f800000U : kType == Type::f16 ? 0x7c00U : 0x7f80U;
    for (size_t c = 0; c < columns; ++c) {
      Word word;
      std::memcpy(&word, file + c * sizeof word, sizeof word);
      finite &= (word & kExponent) != kExponent;
      std::memcpy(tile + (c * kTile + r) * sizeof word, &word, sizeof word);
    }
  } else {
    FileBlock block;  // of 256 numbers
    for (size_t c = 0; c < columns; c += tile_layout(kType).columns) {
      if constexpr (tile_layout(kType).columns == 32) {
        finite &= put_small_block<kType>(file, r, tile);
      } else {
        take_apart<kType>(file, block);
        finite &= is_finite(block.scale) && is_finite(block.offset);
        put_block<kType>(block, r, tile);
      }
      file += storage(kType).bytes;
      tile += tile_layout(kType).bytes();
    }
  }
  return finite;
}

template <Type kType>
void take_row(const uint8_t* tile, size_t columns, size_t r, float* out) {
  if constexpr (is_float(kType)) {
    using Word = std::conditional_t<kType == Type::f32, uint32_t, uint16_t>;
    for (size_t c = 0; c < columns; ++c) {
      Word word;
      std::memcpy(&word, tile + (c * kTile + r) * sizeof word, sizeof word);
      if constexpr (kType == Type::f16)
        out[c] = from_half(word);
      else
        out[c] = std::bit_cast<float>(static_cast<uint32_t>(word) << (kType == Type::bf16 ? 16 : 0));
    }
  } else {
    FileBlock block;
    for (size_t c = 0; c < columns; c += tile_layout(kType).columns, tile += tile_layout(kType).bytes()) {
      take_block<kType>(tile, r, block);
      numbers<kType>(block, out + c);
    }
  }
}

}  // namespace

Matrix::Matrix(Type type, size_t rows, size_t columns, const FileRows& file, const Parallel& parallel)
    : type_(type),
      rows_(rows),
      columns_(columns),
      tile_bytes_(checked_tile_bytes(type, rows, columns)),
      data_((rows + kTile - 1) / kTile * tile_bytes_) {
  // What goes wrong in a piece is kept: `parallel` may be of threads that exceptions do not leave.
  std::atomic<bool> finite{true};
  std::exception_ptr error;
  std::mutex mutex;
  const size_t row_bytes = columns / storage(type).numbers * storage(type).bytes;
  parallel((tiles() + kPiece - 1) / kPiece, [&](size_t piece) {
    try {
      const auto room = std::make_unique_for_overwrite<std::byte[]>(kTile * row_bytes);
      for (size_t tile = piece * kPiece; tile < std::min(tiles(), (piece + 1) * kPiece); ++tile) {
        uint8_t* const to = data_.get() + tile * tile_bytes_;
        const size_t count = std::min(kTile, rows_ - tile * kTile);
        if (count < kTile) std::memset(to, 0, tile_bytes_);
        const auto* row = reinterpret_cast<const uint8_t*>(file(tile * kTile, count, room.get()));
        for (size_t r = 0; r < count; ++r, row += row_bytes) {
          const bool good = with_type(type_, [&]<Type kType>() { return put_row<kType>(row, columns_, r, to); });
          if (!good) finite = false;
        }
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
  if (!finite) throw std::domain_error("a scale or a number is not finite");
}

Form Matrix::form() const {
  if (is_float(type_)) return Form::floats;
  return storage(type_).numbers == 256 ? Form::bytes256 : Form::bytes32;
}

void Matrix::read_row(size_t row, float* out) const {
  const uint8_t* from = tile(row / kTile);
  with_type(type_, [&]<Type kType>() { take_row<kType>(from, columns_, row % kTile, out); });
}

}  // namespace edgellm::kernels
