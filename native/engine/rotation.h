// The angles of rotary positions (https://arxiv.org/abs/2104.09864): position p turns the pair i of a head by
// p * frequency i.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace edgellm::engine {

class Rotation {
 public:
  // What cos and sin are multiplied with. std::invalid_argument for frequencies that are no numbers, or none.
  Rotation(std::vector<double> frequencies, double magnitude);
  size_t rotary() const { return 2 * frequencies_.size(); }  // numbers of a head that turn

  // Makes the tables reach the positions below `length`; std::bad_alloc.
  void reach(size_t length);
  // Of a position that they reach: (rotary / 2,) each.
  const float* cos(size_t position) const { return row(position); }
  const float* sin(size_t position) const { return row(position) + frequencies_.size(); }

 private:
  static constexpr size_t kBlock = 64;  // positions that are computed together
  const float* row(size_t position) const { return blocks_[position / kBlock].get() + position % kBlock * rotary(); }

  std::vector<double> frequencies_;
  double magnitude_;
  std::vector<std::unique_ptr<float[]>> blocks_;
};

}  // namespace edgellm::engine
