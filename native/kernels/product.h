// Y = X W' for rows X of 32-bit floats and a matrix of blocks W.
//
// Two kinds of arithmetic, each of which gives the same bits for a row of X whatever other rows there are and however
// the work is divided:
//
//   bytes      X becomes 8-bit codes, code = round(x / scale), scale = largest |x| of the block / 127. A number of Y is
//              the sum over the blocks, in their order, whose inner sum is exact:
//              y = fma(float(sum of x_code * (w_code - zero)), w_scale * x_scale, y)
//   bfloat16   X and the values of W are rounded to bfloat16, their products summed in 32 bits, in the order of
//              columns. Nearer to the exact product, and faster for many rows: W is unpacked for all of them.
#pragma once

#include <cstddef>
#include <string>

#include "block_matrix.h"

namespace edgellm::kernels {

struct Product {
  const BlockMatrix* weights;
  size_t count;        // rows of X and of Y
  const float* x;      // (count, weights->columns())
  const float* bias;   // (weights->rows()), or null
  float* y;            // (count, weights->rows())
  std::byte* scratch;  // Kernels::scratch bytes, at a multiple of 64
};

// A product is done in two steps, each of which can be divided between threads: `prepare` for ranges of rows of X that
// begin at multiples of row_step, then `multiply` for ranges of tiles of W that begin at multiples of tile_step.
struct Kernels {
  const char* name;
  size_t row_step, tile_step;
  size_t (*scratch)(const BlockMatrix&, size_t count);
  void (*prepare)(const Product&, size_t first_row, size_t last_row);
  void (*multiply)(const Product&, size_t first_tile, size_t last_tile);
};

// The kernels that this processor has and this process may use; null without them. AMX may be used once something in
// the process has asked the system for it, which these do not; whether that is so is looked up once, at the first call.
const Kernels* byte_kernels();
const Kernels* bfloat16_kernels();

// Their names, for people: "avx512_vnni amx_bf16"; empty without any.
std::string kernel_names();

}  // namespace edgellm::kernels
