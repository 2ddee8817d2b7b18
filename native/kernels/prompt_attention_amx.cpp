// Attention of several tokens of a text, in bfloat16.
//
// Scores are made with the keys as rows and the queries as columns, so that a softmax runs down the lanes of vectors
// and its weights are, two keys at a time, the second factor of the next product:
//
//   scores (keys, queries) = K (keys, size) x Q' (size, queries)
//   out'   (size, queries) = V' (size, keys) x weights (keys, queries)
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "aligned.h"
#include "amx.h"
#include "instruction_sets.h"

namespace edgellm::kernels {

namespace {

constexpr size_t kQueries = 32;  // of one head that are attended to at once: two tiles
constexpr size_t kChunk = 128;   // keys that are converted at once

size_t up(size_t count, size_t step) { return (count + step - 1) / step * step; }

// The scratch memory, in tiles:
//
//   queries  (batch, heads, tokens / 16, size / 32): 16 pairs of numbers x 16 queries
//   keys     (batch, kv_heads, keys / 16, size / 32): 16 keys x 32 numbers
//   values   (batch, kv_heads, size / 16, keys / 32): 16 numbers x 32 keys
struct Scratch {
  explicit Scratch(const Attention& call)
      : tokens(up(call.tokens, kQueries)),
        length(up(call.longest(), kDepth)),
        query_bytes(tokens * call.size * 2),
        cache_bytes(length * call.size * 2),
        queries(call.scratch),
        keys(queries + call.batch * call.heads * query_bytes),
        values(keys + call.batch * call.kv_heads * cache_bytes) {}

  size_t tokens, length;
  size_t query_bytes, cache_bytes;  // of a head
  std::byte *queries, *keys, *values;
};

size_t scratch(const Attention& call) {
  const size_t queries = call.heads * up(call.tokens, kQueries), cached = call.kv_heads * up(call.longest(), kDepth);
  return call.batch * (queries + 2 * cached) * call.size * 2;
}

// The first position of a text's new tokens.
size_t past(const Attention& call, size_t b) { return static_cast<size_t>(call.last[b]) + 1 - call.tokens; }

// Rotate 16 tokens, fill their cells and lay out their queries.
void begin(const Attention& call, size_t index) {
  const Scratch scratch(call);
  const size_t tiles = scratch.tokens / kRowsOfTile, tile = index % tiles, b = index / tiles,
               first = tile * kRowsOfTile;
  const size_t count = first < call.tokens ? std::min(kRowsOfTile, call.tokens - first) : 0,
               depths = call.size / kDepth;
  thread_local Aligned<float> rotated;
  if (rotated.size() < kRowsOfTile * call.size) rotated = Aligned<float>(kRowsOfTile * call.size);
  std::fill(rotated.get(), rotated.get() + kRowsOfTile * call.size, 0.0F);
  for (size_t i = 0; i < count; ++i) append(call, b, first + i, past(call, b) + first + i);
  for (size_t head = 0; head < call.heads; ++head) {
    for (size_t i = 0; i < count; ++i) {
      const float* from = call.query + (b * call.tokens + first + i) * call.query_stride + head * call.size;
      rotate(call, from, past(call, b) + first + i, rotated.get() + i * call.size);
    }
    std::byte* to = scratch.queries + (b * call.heads + head) * scratch.query_bytes + tile * depths * kTileBytes;
    for (size_t d = 0; d < depths; ++d, to += kTileBytes) {
      __m512i rows[kRowsOfTile];
      for (size_t i = 0; i < kRowsOfTile; ++i) rows[i] = bfloat16(rotated.get() + i * call.size + d * kDepth);
      transpose(rows);
      for (size_t i = 0; i < kRowsOfTile; ++i) _mm512_store_si512(to + i * 64, rows[i]);
    }
  }
}

// Lay out some keys and values of the cache; those behind the end of the text become 0.
void convert(const Attention& call, size_t index) {
  const Scratch scratch(call);
  const size_t chunks = up(scratch.length, kChunk) / kChunk, chunk = index % chunks, kv = index / chunks;
  const size_t b = kv / call.kv_heads, length = static_cast<size_t>(call.last[b]) + 1, size = call.size;
  const size_t start = chunk * kChunk, stop = std::min(start + kChunk, scratch.length);
  if (stop <= first_seen(call, past(call, b))) return;
  const size_t cells = kv * call.capacity * size, depths = size / kDepth, steps = scratch.length / kDepth;
  for (size_t at = start; at < stop; ++at) {
    std::byte* to =
        scratch.keys + kv * scratch.cache_bytes + at / kRowsOfTile * depths * kTileBytes + at % kRowsOfTile * 64;
    for (size_t d = 0; d < depths; ++d, to += kTileBytes) {
      const __m512i key = at < length ? bfloat16(call.keys + cells + at * size + d * kDepth) : _mm512_setzero_si512();
      _mm512_store_si512(to, key);
    }
  }
  const auto value = [&](size_t at, size_t d) {
    return at < length ? _mm512_loadu_ps(call.values + cells + at * size + d) : _mm512_setzero_ps();
  };
  for (size_t at = start; at < stop; at += kDepth) {
    for (size_t d = 0; d < size; d += kRowsOfTile) {
      __m512i rows[kRowsOfTile];
      for (size_t i = 0; i < kRowsOfTile; ++i) rows[i] = pairs(value(at + 2 * i, d), value(at + 2 * i + 1, d));
      transpose(rows);
      std::byte* to = scratch.values + kv * scratch.cache_bytes + (d / kRowsOfTile * steps + at / kDepth) * kTileBytes;
      for (size_t i = 0; i < kRowsOfTile; ++i) _mm512_store_si512(to + i * 64, rows[i]);
    }
  }
}

// scores (keys, 32) of the keys [first, stop): two tiles of queries, of `depths` tiles each.
void score(const std::byte* keys, const std::byte* queries, size_t depths, size_t first, size_t stop, float* scores) {
  for (size_t at = first; at < stop; at += kRowsOfTile, scores += kRowsOfTile * kQueries) {
    const std::byte* key = keys + at / kRowsOfTile * depths * kTileBytes;
    const std::byte* query = queries;
    _tile_zero(0);
    _tile_zero(1);
    for (size_t d = 0; d < depths; ++d, key += kTileBytes, query += kTileBytes) {
      _tile_loadd(4, key, 64);
      _tile_loadd(6, query, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, query + depths * kTileBytes, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, scores, kQueries * sizeof(float));
    _tile_stored(1, scores + kRowsOfTile, kQueries * sizeof(float));
  }
}

// Turn scores (keys, 32) into weights, tiles of 16 pairs of keys x 16 queries, for 16 queries from `position` on.
// Returns the sums of weights.
__m512 weigh(const Attention& call, size_t position, size_t first, size_t stop, const float* scores,
             std::byte* weights) {
  const size_t width = kQueries;
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i last = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(position)), lanes);
  const size_t all_from = first_seen(call, position + kRowsOfTile - 1);  // from here to `position` every query sees it
  const auto window = static_cast<int>(std::min<size_t>(call.window, 1 << 30));
  const auto read = [&](size_t at) {
    const __m512 score = _mm512_load_ps(scores + (at - first) * width);
    if (at >= all_from && at <= position) return score;
    const __m512i key = _mm512_set1_epi32(static_cast<int>(at));
    const __mmask16 seen = _mm512_cmple_epi32_mask(key, last) &
                           _mm512_cmpgt_epi32_mask(key, _mm512_sub_epi32(last, _mm512_set1_epi32(window)));
    return _mm512_mask_mov_ps(_mm512_set1_ps(kNever), seen, score);
  };
  __m512 most = _mm512_set1_ps(kNever);
  for (size_t at = first; at < stop; ++at) most = _mm512_max_ps(most, read(at));
  const __m512 scale = _mm512_set1_ps(call.scale);
  __m512 total = _mm512_setzero_ps();
  for (size_t at = first; at < stop; at += 2, weights += 64) {
    if ((at - first) % kDepth == 0 && at != first) weights += kTileBytes;  // the other tile of queries lies between
    const __m512 a = exp_below_0(_mm512_mul_ps(_mm512_sub_ps(read(at), most), scale));
    const __m512 b = exp_below_0(_mm512_mul_ps(_mm512_sub_ps(read(at + 1), most), scale));
    total = _mm512_add_ps(_mm512_add_ps(total, a), b);
    _mm512_store_si512(weights, pairs(a, b));
  }
  return total;
}

// 32 queries of a head.
void attend(const Attention& call, size_t index) {
  const Scratch scratch(call);
  const size_t head = index % call.heads, count = scratch.tokens / kQueries, order = index / call.heads % count;
  const size_t b = index / call.heads / count, size = call.size, depths = size / kDepth;
  const size_t query = (count - 1 - order) * kQueries;  // the long ones first
  const size_t position = past(call, b) + query, end = std::min(position + kQueries, past(call, b) + call.tokens);
  const size_t first = first_seen(call, position) / kDepth * kDepth, stop = up(end, kDepth);
  const size_t kv = b * call.kv_heads + head / (call.heads / call.kv_heads);
  const std::byte* queries =
      scratch.queries + (b * call.heads + head) * scratch.query_bytes + query / 16 * depths * kTileBytes;

  thread_local Aligned<float> scores;
  thread_local Aligned<std::byte> weights;  // per 32 keys two tiles
  if (scores.size() < (stop - first) * kQueries) {
    scores = Aligned<float>((stop - first) * kQueries);
    weights = Aligned<std::byte>((stop - first) / kDepth * 2 * kTileBytes);
  }
  const Tiles tiles_of_thread;
  score(scratch.keys + kv * scratch.cache_bytes, queries, depths, first, stop, scores.get());
  __m512 shares[2];
  for (size_t t = 0; t < 2; ++t) {
    const __m512 total = weigh(call, position + t * kRowsOfTile, first, stop, scores.get() + t * kRowsOfTile,
                               weights.get() + t * kTileBytes);
    shares[t] = _mm512_div_ps(_mm512_set1_ps(1.0F), total);
  }
  written();
  const size_t steps = scratch.length / kDepth;
  const auto finish = [&](const float* sums, size_t t, size_t d) {
    __m512i rows[kRowsOfTile];
    for (size_t i = 0; i < kRowsOfTile; ++i) {
      rows[i] = _mm512_castps_si512(_mm512_mul_ps(_mm512_load_ps(sums + i * kRowsOfTile), shares[t]));
    }
    transpose(rows);
    const size_t from = query + t * kRowsOfTile;
    for (size_t i = 0; i < kRowsOfTile && from + i < call.tokens; ++i) {
      float* out = call.out + ((b * call.tokens + from + i) * call.heads + head) * size + d;
      _mm512_storeu_ps(out, _mm512_castsi512_ps(rows[i]));
    }
  };
  for (size_t d = 0; d < size; d += 2 * kRowsOfTile) {
    const std::byte* value =
        scratch.values + kv * scratch.cache_bytes + (d / kRowsOfTile * steps + first / kDepth) * kTileBytes;
    const std::byte* weight = weights.get();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t at = first; at < stop; at += kDepth, value += kTileBytes, weight += 2 * kTileBytes) {
      _tile_loadd(4, value, 64);
      _tile_loadd(6, weight, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, weight + kTileBytes, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, value + steps * kTileBytes, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    alignas(64) float sums[4][kRowsOfTile * kRowsOfTile];
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
    finish(sums[0], 0, d);
    finish(sums[1], 1, d);
    finish(sums[2], 0, d + kRowsOfTile);
    finish(sums[3], 1, d + kRowsOfTile);
  }
}

std::array<Stage, 3> stages(const Attention& call) {
  const size_t tokens = up(call.tokens, kQueries), chunks = up(up(call.longest(), kDepth), kChunk) / kChunk;
  return {Stage{call.batch * tokens / kRowsOfTile, &begin}, Stage{call.batch * call.kv_heads * chunks, &convert},
          Stage{call.batch * call.heads * tokens / kQueries, &attend}};
}

}  // namespace

const AttentionKernels kAmxPromptAttention{&scratch, &stages};

}  // namespace edgellm::kernels
