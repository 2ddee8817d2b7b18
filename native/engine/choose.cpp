#include "choose.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace edgellm::engine {

namespace {

constexpr float kGreatest = std::numeric_limits<float>::max();

// The index of the first sum that exceeds `need`; if rounding lets none, of the first that equals the last one.
size_t reached(const std::vector<double>& sums, double need) {
  auto at = std::ranges::upper_bound(sums, need);
  if (at == sums.end()) at = std::ranges::lower_bound(sums, sums.back());
  return static_cast<size_t>(at - sums.begin());
}

// A logit below which every token is less than `share` as likely as one at `peak`, however logarithms are rounded.
float below(double peak, double share) {
  return std::nextafter(static_cast<float>(peak + std::log(share)), -std::numeric_limits<float>::infinity());
}

// What the filters have left of a row: first all of it that is at least `floor_`, then a sorted list.
class Survivors {
 public:
  Survivors(const LogitBlocks& row, const SamplingPlan& plan) : row_(row), peak_(row.peak()) {
    for (const auto& [filter, value] : plan.filters) {
      if (filter == Filter::min_p) ahead_ = below(peak_, value);
    }
    for (const auto& [filter, value] : plan.filters) apply(filter, value);
  }

  int32_t draw(double point, double temperature) {
    if (!sorted_ && floor_ == -kGreatest) {  // nothing was filtered: what is likeliest will do
      const double need = point * row_.mass(floor_, temperature);
      take_until(need, temperature);
      return list_[reached(sums(temperature), need)].id;
    }
    sort();
    const std::vector<double> cumulated = sums(temperature);
    return list_[reached(cumulated, point * cumulated.back())].id;
  }

 private:
  void apply(Filter filter, double value) {
    switch (filter) {
      case Filter::top_n_sigma:
        floor_ = std::max(floor_, static_cast<float>(peak_ - value * row_.deviation()));
        break;
      case Filter::top_k:
        take(row_.largest(static_cast<size_t>(value)));
        break;
      case Filter::typical_p:
        keep_typical(value);
        break;
      case Filter::top_p:
        keep_top_p(value);
        break;
      case Filter::min_p: {
        sort(below(peak_, value));
        const double largest = list_[0].logit;
        keep_while([=](const Candidate& each) { return exponential(each.logit - largest) >= value; });
        break;
      }
      case Filter::xtc_threshold:
        exclude_top_choices(value);
        break;
    }
  }

  // Sorted from now on; what is below `floor` may be missing.
  void sort(float floor = -kGreatest) {
    if (!sorted_) take(row_.from(std::max(floor, floor_)));
  }

  // These are left, as far as they are above the floor. They are sorted, with all that are larger.
  void take(std::vector<Candidate> list) {
    list_ = std::move(list);
    sorted_ = true;
    keep_while([this](const Candidate& each) { return each.logit >= floor_; });
  }

  template <typename Condition>
  void keep_while(Condition condition) {
    list_.erase(std::ranges::partition_point(list_, condition), list_.end());
  }

  // The largest logits, until their weights exceed `need`; all if they do not.
  void take_until(double need, double temperature) {
    for (size_t k = 64;; k *= 8) {
      list_ = row_.largest(k);
      if (list_.size() < k || sums(temperature).back() > need) break;
    }
    sorted_ = true;
  }

  // e^((logit - the largest) / temperature) of the list.
  std::vector<double> weights(double temperature) const {
    std::vector<double> weights(list_.size());
    const double largest = list_[0].logit;
    std::ranges::transform(list_, weights.begin(), [largest, temperature](const Candidate& each) {
      return exponential((each.logit - largest) / temperature);
    });
    return weights;
  }

  std::vector<double> sums(double temperature) const {
    std::vector<double> sums = weights(temperature);
    std::partial_sum(sums.begin(), sums.end(), sums.begin());
    return sums;
  }

  // Locally typical sampling (arXiv:2202.00666): surprises nearest the entropy first, until the mass is passed. A
  // surprise less the entropy is the mean of all logits, weighted by their probabilities, less the token's own.
  void keep_typical(double typical_p) {
    sort();
    const std::vector<double> weight = weights(1);
    const double total = std::accumulate(weight.begin(), weight.end(), 0.0), largest = list_[0].logit;
    double mean = 0;
    for (size_t i = 0; i < list_.size(); ++i) mean += weight[i] / total * (list_[i].logit - largest);
    std::vector<std::pair<double, size_t>> order;
    for (size_t i = 0; i < list_.size() && weight[i] > 0; ++i) {
      order.emplace_back(std::abs(list_[i].logit - largest - mean), i);
    }
    std::ranges::sort(order);
    double passed = 0;
    std::vector<bool> typical(list_.size());
    for (const auto& [distance, i] : order) {
      typical[i] = true;
      passed += weight[i] / total;
      if (passed > typical_p) break;
    }
    size_t kept = 0;
    for (size_t i = 0; i < list_.size(); ++i) {
      if (typical[i]) list_[kept++] = list_[i];
    }
    list_.resize(kept);
  }

  void keep_top_p(double top_p) {
    double total = 0;  // the mass that it counts in
    if (sorted_) {
      total = sums(1).back();
    } else {
      total = row_.mass(floor_, 1);
      // min_p, too, keeps a beginning of the sorted row, so the shorter one may be found first.
      if (ahead_ > floor_) {
        take(row_.from(ahead_));
      } else {
        take_until(top_p * total, 1);
        keep_while([this](const Candidate& each) { return each.logit >= floor_; });
      }
    }
    const std::vector<double> cumulated = sums(1);
    const auto passed = std::ranges::lower_bound(cumulated, top_p * total) - cumulated.begin();
    list_.resize(std::min(list_.size(), static_cast<size_t>(passed) + 1));
  }

  // XTC (text-generation-webui pull request 6335): of the tokens at least `threshold` likely, only the last stays.
  void exclude_top_choices(double threshold) {
    sort();
    const std::vector<double> weight = weights(1);
    const double least = threshold * std::accumulate(weight.begin(), weight.end(), 0.0);
    const auto likely = std::ranges::count_if(weight, [least](double each) { return each >= least; });
    if (likely > 1) list_.erase(list_.begin(), list_.begin() + (likely - 1));
  }

  const LogitBlocks& row_;
  double peak_;
  float ahead_ = -std::numeric_limits<float>::infinity();  // below it min_p will keep nothing, if the peak is left
  float floor_ = -kGreatest;
  bool sorted_ = false;
  std::vector<Candidate> list_;
};

}  // namespace

int32_t choose(const float* row, size_t size, const SamplingPlan& plan) {
  const LogitBlocks logits(row, size, plan.shifts, plan.mask);
  if (!logits.usable()) return -1;
  if (plan.temperature == 0) return logits.first();
  return Survivors(logits, plan).draw(plan.point, plan.temperature);
}

LogProbabilities log_probabilities(const float* row, size_t size, size_t token, size_t n) {
  const LogitBlocks logits(row, size, {}, nullptr);
  const double peak = logits.peak(), log_mass = std::log(logits.mass(-kGreatest, 1));
  LogProbabilities found{row[token] - peak - log_mass, {}};
  for (const auto& [id, logit] : logits.largest(n)) found.top.emplace_back(id, logit - peak - log_mass);
  return found;
}

}  // namespace edgellm::engine
