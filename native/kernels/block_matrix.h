// Weights of 4 or 8 bits with a scale per block, laid out for products with rows of 8-bit activations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
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

// What a matrix of blocks is: (rows, columns) numbers (code - zero) * scale, where `block` columns of a row that follow
// one another share a scale and a zero. Codes have `bits` bits. Without zeros of its own every block has 2^(bits - 1).
struct BlockShape {
  size_t rows, columns;
  size_t block;  // a multiple of 32 that divides columns
  int bits;      // 4, or 8 without zeros
  bool zeros;

  size_t blocks() const { return columns / block; }  // of a row
};

// Gives a row: its codes (columns) and, where there are zeros, those (blocks), one to a byte; its scales (blocks).
// Called from several threads.
using ReadRow = std::function<void(size_t row, uint8_t* codes, float* scales, uint8_t* zeros)>;

// The matrix as the kernels read it:
//
//   codes     per tile of 16 rows, per group of 32 columns
//             4 bits: 4 vectors of 16 rows x 4 bytes. Byte j of row r of vector v has the column 4v + j in its low four
//                     bits and the column 16 + 4v + j in its high four
//             8 bits: 8 vectors of 16 rows x 4 bytes. Byte j of row r of vector v is the column 4v + j
//   scales    per tile, per block: 16 floats
//   zeros     per tile, per block: 16 bytes, where there are any
//
// Rows that fill the last tile have scale 0.
class BlockMatrix {
 public:
  // Lays the rows out, by at most so many threads. std::invalid_argument for a shape that cannot be.
  BlockMatrix(const BlockShape& shape, const ReadRow& read, size_t threads);

  size_t rows() const { return shape_.rows; }
  size_t columns() const { return shape_.columns; }
  size_t block() const { return shape_.block; }
  size_t blocks() const { return shape_.blocks(); }
  size_t tiles() const { return (shape_.rows + kTile - 1) / kTile; }
  int bits() const { return shape_.bits; }
  size_t group_bytes() const { return kTile * kGroup * static_cast<size_t>(shape_.bits) / 8; }

  const uint8_t* codes(size_t tile) const { return codes_.get() + tile * columns() / kGroup * group_bytes(); }
  const float* scales(size_t tile) const { return scales_.get() + tile * blocks() * kTile; }
  // Null without them.
  const uint8_t* zeros(size_t tile) const {
    return zeros_.size() == 0 ? nullptr : zeros_.get() + tile * blocks() * kTile;
  }

 private:
  void lay_out(const ReadRow& read, size_t first_tile, size_t last_tile);
  void lay_out_codes(const uint8_t* row, uint8_t* target) const;

  BlockShape shape_;
  Aligned<uint8_t> codes_;
  Aligned<float> scales_;
  Aligned<uint8_t> zeros_;
};

}  // namespace edgellm::kernels
