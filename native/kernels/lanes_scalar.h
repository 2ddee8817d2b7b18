// Lanes: what the kernels are written in. Sixteen numbers side by side, and the few things that are done with them.
// Each instruction set has a file that defines these names in a namespace of its own; the sources of the kernels
// (*.inc) are compiled once in each. This one is plain C++, the reference for the others, and runs everywhere.
//
//   F  16 float32      I  16 int32
//   B  64 bytes, four to a lane, and Q  4 int8, the same in every lane
//   W  32 int16, two to a lane, and P  2 int16, the same in every lane
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "storage.h"

namespace edgellm::kernels::scalar {

constexpr size_t kLanes = 16;
constexpr size_t kMaxRows = 2;    // rows of X that share a reading of W
constexpr size_t kMaxSums = 2;    // of rows of X times tiles of W, one I and one F each, that fit the registers
constexpr size_t kMaxSums16 = 2;  // the same for types with 16 sub-blocks, whose codes want registers, too
constexpr size_t kPairSums = 4;   // sums of two F each, as attention has them, that fit the registers
constexpr size_t kWordSums = 4;   // likewise of I

struct F {
  float v[16];
};
struct I {
  int32_t v[16];
};
struct B {
  uint8_t v[64];
};
struct Q {
  int8_t v[4];
};
struct W {
  int16_t v[32];
};
struct P {
  int16_t v[2];
};

template <typename V, typename Make>
inline V each(Make make) {
  V out;
  for (size_t i = 0; i < sizeof out.v / sizeof out.v[0]; ++i) out.v[i] = make(i);
  return out;
}

// Numbers

inline F set(float x) {
  return each<F>([&](size_t) { return x; });
}
inline F load(const float* x) {
  return each<F>([&](size_t i) { return x[i]; });
}
inline F load(const float* x, size_t n) {
  return each<F>([&](size_t i) { return i < n ? x[i] : 0.0F; });
}
// (x[0], x[1]) eight times.
inline F set_pair(const float* x) {
  return each<F>([&](size_t i) { return x[i % 2]; });
}
inline void store(float* to, F x) { std::memcpy(to, x.v, sizeof x.v); }
inline void store(float* to, F x, size_t n) { std::memcpy(to, x.v, n * sizeof(float)); }
inline F add(F a, F b) {
  return each<F>([&](size_t i) { return a.v[i] + b.v[i]; });
}
inline F sub(F a, F b) {
  return each<F>([&](size_t i) { return a.v[i] - b.v[i]; });
}
inline F mul(F a, F b) {
  return each<F>([&](size_t i) { return a.v[i] * b.v[i]; });
}
inline F div(F a, F b) {
  return each<F>([&](size_t i) { return a.v[i] / b.v[i]; });
}
inline F fma(F a, F b, F c) {
  return each<F>([&](size_t i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
// c - a b.
inline F fnma(F a, F b, F c) {
  return each<F>([&](size_t i) { return std::fma(-a.v[i], b.v[i], c.v[i]); });
}
// b where either is NaN.
inline F max(F a, F b) {
  return each<F>([&](size_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline F min(F a, F b) {
  return each<F>([&](size_t i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline F abs(F a) {
  return each<F>([&](size_t i) { return std::fabs(a.v[i]); });
}
// Over the lanes, in halves: (0 + 8) + (4 + 12) and so on.
inline float sum(F a) {
  for (size_t n = 8; n > 0; n /= 2)
    for (size_t i = 0; i < n; ++i) a.v[i] += a.v[i + n];
  return a.v[0];
}
// The sums of neighbours: those of a in the first half, those of b in the second.
inline F add_pairs(F a, F b) {
  return each<F>([&](size_t i) { return i < 8 ? a.v[2 * i] + a.v[2 * i + 1] : b.v[2 * i - 16] + b.v[2 * i - 15]; });
}
// To a whole number, the nearest, ties to even.
inline F round(F a) {
  return each<F>([&](size_t i) { return std::nearbyintf(a.v[i]); });
}
// a 2^n for whole n, |n| <= 200; NaN where n is.
inline F times_power(F a, F n) {
  return each<F>([&](size_t i) { return std::isnan(n.v[i]) ? n.v[i] : std::ldexp(a.v[i], static_cast<int>(n.v[i])); });
}
inline float most(F a) { return *std::max_element(a.v, a.v + 16); }

inline I set_int(int32_t x) {
  return each<I>([&](size_t) { return x; });
}
inline I add(I a, I b) {
  return each<I>([&](size_t i) { return a.v[i] + b.v[i]; });
}
inline I mul(I a, I b) {
  return each<I>([&](size_t i) { return a.v[i] * b.v[i]; });
}
// a * 2^n.
template <int n>
inline I up(I a) {
  return each<I>([&](size_t i) { return a.v[i] * (1 << n); });
}
inline int32_t sum(I a) {
  int32_t all = 0;
  for (const int32_t x : a.v) all += x;
  return all;
}
inline F to_float(I a) {
  return each<F>([&](size_t i) { return static_cast<float>(a.v[i]); });
}
// To the nearest, ties to even.
inline I to_int(F a) {
  return each<I>([&](size_t i) { return static_cast<int32_t>(std::nearbyintf(a.v[i])); });
}

// 16 numbers of 16 bits: halves (IEEE 754 binary16) and bfloat16.
inline F load_halves(const uint16_t* x) {
  return each<F>([&](size_t i) { return from_half(x[i]); });
}
inline F load_brains(const uint16_t* x) {
  return each<F>([&](size_t i) { return std::bit_cast<float>(static_cast<uint32_t>(x[i]) << 16); });
}

// 16 bytes.
inline I load_int8(const int8_t* x) {
  return each<I>([&](size_t i) { return int32_t{x[i]}; });
}
inline I load_uint8(const uint8_t* x) {
  return each<I>([&](size_t i) { return int32_t{x[i]}; });
}
inline void store_int8(int8_t* to, I x) {  // saturated
  for (size_t i = 0; i < 16; ++i) to[i] = static_cast<int8_t>(std::clamp(x.v[i], -128, 127));
}

// Words

inline W load_words(const int16_t* x) {
  W out;
  std::memcpy(out.v, x, sizeof out.v);
  return out;
}
inline W load_words(const int8_t* x) {
  return each<W>([&](size_t i) { return int16_t{x[i]}; });
}
inline P load_two(const int16_t* x) { return {{x[0], x[1]}}; }
inline void store_int16(int16_t* to, I x) {  // saturated
  for (size_t i = 0; i < 16; ++i) to[i] = static_cast<int16_t>(std::clamp(x.v[i], -32768, 32767));
}
// sum + the two products of each lane, modulo 2^32.
inline I dot(I sum, W words, P x) {
  return each<I>([&](size_t i) {
    const auto product = [&](size_t j) { return static_cast<uint32_t>(int32_t{words.v[2 * i + j]} * int32_t{x.v[j]}); };
    return static_cast<int32_t>(static_cast<uint32_t>(sum.v[i]) + product(0) + product(1));
  });
}

// Codes

inline B load_codes(const uint8_t* at) {
  B out;
  std::memcpy(out.v, at, sizeof out.v);
  return out;
}
inline B set_codes(uint8_t x) {
  return each<B>([&](size_t) { return x; });
}
inline B bit_and(B a, B b) {
  return each<B>([&](size_t i) { return static_cast<uint8_t>(a.v[i] & b.v[i]); });
}
inline B bit_or(B a, B b) {
  return each<B>([&](size_t i) { return static_cast<uint8_t>(a.v[i] | b.v[i]); });
}
// Bits of each byte that are moved down or up, n < 8; what leaves a byte is lost.
template <int n>
inline B down(B a) {
  return each<B>([&](size_t i) { return static_cast<uint8_t>(a.v[i] >> n); });
}
template <int n>
inline B up(B a) {
  return each<B>([&](size_t i) { return static_cast<uint8_t>(a.v[i] << n); });
}
// table[code] for codes below 16; table has 16 bytes.
inline B look_up(const uint8_t* table, B codes) {
  return each<B>([&](size_t i) { return table[codes.v[i] & 15]; });
}

inline Q load_four(const int8_t* x) {
  Q out;
  std::memcpy(out.v, x, sizeof out.v);
  return out;
}
// sum + the four products of each lane, exact. dot: of codes up to 127; dot_wide: up to 255, or, with
// kSignedCodes, of what these are above 128.
inline I dot(I sum, B codes, Q x) {
  return each<I>([&](size_t i) {
    int32_t all = sum.v[i];
    for (size_t j = 0; j < 4; ++j) all += int32_t{codes.v[4 * i + j]} * int32_t{x.v[j]};
    return all;
  });
}
constexpr bool kSignedCodes = false;
inline I dot_wide(I sum, B codes, Q x) { return dot(sum, codes, x); }

inline void prefetch(const void*) {}
inline void prefetch_far(const void*) {}  // into the second cache, where more requests wait at once

}  // namespace edgellm::kernels::scalar
