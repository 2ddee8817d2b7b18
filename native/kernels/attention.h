// Causal attention of grouped queries over a cache of keys and values in 32-bit floats.
//
// One way for tokens == 1 and one for more, each of which gives a query the same bits whatever other queries there are
// and however the work is divided:
//
//   single            in 32-bit floats: 128 keys at a time from position 0 on, whose softmax sums are joined at the end
//   prompt, AMX       scores and weighted values as products of bfloat16 numbers, summed in 32 bits; the softmax of
//                     a whole row in 32 bits
//   prompt, AVX-512   all of it in 32-bit floats
//
// Keys that a query does not see have the weight 0, exactly.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace edgellm::kernels {

struct Attention {
  size_t batch, tokens, heads, kv_heads;
  size_t size;      // of a head: a multiple of 32
  size_t capacity;  // tokens of the cache that there is room for
  size_t rotary;    // numbers of a head that are rotated, from the first on; 0 for none
  size_t window;    // keys that a query sees, itself among them
  float scale;      // of the scores

  const float *query, *key, *value;               // (batch, tokens, ..): the heads of a token lie together
  size_t query_stride, key_stride, value_stride;  // numbers from one token to the next
  const float *cos, *sin;                         // (positions, rotary / 2)
  const int32_t* last;                            // (batch): the position of the last token
  float *keys, *values;                           // (batch, kv_heads, capacity, size): the cache, which is added to
  float* out;                                     // (batch, tokens, heads * size)
  std::byte* scratch;                             // AttentionKernels::scratch bytes, at a multiple of 64

  size_t longest() const;  // tokens of the longest text
};

// Steps follow one another; `run` is called for every index below `count`, in any order, from any thread.
struct Stage {
  size_t count;
  void (*run)(const Attention&, size_t index);
};

struct AttentionKernels {
  size_t (*scratch)(const Attention&);
  std::array<Stage, 3> (*stages)(const Attention&);
};

// For one token of each text, and for several; both are null where this processor has none of the kernels.
const AttentionKernels* single_attention();
const AttentionKernels* prompt_attention();

}  // namespace edgellm::kernels
