// Causal attention of grouped queries over a cache of pages.
//
// A page holds the keys and values of 32 tokens that follow one another, of all layers. A sequence is a table of pages;
// position p lies in page p / 32. Keys are summed in chunks of kChunk positions, counted from 0; the softmax sums of
// the chunks are joined in their order. So a query gets the same bits however many queries and pieces there are. Keys
// that a query does not see have no part in it. What is put into a page is finite: it is clamped to what the type
// holds; a new page holds finite numbers too, zeros for example.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edgellm::kernels {

constexpr size_t kPageTokens = 32;
constexpr size_t kChunk = 256;
constexpr size_t kMostSize = 256;  // of a head

// int16 and int8: codes with a scale for the key and for the value of a token in a head. The scale of a key is its
// length, of values in int8 and of all else the largest number, over the largest code: so a product of 16-bit codes is
// nearer to that of the numbers than one of half floats is, however large single numbers of a key are.
enum class KvType { int16, int8, f32 };
constexpr float kMostScale = 1e12F;  // with it no score becomes infinite

// A page: for each layer, for each head of keys and values, a part of keys and one of values.
//
//   keys     (size / 2, 32 tokens, 2)   number d of token t is the number (d / 2 * 32 + t) * 2 + d % 2
//   values   (32 tokens / 2, size, 2)   number d of token t is the number (t / 2 * size + d) * 2 + t % 2
//   scales   (32,) float32 behind either, not with f32: a number is its code * the scale
//
// So the numbers that are summed lie in pairs, and a vector of them belongs to tokens, or to places of the result, side
// by side.
//
// Pages lie in blocks of 8: for each layer, for each head, the parts of keys of the 8, then those of values. So what a
// chunk of one head reads lies together, where its pages do. A page is known by its first part.
constexpr size_t kBlockPages = kChunk / kPageTokens;

struct PageShape {
  KvType type;
  size_t layers, kv_heads, size;  // size of a head, a multiple of 16 that is not above kMostSize

  size_t number_bytes() const;
  size_t numbers_bytes() const;  // of a part: what its scales lie behind
  size_t part_bytes() const;     // a multiple of 64
  size_t bytes() const;
  size_t block_bytes() const;

  // Where the part of keys lies, behind the first part of the page; that of values is values_at() behind it.
  size_t keys_at(size_t layer, size_t head) const;
  size_t values_at() const;
};

// The attention of one layer, of the new tokens of one sequence.
struct AttentionStep {
  const PageShape* shape;
  std::byte* const* pages;  // the sequence's, as many as its tokens and the new ones need
  size_t layer;
  size_t first, tokens;              // positions of the new tokens: [first, first + tokens)
  size_t heads;                      // of queries, a multiple of kv_heads
  size_t window;                     // keys that a query sees, itself among them; SIZE_MAX for all
  float scale, soft_cap;             // of the scores: soft_cap * tanh(score * scale / soft_cap); 0 for none
  const float *query, *key, *value;  // rotated; the heads of a token lie together
  size_t query_stride, key_stride, value_stride;  // numbers from one token to the next
  float* out;                                     // (heads * size) per token
  size_t out_stride;
  std::byte* scratch;  // PagedAttention::scratch bytes, at a multiple of 64, alone for this step
};

// In this order, each for all its indices, in any order and from any thread, before the next begins:
// append for the token indices [0, tokens), attend for [0, pieces), join for [0, joins).
struct PagedAttention {
  size_t (*scratch)(const AttentionStep&);
  size_t (*own)(const PageShape&);  // bytes, at a multiple of 64, that a thread lends to attend, the same to each call
  void (*append)(const AttentionStep&, size_t token);
  size_t (*pieces)(const AttentionStep&);  // those that take longest first
  void (*attend)(const AttentionStep&, size_t piece, std::byte* own);
  size_t (*joins)(const AttentionStep&);  // 0 where attend has done it all
  void (*join)(const AttentionStep&, size_t index);
};

}  // namespace edgellm::kernels
