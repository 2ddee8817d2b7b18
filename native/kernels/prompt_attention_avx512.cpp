// Attention of several tokens of a text, in 32-bit floats, where there is no AMX.
//
//   scores (queries, keys)  = Q (queries, size) x K' (size, keys)
//   out    (queries, size)  = weights (queries, keys) x V (keys, size)
//
// A row of either product is summed in the order of its second factor's rows, beginning at 0, so that keys which a
// query does not see, whose weights are 0, leave the same bits whether they are there or not.
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "aligned.h"
#include "avx512.h"
#include "instruction_sets.h"

namespace edgellm::kernels {

namespace {

constexpr size_t kRows = 6;      // queries whose sums are in registers, each in up to 4 of them
constexpr size_t kQueries = 24;  // of one head that are attended to at once: scores and sums stay in the L2 cache
constexpr size_t kKeys = 64;     // keys that lie together
constexpr size_t kLanes = 16;
constexpr size_t kTokens = 16;  // tokens of one index that are rotated

size_t up(size_t count, size_t step) { return (count + step - 1) / step * step; }

// The scratch memory, in floats:
//
//   queries  (batch, heads, tokens, size), rotated; then kRows of them more, which are read and stand for nothing
//   keys     (batch, kv_heads, keys / 64, size, 64)
struct Scratch {
  explicit Scratch(const Attention& call)
      : length(up(call.longest(), kKeys)),
        queries(reinterpret_cast<float*>(call.scratch)),
        keys(queries + (call.batch * call.heads * call.tokens + kRows) * call.size) {}

  size_t length;
  float *queries, *keys;
};

size_t scratch(const Attention& call) {
  const size_t queries = call.batch * call.heads * call.tokens + kRows;
  return (queries + call.batch * call.kv_heads * up(call.longest(), kKeys)) * call.size * sizeof(float);
}

// The first position of a text's new tokens.
size_t past(const Attention& call, size_t b) { return static_cast<size_t>(call.last[b]) + 1 - call.tokens; }

// Rotate some tokens' queries and fill their cells.
void begin(const Attention& call, size_t index) {
  const Scratch scratch(call);
  const size_t parts = up(call.tokens, kTokens) / kTokens, b = index / parts, first = index % parts * kTokens;
  for (size_t token = first; token < std::min(first + kTokens, call.tokens); ++token) {
    const size_t position = past(call, b) + token;
    append(call, b, token, position);
    for (size_t head = 0; head < call.heads; ++head) {
      const float* from = call.query + (b * call.tokens + token) * call.query_stride + head * call.size;
      rotate(call, from, position, scratch.queries + ((b * call.heads + head) * call.tokens + token) * call.size);
    }
  }
  if (index == 0) {
    float* more = scratch.keys - kRows * call.size;
    std::fill(more, scratch.keys, 0.0F);
  }
}

// Lay out 64 keys of a head; those behind the end of the text become 0.
void lay_out(const Attention& call, size_t index) {
  const Scratch scratch(call);
  const size_t chunks = scratch.length / kKeys, start = index % chunks * kKeys, kv = index / chunks, size = call.size;
  const size_t b = kv / call.kv_heads, length = static_cast<size_t>(call.last[b]) + 1;
  if (start + kKeys <= first_seen(call, past(call, b))) return;
  const float* cells = call.keys + kv * call.capacity * size;
  float* to = scratch.keys + kv * scratch.length * size + start * size;
  for (size_t k = 0; k < kKeys; k += kLanes) {
    for (size_t d = 0; d < size; d += kLanes) {
      __m512i rows[kLanes];
      for (size_t i = 0; i < kLanes; ++i) {
        const size_t at = start + k + i;
        rows[i] = at < length ? _mm512_loadu_si512(cells + at * size + d) : _mm512_setzero_si512();
      }
      transpose(rows);
      for (size_t i = 0; i < kLanes; ++i) _mm512_store_si512(to + (d + i) * kKeys + k, rows[i]);
    }
  }
}

// sums (kRows, 16 kVectors) += left (kRows, count) x right (count, 16 kVectors), rows `.._next` numbers after another.
template <size_t kVectors>
void multiply(const float* left, size_t left_next, const float* right, size_t right_next, size_t count, float* sums,
              size_t sums_next) {
  __m512 sum[kRows][kVectors];
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t v = 0; v < kVectors; ++v) sum[r][v] = _mm512_loadu_ps(sums + r * sums_next + v * kLanes);
  }
  for (size_t i = 0; i < count; ++i, right += right_next) {
    __m512 vector[kVectors];
    for (size_t v = 0; v < kVectors; ++v) vector[v] = _mm512_loadu_ps(right + v * kLanes);
    for (size_t r = 0; r < kRows; ++r) {
      const __m512 number = _mm512_set1_ps(left[r * left_next + i]);
      for (size_t v = 0; v < kVectors; ++v) sum[r][v] = _mm512_fmadd_ps(number, vector[v], sum[r][v]);
    }
  }
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t v = 0; v < kVectors; ++v) _mm512_storeu_ps(sums + r * sums_next + v * kLanes, sum[r][v]);
  }
}

// Turn the scores of a query at `position` into weights: those of the keys [first, stop). Returns their sum.
float weigh(const Attention& call, size_t position, size_t first, size_t stop, float* scores) {
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i from = _mm512_set1_epi32(static_cast<int>(first_seen(call, position)));
  const __m512i last = _mm512_set1_epi32(static_cast<int>(position));
  const auto read = [&](size_t at) {
    const __m512i key = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(at)), lanes);
    const __mmask16 seen = _mm512_cmpge_epi32_mask(key, from) & _mm512_cmple_epi32_mask(key, last);
    return _mm512_mask_mov_ps(_mm512_set1_ps(kNever), seen, _mm512_load_ps(scores + (at - first)));
  };
  __m512 most = _mm512_set1_ps(kNever);
  for (size_t at = first; at < stop; at += kLanes) most = _mm512_max_ps(most, read(at));
  const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most)), scale = _mm512_set1_ps(call.scale);
  __m512 total = _mm512_setzero_ps();
  for (size_t at = first; at < stop; at += kLanes) {
    const __m512 weight = exp_below_0(_mm512_mul_ps(_mm512_sub_ps(read(at), top), scale));
    total = _mm512_add_ps(total, weight);
    _mm512_store_ps(scores + (at - first), weight);
  }
  return _mm512_reduce_add_ps(total);
}

// Up to 24 queries of a head.
void attend(const Attention& call, size_t index) {
  const Scratch scratch(call);
  const size_t head = index % call.heads, count = up(call.tokens, kQueries) / kQueries;
  const size_t order = index / call.heads % count, b = index / call.heads / count, size = call.size;
  const size_t query = (count - 1 - order) * kQueries;  // the long ones first
  const size_t tokens = std::min(kQueries, call.tokens - query), rows = up(tokens, kRows);
  const size_t position = past(call, b) + query, end = position + tokens;
  const size_t first = first_seen(call, position) / kKeys * kKeys, stop = up(end, kKeys), keys = stop - first;
  const size_t kv = b * call.kv_heads + head / (call.heads / call.kv_heads);
  const float* queries = scratch.queries + ((b * call.heads + head) * call.tokens + query) * size;

  thread_local Aligned<float> scores, sums;  // (kQueries, keys), (kQueries, size)
  if (scores.size() < kQueries * keys) scores = Aligned<float>(kQueries * keys);
  if (sums.size() < kQueries * size) sums = Aligned<float>(kQueries * size);
  std::fill(scores.get(), scores.get() + rows * keys, 0.0F);
  std::fill(sums.get(), sums.get() + rows * size, 0.0F);
  for (size_t at = 0; at < keys; at += kKeys) {
    const float* key = scratch.keys + kv * scratch.length * size + (first + at) * size;
    for (size_t r = 0; r < rows; r += kRows) {
      multiply<4>(queries + r * size, size, key, kKeys, size, scores.get() + r * keys + at, keys);
    }
  }
  float shares[kQueries];
  for (size_t r = 0; r < rows; ++r) {
    shares[r] = 1 / weigh(call, std::min(position + r, end - 1), first, stop, scores.get() + r * keys);
  }
  const float* values = call.values + kv * call.capacity * size;
  const size_t width = size % (4 * kLanes) == 0 ? 4 * kLanes : 2 * kLanes;
  for (size_t at = first; at < end; at += kKeys) {
    for (size_t d = 0; d < size; d += width) {
      for (size_t r = 0; r < rows; r += kRows) {
        (width == 4 * kLanes ? multiply<4> : multiply<2>)(scores.get() + r * keys + (at - first), keys,
                                                          values + at * size + d, size, std::min(kKeys, end - at),
                                                          sums.get() + r * size + d, size);
      }
    }
  }
  for (size_t r = 0; r < tokens; ++r) {
    float* out = call.out + ((b * call.tokens + query + r) * call.heads + head) * size;
    const __m512 share = _mm512_set1_ps(shares[r]);
    for (size_t d = 0; d < size; d += kLanes) {
      _mm512_storeu_ps(out + d, _mm512_mul_ps(_mm512_load_ps(sums.get() + r * size + d), share));
    }
  }
}

std::array<Stage, 3> stages(const Attention& call) {
  const size_t chunks = up(call.longest(), kKeys) / kKeys;
  return {Stage{call.batch * (up(call.tokens, kTokens) / kTokens), &begin},
          Stage{call.batch * call.kv_heads * chunks, &lay_out},
          Stage{call.batch * call.heads * (up(call.tokens, kQueries) / kQueries), &attend}};
}

}  // namespace

const AttentionKernels kAvx512PromptAttention{&scratch, &stages};

}  // namespace edgellm::kernels
