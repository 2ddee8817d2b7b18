#include "logit_blocks.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numbers>
#include <numeric>
#include <stdexcept>
#include <string>

// Iterations may run side by side; what they sum up or compare is the same in any order.
#if defined(__GNUC__)
#define EDGELLM_SIMD(clauses) EDGELLM_PRAGMA(omp simd clauses)
#define EDGELLM_PRAGMA(words) _Pragma(#words)
#else
#define EDGELLM_SIMD(clauses)
#endif

namespace edgellm::engine {

namespace {

#if defined(__GNUC__) && defined(__x86_64__)
template <typename Loop>
__attribute__((target("avx2"), flatten)) void in_avx2(const Loop& loop) {
  loop();
}

template <typename Loop>
__attribute__((target("avx512f,avx512dq,avx512vl"), flatten)) void in_avx512(const Loop& loop) {
  loop();
}

// Runs a loop, in vectors as wide as the processor has them. They give the same numbers.
template <typename Loop>
void run(const Loop& loop) {
  static const bool avx512 = __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0;
  static const bool avx2 = __builtin_cpu_supports("avx2") != 0;
  avx512 ? in_avx512(loop) : avx2 ? in_avx2(loop) : loop();
}
#else
template <typename Loop>
void run(const Loop& loop) {
  loop();
}
#endif

constexpr float kForbidden = -std::numeric_limits<float>::infinity();
constexpr float kGreatest = std::numeric_limits<float>::max();
constexpr size_t kWords = 2;  // of a mask, for a block

// A number for each float, in their order; -0 is 0.
uint32_t rank_of(float logit) {
  const auto bits = std::bit_cast<uint32_t>(logit + 0.0F);
  return bits ^ ((bits >> 31) != 0 ? 0xFFFFFFFFU : 0x80000000U);
}

float logit_of(uint32_t rank) { return std::bit_cast<float>(rank ^ ((rank >> 31) != 0 ? 0x80000000U : 0xFFFFFFFFU)); }

// A number for each candidate, in their order: by logit, then by falling id.
uint64_t key_of(float logit, size_t id) { return (uint64_t{rank_of(logit)} << 32) | ~static_cast<uint32_t>(id); }

Candidate candidate_of(uint64_t key) {
  return {static_cast<int32_t>(~static_cast<uint32_t>(key)), logit_of(static_cast<uint32_t>(key >> 32))};
}

std::vector<Candidate> candidates_of(const std::vector<uint64_t>& keys) {
  std::vector<Candidate> found(keys.size());
  std::ranges::transform(keys, found.begin(), candidate_of);
  return found;
}

}  // namespace

double exponential(double x) {
  // e^x = 2^k e^r with |r| <= ln(2) / 2; adding `kRound` rounds to an integer, which then lies in the lowest bits.
  constexpr double kRound = 0x1.8p52, kLeast = -708;
  constexpr double kHigh = 0x1.62e42fep-1, kLow = std::numbers::ln2 - kHigh;
  const double y = x < kLeast ? kLeast : x;
  const double shifted = y * std::numbers::log2e + kRound, k = shifted - kRound;
  const double r = (y - k * kHigh) - k * kLow;
  // The series up to r^13 / 13!, its odd and its even part side by side.
  const double square = r * r;
  double odd = square * (1 / 6227020800.0) + 1 / 39916800.0, even = square * (1 / 479001600.0) + 1 / 3628800.0;
  odd = odd * square + 1 / 362880.0;
  even = even * square + 1 / 40320.0;
  odd = odd * square + 1 / 5040.0;
  even = even * square + 1 / 720.0;
  odd = odd * square + 1 / 120.0;
  even = even * square + 1 / 24.0;
  odd = odd * square + 1 / 6.0;
  even = even * square + 1 / 2.0;
  const uint64_t power = x < kLeast ? 0 : (std::bit_cast<uint64_t>(shifted) + 1023) << 52;
  return (1 + (r + square * (even + r * odd))) * std::bit_cast<double>(power);
}

LogitBlocks::LogitBlocks(const float* row, size_t size, const std::vector<Shift>& shifts, const uint32_t* mask)
    : row_(row), blocks_((size + kBlock - 1) / kBlock), maxima_(blocks_.size()) {
  for (size_t block = 0; block < blocks_.size(); ++block) blocks_[block] = row + block * kBlock;
  size_t most = 1;  // blocks that may be changed
  for (const Shift& shift : shifts) most += shift.count;
  most = mask != nullptr ? blocks_.size() : std::min(most, blocks_.size());
  own_ = std::make_unique_for_overwrite<float[]>(most * kBlock);
  if (const size_t rest = size % kBlock; rest != 0) {
    float* last = own_.get() + kBlock * owned_++;
    std::copy_n(row + size - rest, rest, last);
    std::fill(last + rest, last + kBlock, kForbidden);
    blocks_.back() = last;
  }
  for (const Shift& each : shifts) shift(each, size);
  if (mask != nullptr) allow(mask, size);

  uint32_t strange = 0;
  run([&] {
    for (size_t block = 0; block < blocks_.size(); ++block) {
      const float* x = blocks_[block];
      float most_here = kForbidden;
      EDGELLM_SIMD(reduction(max : most_here) reduction(| : strange))
      for (size_t i = 0; i < kBlock; ++i) {
        most_here = x[i] > most_here ? x[i] : most_here;
        strange |= static_cast<uint32_t>(x[i] != x[i]);
      }
      maxima_[block] = most_here;
    }
  });
  peak_ = maxima_.empty() ? kForbidden : *std::ranges::max_element(maxima_);
  numbers_ = strange == 0;
}

bool LogitBlocks::usable() const { return numbers_ && std::isfinite(peak_); }

// Memory of its own for a block, which holds the logits where it has been asked for before.
float* LogitBlocks::room(size_t block) {
  if (blocks_[block] == row_ + block * kBlock) return own_.get() + kBlock * owned_++;
  return own_.get() + (blocks_[block] - own_.get());
}

float* LogitBlocks::own(size_t block) {
  const float* x = blocks_[block];
  float* to = room(block);
  if (to != x) std::copy_n(x, kBlock, to);
  blocks_[block] = to;
  return to;
}

void LogitBlocks::shift(const Shift& shift, size_t size) {
  for (size_t i = 0; i < shift.count; ++i) {
    const int64_t id = shift.ids[i];
    if (id < 0 || static_cast<uint64_t>(id) >= size) {
      throw std::out_of_range("a row of " + std::to_string(size) + " logits has none for token " + std::to_string(id));
    }
    float& logit = own(static_cast<size_t>(id) / kBlock)[static_cast<size_t>(id) % kBlock];
    double shifted = logit;
    if (shift.repeat != 1) shifted = shifted > 0 ? shifted / shift.repeat : shifted * shift.repeat;
    shifted -= shift.amounts[i];
    logit = shifted > kGreatest ? kGreatest : static_cast<float>(shifted);
  }
}

void LogitBlocks::allow(const uint32_t* mask, size_t size) {
  static const std::array<float, kBlock> nothing = [] {
    std::array<float, kBlock> filled;
    filled.fill(kForbidden);
    return filled;
  }();
  const size_t words = (size + 31) / 32;
  run([&] {
    for (size_t block = 0; block < blocks_.size(); ++block) {
      const size_t first = block * kWords;
      const std::array<uint32_t, kWords> allowed{mask[first], first + 1 < words ? mask[first + 1] : 0};
      if ((allowed[0] | allowed[1]) == 0) {
        blocks_[block] = nothing.data();
      } else if ((allowed[0] & allowed[1]) != ~uint32_t{0}) {
        const float* x = blocks_[block];
        float* to = room(block);
        blocks_[block] = to;
        for (const uint32_t word : allowed) {
          EDGELLM_SIMD()
          for (size_t i = 0; i < kBlock / kWords; ++i) to[i] = (word >> i & 1) != 0 ? x[i] : kForbidden;
          x += kBlock / kWords;
          to += kBlock / kWords;
        }
      }
    }
  });
}

int32_t LogitBlocks::first() const {
  const auto block = static_cast<size_t>(std::ranges::find(maxima_, peak_) - maxima_.begin());
  const float* x = blocks_[block];
  return static_cast<int32_t>(block * kBlock + static_cast<size_t>(std::find(x, x + kBlock, peak_) - x));
}

size_t LogitBlocks::count_from(float floor) const {
  uint32_t count = 0;
  run([&] {
    for (const float* x : blocks_) {
      EDGELLM_SIMD(reduction(+ : count))
      for (size_t i = 0; i < kBlock; ++i) count += static_cast<uint32_t>(x[i] >= floor);
    }
  });
  return count;
}

std::vector<uint64_t> LogitBlocks::keys(float floor) const {
  floor = std::max(floor, -kGreatest);
  std::vector<uint64_t> found(4 * kBlock);
  size_t count = 0;
  for (size_t block = 0; block < blocks_.size(); ++block) {
    if (!(maxima_[block] >= floor)) continue;
    if (found.size() < count + kBlock) found.resize(2 * found.size());
    const float* x = blocks_[block];
    for (size_t i = 0; i < kBlock; ++i) {
      found[count] = key_of(x[i], block * kBlock + i);
      count += static_cast<size_t>(x[i] >= floor);
    }
  }
  found.resize(count);
  return found;
}

std::vector<Candidate> LogitBlocks::from(float floor) const {
  std::vector<uint64_t> found = keys(floor);
  std::ranges::sort(found, std::greater());
  return candidates_of(found);
}

float LogitBlocks::floor(size_t k) const {
  if (k <= maxima_.size()) {  // k logits reach the k-th largest maximum, and hardly more
    std::vector<float> maxima = maxima_;
    const auto at = maxima.begin() + static_cast<std::ptrdiff_t>(k) - 1;
    std::ranges::nth_element(maxima, at, std::greater());
    return *at;
  }
  uint32_t low = rank_of(-kGreatest), high = rank_of(peak_) + 1;  // k reach `low`, if so many are there, and not `high`
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    const size_t count = count_from(logit_of(middle));
    (count < k ? high : low) = middle;
    if (count >= k && count - k <= k / 4) break;
  }
  return logit_of(low);
}

std::vector<Candidate> LogitBlocks::largest(size_t k) const {
  if (k == 0) return {};
  std::vector<uint64_t> found = keys(floor(k));
  if (found.size() > k) {
    std::ranges::nth_element(found, found.begin() + static_cast<std::ptrdiff_t>(k), std::greater());
    found.resize(k);
  }
  std::ranges::sort(found, std::greater());
  return candidates_of(found);
}

template <typename Value>
double LogitBlocks::sum(float floor, const Value& value) const {
  std::array<double, 8> sums{};
  run([&] {
    std::array<double, kBlock> values;
    for (size_t block = 0; block < blocks_.size(); ++block) {
      if (!(maxima_[block] >= floor)) continue;
      const float* x = blocks_[block];
      EDGELLM_SIMD()
      for (size_t i = 0; i < kBlock; ++i) values[i] = value(x[i]);
      for (size_t i = 0; i < kBlock; i += sums.size()) {
        for (size_t j = 0; j < sums.size(); ++j) sums[j] += values[i + j];
      }
    }
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

double LogitBlocks::mass(float floor, double temperature) const {
  const double peak = peak_;
  const auto distance = [floor, peak](float x) { return (x >= floor ? double{x} : -HUGE_VAL) - peak; };
  if (temperature == 1) return sum(floor, [distance](float x) { return exponential(distance(x)); });
  return sum(floor, [distance, temperature](float x) { return exponential(distance(x) / temperature); });
}

double LogitBlocks::deviation() const {
  const double count = sum(-kGreatest, [](float x) { return x >= -kGreatest ? 1.0 : 0.0; });
  const double mean = sum(-kGreatest, [](float x) { return x >= -kGreatest ? double{x} : 0.0; }) / count;
  const double squares = sum(-kGreatest, [mean](float x) {
    const double distance = x >= -kGreatest ? x - mean : 0.0;
    return distance * distance;
  });
  return std::sqrt(squares / count);
}

}  // namespace edgellm::engine
