// Tokens chosen from rows of all kinds, under sanitizers; they are the same on every machine. Which ones they are is
// tested from Python.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "../engine/choose.h"

namespace {

using edgellm::engine::choose;
using edgellm::engine::Filter;
using edgellm::engine::SamplingPlan;

class Cases {
 public:
  // Whether a token that is possible was chosen, or none where none is.
  bool holds() {
    const size_t size = 1 + number() % 300;
    std::vector<float> row(size);
    const double scale = std::ldexp(1.0, static_cast<int>(number() % 16) - 8);
    for (float& logit : row) logit = static_cast<float>(scale * (uniform() + uniform() + uniform() - 1.5));
    if (one_in(4)) {
      for (float& logit : row) logit = one_in(2) ? -INFINITY : logit;
    }
    if (one_in(20)) row[number() % size] = NAN;
    if (one_in(20)) row[number() % size] = INFINITY;

    std::vector<int64_t> ids;
    std::vector<double> amounts;
    for (size_t id = 0; id < size; ++id) {
      if (!one_in(10)) continue;
      ids.push_back(static_cast<int64_t>(id));
      amounts.push_back(one_in(10) ? INFINITY : one_in(10) ? 1e300 : uniform());
    }
    std::vector<uint32_t> mask((size + 31) / 32);
    for (uint32_t& word : mask) word = one_in(3) ? 0 : one_in(3) ? UINT32_MAX : number();
    SamplingPlan plan{{}, one_in(2) ? mask.data() : nullptr, one_in(4) ? 0 : 2 * uniform(), {}, uniform()};
    if (one_in(2)) plan.shifts.push_back({ids.data(), amounts.data(), ids.size(), one_in(2) ? 1.3 : 1.0});
    if (one_in(3)) plan.filters.emplace_back(Filter::top_n_sigma, 3 * uniform());
    if (one_in(3)) plan.filters.emplace_back(Filter::top_k, 1 + number() % 100);
    for (const Filter filter : {Filter::typical_p, Filter::top_p, Filter::min_p, Filter::xtc_threshold}) {
      if (one_in(3)) plan.filters.emplace_back(filter, uniform());
    }

    const int32_t token = choose(row.data(), size, plan);
    sum_ = 31 * sum_ + static_cast<uint32_t>(token);
    const auto found = edgellm::engine::log_probabilities(row.data(), size, number() % size, number() % 20);
    if (token < 0) return token == -1;
    const auto id = static_cast<size_t>(token);
    return id < size && row[id] > -INFINITY && (plan.mask == nullptr || (mask[id / 32] >> id % 32 & 1) != 0) &&
           found.top.size() < 20;
  }

  uint32_t sum() const { return sum_; }  // of all tokens

 private:
  uint32_t number() { return static_cast<uint32_t>(random_()); }
  bool one_in(uint32_t count) { return number() % count == 0; }
  double uniform() { return number() * 0x1p-32; }

  std::mt19937 random_{1};
  uint32_t sum_ = 0;
};

}  // namespace

int main() {
  Cases cases;
  int passed = 0, failed = 0;
  for (int i = 0; i < 5000; ++i) ++(cases.holds() ? passed : failed);
  std::printf("tokens %u\n%d passed, %d failed\n", cases.sum(), passed, failed);
  return failed != 0;
}
