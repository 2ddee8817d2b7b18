// How GGUF stores the numbers of a tensor.
// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (ggml_type); the blocks: gguf's Python package, quants.py
#pragma once

#include <cstddef>
#include <cstdint>

namespace edgellm::kernels {

// The ids of GGUF, and one of our own.
enum class Type : uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  iq4_nl = 20,
  bf16 = 30,
  int4_zero = 1 << 16,  // not of GGUF: Q4_0 with a zero point, as ONNX has it: scale, a byte for the zero, codes
};

// A block in the file: so many numbers of a row, in so many bytes.
struct Storage {
  size_t numbers, bytes;
};

// {0, 0} for a type that there are no kernels for.
Storage storage(Type type);

// Of a half, IEEE 754 binary16.
float from_half(uint16_t half);
// The nearest, ties to even; infinite above 65,519.
uint16_t to_half(float number);

}  // namespace edgellm::kernels
