// Attention of one token of each text, in 32-bit floats.
#include <immintrin.h>

#include <algorithm>

#include "avx512.h"
#include "instruction_sets.h"

namespace edgellm::kernels {

namespace {

constexpr size_t kChunk = 128;  // keys of one index; a head of 64 numbers for each fits the L1 cache
constexpr size_t kLanes = 16;

// The scratch memory: rotated queries (batch, heads, size), then of every head and chunk the largest score, the sum of
// weights and the weighted values.
struct Scratch {
  explicit Scratch(const Attention& call)
      : chunks((call.longest() + kChunk - 1) / kChunk),
        part(call.size + kLanes),
        queries(reinterpret_cast<float*>(call.scratch)),
        parts(queries + call.batch * call.heads * call.size) {}

  size_t chunks, part;
  float *queries, *parts;
};

size_t scratch(const Attention& call) {
  const size_t chunks = (call.longest() + kChunk - 1) / kChunk;
  return call.batch * call.heads * (call.size + chunks * (call.size + kLanes)) * sizeof(float);
}

void begin(const Attention& call, size_t b) {
  const Scratch scratch(call);
  const auto position = static_cast<size_t>(call.last[b]);
  for (size_t head = 0; head < call.heads; ++head) {
    const float* from = call.query + b * call.query_stride + head * call.size;
    rotate(call, from, position, scratch.queries + (b * call.heads + head) * call.size);
  }
  append(call, b, 0, position);
}

// The sums of the numbers of 16 vectors each.
inline __m512 sums(const __m512 (&v)[kLanes]) {
  __m512 four[4];  // in every 128-bit lane the sums of that lane of four vectors
  for (size_t i = 0; i < 4; ++i) {
    __m512 two[2];
    for (size_t j = 0; j < 2; ++j) {
      const __m512 a = v[4 * i + 2 * j], b = v[4 * i + 2 * j + 1];
      two[j] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    }
    const __m512d a = _mm512_castps_pd(two[0]), b = _mm512_castps_pd(two[1]);
    four[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  const auto fold = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  return fold(fold(four[0], four[1]), fold(four[2], four[3]));
}

// The keys of a chunk that the heads [head, head + kHeads) of one text see, which share their keys and values: the
// positions [first, stop), where `start` begins the chunk. kVectors times 16 numbers of a head are summed at once.
template <size_t kHeads, size_t kVectors>
void attend_to(const Attention& call, const float* keys, const float* values, const float* queries, size_t start,
               size_t first, size_t stop, float* part, size_t next_part) {
  constexpr size_t kWidth = kVectors * kLanes;
  alignas(64) float weights[kHeads][kChunk];
  __m512 most[kHeads];
  for (size_t h = 0; h < kHeads; ++h) most[h] = _mm512_set1_ps(kNever);
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (size_t base = start; base < stop; base += kLanes) {
    __m512 dots[kHeads][kLanes];
    for (size_t d = 0; d < call.size; d += kWidth) {
      __m512 query[kHeads][kVectors];
      for (size_t h = 0; h < kHeads; ++h) {
        for (size_t v = 0; v < kVectors; ++v) query[h][v] = _mm512_loadu_ps(queries + h * call.size + d + v * kLanes);
      }
      for (size_t i = 0; i < kLanes; ++i) {
        const float* key = keys + std::min(base + i, stop - 1) * call.size + d;
        __m512 sum[kHeads];
        for (size_t h = 0; h < kHeads; ++h) sum[h] = d == 0 ? _mm512_setzero_ps() : dots[h][i];
        for (size_t v = 0; v < kVectors; ++v) {
          const __m512 k = _mm512_loadu_ps(key + v * kLanes);
          for (size_t h = 0; h < kHeads; ++h) sum[h] = _mm512_fmadd_ps(k, query[h][v], sum[h]);
        }
        for (size_t h = 0; h < kHeads; ++h) dots[h][i] = sum[h];
      }
    }
    const __m512i at = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(base)), lanes);
    const __mmask16 here = _mm512_cmpge_epi32_mask(at, _mm512_set1_epi32(static_cast<int>(first))) &
                           _mm512_cmplt_epi32_mask(at, _mm512_set1_epi32(static_cast<int>(stop)));
    for (size_t h = 0; h < kHeads; ++h) {
      const __m512 score = _mm512_mask_mul_ps(_mm512_set1_ps(kNever), here, sums(dots[h]), _mm512_set1_ps(call.scale));
      most[h] = _mm512_max_ps(most[h], score);
      _mm512_store_ps(weights[h] + (base - start), score);
    }
  }
  for (size_t h = 0; h < kHeads; ++h) {
    const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most[h]));
    __m512 total = _mm512_setzero_ps();
    for (size_t base = start; base < stop; base += kLanes) {
      const __m512 weight = exp_below_0(_mm512_sub_ps(_mm512_load_ps(weights[h] + (base - start)), top));
      total = _mm512_add_ps(total, weight);
      _mm512_store_ps(weights[h] + (base - start), weight);
    }
    part[h * next_part] = _mm512_cvtss_f32(top);
    part[h * next_part + 1] = _mm512_reduce_add_ps(total);
  }
  for (size_t d = 0; d < call.size; d += kWidth) {
    __m512 sum[kHeads][kVectors];
    for (size_t h = 0; h < kHeads; ++h) {
      for (size_t v = 0; v < kVectors; ++v) sum[h][v] = _mm512_setzero_ps();
    }
    for (size_t at = first; at < stop; ++at) {
      const float* value = values + at * call.size + d;
      for (size_t v = 0; v < kVectors; ++v) {
        const __m512 number = _mm512_loadu_ps(value + v * kLanes);
        for (size_t h = 0; h < kHeads; ++h) {
          sum[h][v] = _mm512_fmadd_ps(_mm512_set1_ps(weights[h][at - start]), number, sum[h][v]);
        }
      }
    }
    for (size_t h = 0; h < kHeads; ++h) {
      for (size_t v = 0; v < kVectors; ++v) _mm512_storeu_ps(part + h * next_part + kLanes + d + v * kLanes, sum[h][v]);
    }
  }
}

template <size_t kHeads>
void attend_heads(const Attention& call, const float* keys, const float* values, const float* queries, size_t start,
                  size_t first, size_t stop, float* part, size_t next_part) {
  const bool four = call.size % (4 * kLanes) == 0;
  (four ? attend_to<kHeads, 4> : attend_to<kHeads, 2>)(call, keys, values, queries, start, first, stop, part,
                                                       next_part);
}

void attend(const Attention& call, size_t index) {
  const Scratch scratch(call);
  const size_t chunk = index % scratch.chunks, kv = index / scratch.chunks % call.kv_heads;
  const size_t b = index / scratch.chunks / call.kv_heads, group = call.heads / call.kv_heads;
  const auto position = static_cast<size_t>(call.last[b]);
  const size_t seen = first_seen(call, position), start = chunk * kChunk;
  if (start > position || start + kChunk <= seen) return;
  const size_t first = std::max(start, seen), stop = std::min(start + kChunk, position + 1);
  const size_t cell = (b * call.kv_heads + kv) * call.capacity * call.size;
  const size_t next_part = scratch.chunks * scratch.part;
  for (size_t done = 0, heads; done < group; done += heads) {
    heads = std::min<size_t>(group - done, 4);
    constexpr decltype(&attend_heads<1>) kAttend[] = {&attend_heads<1>, &attend_heads<2>, &attend_heads<3>,
                                                      &attend_heads<4>};
    const size_t head = b * call.heads + kv * group + done;
    float* part = scratch.parts + head * next_part + chunk * scratch.part;
    kAttend[heads - 1](call, call.keys + cell, call.values + cell, scratch.queries + head * call.size, start, first,
                       stop, part, next_part);
  }
}

void join(const Attention& call, size_t b) {
  const Scratch scratch(call);
  const auto position = static_cast<size_t>(call.last[b]);
  const size_t from = first_seen(call, position) / kChunk, stop = position / kChunk + 1;
  for (size_t head = 0; head < call.heads; ++head) {
    const float* parts = scratch.parts + (b * call.heads + head) * scratch.chunks * scratch.part;
    float most = kNever;
    for (size_t chunk = from; chunk < stop; ++chunk) most = std::max(most, parts[chunk * scratch.part]);
    float* out = call.out + (b * call.heads + head) * call.size;
    std::fill(out, out + call.size, 0.0F);
    float total = 0;
    for (size_t chunk = from; chunk < stop; ++chunk) {
      const float* part = parts + chunk * scratch.part;
      const __m512 share = exp_below_0(_mm512_set1_ps(part[0] - most));
      total += part[1] * _mm512_cvtss_f32(share);
      for (size_t d = 0; d < call.size; d += kLanes) {
        const __m512 sum = _mm512_fmadd_ps(share, _mm512_loadu_ps(part + kLanes + d), _mm512_loadu_ps(out + d));
        _mm512_storeu_ps(out + d, sum);
      }
    }
    for (size_t d = 0; d < call.size; d += kLanes) {
      _mm512_storeu_ps(out + d, _mm512_div_ps(_mm512_loadu_ps(out + d), _mm512_set1_ps(total)));
    }
  }
}

std::array<Stage, 3> stages(const Attention& call) {
  const size_t chunks = (call.longest() + kChunk - 1) / kChunk;
  return {Stage{call.batch, &begin}, Stage{call.batch * call.kv_heads * chunks, &attend}, Stage{call.batch, &join}};
}

}  // namespace

const AttentionKernels kAvx512SingleAttention{&scratch, &stages};

}  // namespace edgellm::kernels
