// The weights of MatMulNBits as a matrix of the kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "../kernels/matrix.h"

namespace edgellm::ort {

// As the operator holds them: (code - zero) * scale, where `block` columns of a row share a scale and a zero. Two codes
// of 4 bits, or two zeros, share a byte, the first its low half.
struct NBits {
  size_t rows, columns;
  size_t block;          // a multiple of 32 that divides columns
  size_t bits;           // 4, or 8 without zeros
  const uint8_t* codes;  // (rows, columns * bits / 8)
  const float* scales;   // (rows, blocks), anywhere in memory
  const uint8_t* zeros;  // (rows, ceil(blocks / 2)); null: all are 2^(bits - 1)

  size_t blocks() const { return columns / block; }  // of a row
};

// They are factor * matrix. The matrix has a scale of 16 bits for every 32 columns; the factor, a power of two, makes
// the largest of them at least 2^14 where that loses no bits. So scales that are halves, as those of GGUF, stay as they
// are; others are rounded by no more than 2^-11 of themselves, or 2^-39 of the largest one.
struct Weights {
  std::unique_ptr<const kernels::Matrix> matrix;
  float factor;
};

// Laid out by at most so many threads. std::invalid_argument for a shape that cannot be, std::domain_error for a scale
// that is not finite, std::bad_alloc.
Weights weights_of(const NBits& source, size_t threads);

}  // namespace edgellm::ort
