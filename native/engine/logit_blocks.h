// A row of logits in blocks, each with its largest one: what is sought among the likely tokens need not read the
// others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace edgellm::engine {

// A token with its logit.
struct Candidate {
  int32_t id;
  float logit;
};

// Lowers the logits of `count` distinct tokens: those above 0 are divided by `repeat`, others multiplied by it, then
// `amounts` are subtracted.
struct Shift {
  const int64_t* ids;
  const double* amounts;
  size_t count;
  double repeat;
};

// e^x for x <= 0, within 2^-52 of it; 0 below -708. The same bits on every machine.
double exponential(double x);

class LogitBlocks {
 public:
  // The row is read, never written, and must outlive this. `mask` may be null; bit i % 32 of its word i / 32 says
  // whether token i is allowed. std::out_of_range for the id of a shift that is not in the row.
  LogitBlocks(const float* row, size_t size, const std::vector<Shift>& shifts, const uint32_t* mask);

  // The largest logit, whatever is no number; false where something is none, it is infinite, or nothing is allowed.
  float peak() const { return peak_; }
  bool usable() const;

  // The smallest id of those with the largest logit, which is usable.
  int32_t first() const;

  // What is at least `floor` and above -infinity, by falling logit, then by id.
  std::vector<Candidate> from(float floor) const;
  // The first k of these; fewer where there are no more.
  std::vector<Candidate> largest(size_t k) const;

  // The sum of e^((logit - peak) / temperature) over logits that are at least `floor`.
  double mass(float floor, double temperature) const;
  // The standard deviation of those above -infinity.
  double deviation() const;

 private:
  static constexpr size_t kBlock = 64;

  float* room(size_t block);
  float* own(size_t block);  // a block that may be written
  void shift(const Shift& shift, size_t size);
  void allow(const uint32_t* mask, size_t size);
  size_t count_from(float floor) const;
  std::vector<uint64_t> keys(float floor) const;  // of what is at least that, unsorted
  float floor(size_t k) const;                    // one that k logits reach, if there are so many, and not many more
  // The sum of the values of all logits, in the same order everywhere; where a block has none above `floor`, they are
  // 0.
  template <typename Value>
  double sum(float floor, const Value& value) const;

  const float* row_;
  std::vector<const float*> blocks_;  // of kBlock logits each, the last one with -infinity behind its end
  std::vector<float> maxima_;         // of each block
  std::unique_ptr<float[]> own_;      // blocks that are not the row's
  size_t owned_ = 0;
  float peak_;
  bool numbers_;  // there is no NaN
};

}  // namespace edgellm::engine
