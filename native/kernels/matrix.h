// A matrix of weights in a type of GGUF (or INT4 with zero points), laid out for products.
//
// In memory: tiles of 16 rows, whose codes lie interleaved, so that a vector of 64 bytes holds four columns of each row
// (see matrix.cpp for each type). It takes at most 1.03 times the bytes of the file; rows that fill the last tile are
// 0.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "activations.h"
#include "file_rows.h"
#include "storage.h"
#include "weight_memory.h"

namespace edgellm::kernels {

constexpr size_t kTile = 16;  // rows that lie interleaved: the 32-bit lanes of a register of 512 bits

// Calls `work` for every index below `count`, by several threads.
using Parallel = std::function<void(size_t count, const std::function<void(size_t)>& work)>;

class Matrix {
 public:
  // std::invalid_argument for a shape that cannot be (columns that are no multiple of the block), std::domain_error for
  // a scale that is not finite, std::bad_alloc, and what `file` throws, which several threads ask for its rows. Laid
  // out in parallel, in pieces of whole tiles.
  Matrix(Type type, size_t rows, size_t columns, const FileRows& file, const Parallel& parallel);

  Type type() const { return type_; }
  Form form() const;  // of X
  size_t rows() const { return rows_; }
  size_t columns() const { return columns_; }
  size_t tiles() const { return (rows_ + kTile - 1) / kTile; }
  size_t tile_bytes() const { return tile_bytes_; }
  size_t bytes() const { return tiles() * tile_bytes_; }
  const uint8_t* tile(size_t tile) const { return data_.get() + tile * tile_bytes_; }

  // The numbers of a row, (columns,): exactly those that the file's bytes stand for, in float32.
  void read_row(size_t row, float* out) const;

 private:
  Type type_;
  size_t rows_, columns_, tile_bytes_;
  WeightMemory data_;
};

}  // namespace edgellm::kernels
