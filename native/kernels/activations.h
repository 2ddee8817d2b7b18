// Rows of X as products read them.
//
//   bytes32    int8 codes with a scale per 32 columns, code = round(x / scale), scale = largest |x| of the 32 / 127
//   bytes256   the same per 256 columns
//   floats     as they are
//
// What a row becomes depends on nothing but the row.
#pragma once

#include <cstddef>

namespace edgellm::kernels {

enum class Form { bytes32, bytes256, floats };

struct Activations {
  Form form;
  size_t count, columns;
  const float* x;  // row r begins at x + r * stride
  size_t stride;
  std::byte* out;  // activation_bytes, at a multiple of 64
};

// Bytes that `count` prepared rows take; 0 for floats, which are read where they are.
size_t activation_bytes(Form form, size_t columns, size_t count);

}  // namespace edgellm::kernels
