#include "nbits_weights.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <thread>
#include <vector>

namespace edgellm::ort {

namespace {

constexpr size_t kGroup = 32;                  // columns of a block of the matrix
constexpr size_t kNumbersPerThread = 1 << 20;  // fewer are not worth a thread
constexpr float kLargestHalf = 65504;

float scale_at(const NBits& source, size_t index) {
  float scale;
  std::memcpy(&scale, source.scales + index, sizeof scale);
  return scale;
}

// The n with which scales times 2^n are kept.
int exponent_of(const NBits& source) {
  float largest = 0;
  for (size_t i = 0; i < source.rows * source.blocks(); ++i) largest = std::max(largest, std::abs(scale_at(source, i)));
  if (largest == 0 || !std::isfinite(largest)) return 0;
  const int n = 14 - std::ilogb(largest);
  return std::min(largest <= kLargestHalf ? std::max(n, 0) : n, 100);
}

// The codes of 32 columns, as a block of Q4_0 has them: those of the columns i and 16 + i in a byte.
void put_codes(const uint8_t* from, size_t bits, uint8_t* to) {
  if (bits == 8) {
    for (size_t i = 0; i < kGroup; ++i) to[i] = from[i] ^ 0x80;
    return;
  }
  for (size_t i = 0; i < kGroup / 4; ++i) {
    const unsigned low = from[i], high = from[kGroup / 4 + i];
    to[2 * i] = static_cast<uint8_t>((low & 15) | high << 4);
    to[2 * i + 1] = static_cast<uint8_t>(low >> 4 | (high & 0xf0));
  }
}

// A row in the form of the file that the matrix's type has.
void put_row(const NBits& source, size_t row, float power, uint8_t* to) {
  const size_t blocks = source.blocks(), code_bytes = kGroup * source.bits / 8;
  const uint8_t* codes = source.codes + row * source.columns * source.bits / 8;
  const uint8_t* zeros = source.zeros == nullptr ? nullptr : source.zeros + row * ((blocks + 1) / 2);
  for (size_t b = 0; b < blocks; ++b) {
    const uint16_t scale = kernels::to_half(scale_at(source, row * blocks + b) * power);
    for (size_t group = 0; group < source.block / kGroup; ++group, codes += code_bytes) {
      std::memcpy(to, &scale, sizeof scale);
      to += sizeof scale;
      if (zeros != nullptr) *to++ = zeros[b / 2] >> (b % 2 * 4) & 15;
      put_codes(codes, source.bits, to);
      to += code_bytes;
    }
  }
}

// Calls `work`, which throws nothing, for every index below `count`; by as many threads as can be had, up to `threads`.
void on_threads(size_t threads, size_t count, const std::function<void(size_t)>& work) {
  std::atomic<size_t> next{0};
  const auto run = [&] {
    for (size_t index = next++; index < count; index = next++) work(index);
  };
  std::vector<std::jthread> others;
  try {
    for (size_t t = 1; t < std::min(threads, count); ++t) others.emplace_back(run);
  } catch (const std::exception&) {
    run();  // no more threads, or no memory for one: those that are there do it all
  }
  run();
}

}  // namespace

Weights weights_of(const NBits& source, size_t threads) {
  const bool width = source.bits == 4 || (source.bits == 8 && source.zeros == nullptr);
  if (!width || source.block == 0 || source.block % kGroup != 0 || source.columns % source.block != 0) {
    throw std::invalid_argument("weights have 4 bits, or 8 without zeros, and blocks of n * 32 columns");
  }
  const int exponent = exponent_of(source);
  const float power = std::ldexp(1.0F, exponent);
  kernels::Type type = kernels::Type::q4_0;
  if (source.bits == 8) type = kernels::Type::q8_0;
  if (source.zeros != nullptr) type = kernels::Type::int4_zero;
  const size_t row_bytes = source.columns / kGroup * kernels::storage(type).bytes;
  const auto read = [&](size_t first, size_t count, std::byte* room) {
    for (size_t i = 0; i < count; ++i)
      put_row(source, first + i, power, reinterpret_cast<uint8_t*>(room + i * row_bytes));
    return room;
  };
  threads = std::min(threads, 1 + source.rows * source.columns / kNumbersPerThread);
  const auto parallel = [threads](size_t count, const std::function<void(size_t)>& work) {
    on_threads(threads, count, work);
  };
  return {std::make_unique<const kernels::Matrix>(type, source.rows, source.columns, read, parallel),
          std::ldexp(1.0F, -exponent)};
}

}  // namespace edgellm::ort
