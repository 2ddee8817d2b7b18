// Weights of 4 or 8 bits with a scale per block, laid out for products with rows of 8-bit activations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace edgellm::kernels {

constexpr size_t kTile = 16;   // rows of weights that lie interleaved: the 32-bit lanes of a 512-bit register
constexpr size_t kGroup = 32;  // columns that lie together
constexpr size_t kAlign = 64;

// Memory of `count` values at a multiple of 64 bytes. std::bad_alloc if there is none.
template <typename T>
class Aligned {
 public:
  Aligned() = default;
  explicit Aligned(size_t count)
      : data_(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{kAlign}))), count_(count) {}
  T* get() const { return data_.get(); }
  size_t size() const { return count_; }

 private:
  struct Free {
    void operator()(T* data) const { ::operator delete(data, std::align_val_t{kAlign}); }
  };
  std::unique_ptr<T, Free> data_;
  size_t count_ = 0;
};

// A matrix W (rows, columns) of numbers (code - zero) * scale, as MatMulNBits of ONNX Runtime defines them:
//
//   codes     per tile of 16 rows, per group of 32 columns
//             4 bits: 4 vectors of 16 rows x 4 bytes. Byte j of row r of vector v has the column 4v + j in its low four
//                     bits and the column 16 + 4v + j in its high four
//             8 bits: 8 vectors of 16 rows x 4 bytes. Byte j of row r of vector v is the column 4v + j
//   scales    per tile, per block: 16 floats
//   zeros     per tile, per block: 16 bytes; without them every zero is 8 (4 bits) or 128 (8 bits)
//
// Rows that fill the last tile have scale 0.
class BlockMatrix {
 public:
  // From the operator's own layout: codes (rows, columns / block, block * bits / 8), the low four bits first; scales
  // (rows, columns / block); zeros, or null: (rows, ceil(columns / block / 2)), two to a byte. They are copied, by
  // several threads where there are many.
  //
  // bits: 4, or 8 without zeros. block: a multiple of 32 that divides columns. std::invalid_argument for others.
  BlockMatrix(size_t rows, size_t columns, size_t block, int bits, const uint8_t* codes, const float* scales,
              const uint8_t* zeros);

  size_t rows() const { return rows_; }
  size_t columns() const { return columns_; }
  size_t block() const { return block_; }
  size_t blocks() const { return columns_ / block_; }
  size_t tiles() const { return (rows_ + kTile - 1) / kTile; }
  int bits() const { return bits_; }
  size_t group_bytes() const { return kTile * kGroup * static_cast<size_t>(bits_) / 8; }

  const uint8_t* codes(size_t tile) const { return codes_.get() + tile * columns_ / kGroup * group_bytes(); }
  const float* scales(size_t tile) const { return scales_.get() + tile * blocks() * kTile; }
  // Null without them.
  const uint8_t* zeros(size_t tile) const { return zeros_.size() == 0 ? nullptr : zeros_.get() + tile * blocks() * kTile; }

 private:
  struct Source;
  void copy(const Source& source, size_t first_tile, size_t last_tile);
  void copy_codes(const uint8_t* source, uint8_t* target) const;  // of a row

  size_t rows_, columns_, block_;
  int bits_;
  Aligned<uint8_t> codes_;
  Aligned<float> scales_;
  Aligned<uint8_t> zeros_;
};

}  // namespace edgellm::kernels
