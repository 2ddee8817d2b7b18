// Y = X W' (+ bias) for many rows X, X and the numbers of W rounded to bfloat16, their products summed in 32 bits in
// the order of columns. Nearer to the exact product than bytes are (kernel_set.h), and faster for many rows where there
// are instructions for it: W is unpacked for all of them.
//
// A row of Y has the same bits whatever other rows there are and however the work is divided.
#pragma once

#include <cstddef>

#include "matrix.h"

namespace edgellm::kernels {

struct Bfloat16Product {
  const Matrix* weights;  // Q4_0, Q8_0 or INT4 with zero points
  float factor;           // that the numbers of W are multiplied with, a power of two
  size_t count;           // rows of X and of Y
  const float* x;         // (count, weights->columns())
  const float* bias;      // (weights->rows()), or null
  float* y;               // (count, weights->rows())
  std::byte* scratch;     // Bfloat16Kernels::scratch bytes, at a multiple of 64
};

// A product is done in two steps, each of which can be divided between threads: `prepare` for ranges of rows of X that
// begin at multiples of row_step, then `multiply` for ranges of tiles of W that begin at multiples of tile_step.
struct Bfloat16Kernels {
  const char* name;
  size_t row_step, tile_step;
  size_t (*scratch)(const Matrix&, size_t count);
  void (*prepare)(const Bfloat16Product&, size_t first_row, size_t last_row);
  void (*multiply)(const Bfloat16Product&, size_t first_tile, size_t last_tile);
};

// The kernels that this processor has and this process may use; null without them. AMX may be used once something in
// the process has asked the system for it, which these do not; whether that is so is looked up once, at the first call.
const Bfloat16Kernels* bfloat16_kernels();

}  // namespace edgellm::kernels
