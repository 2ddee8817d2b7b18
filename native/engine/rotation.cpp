#include "rotation.h"

#include <cmath>
#include <stdexcept>
#include <utility>

namespace edgellm::engine {

Rotation::Rotation(std::vector<double> frequencies, double magnitude)
    : frequencies_(std::move(frequencies)), magnitude_(magnitude) {
  bool finite = std::isfinite(magnitude_) && !frequencies_.empty();
  for (const double frequency : frequencies_) finite = finite && std::isfinite(frequency);
  if (!finite) throw std::invalid_argument("a rotation needs frequencies and a magnitude that are finite");
}

void Rotation::reach(size_t length) {
  const size_t pairs = frequencies_.size();
  while (blocks_.size() * kBlock < length) {
    auto block = std::make_unique<float[]>(kBlock * 2 * pairs);
    for (size_t p = 0; p < kBlock; ++p) {
      const auto position = static_cast<double>(blocks_.size() * kBlock + p);
      float* row = block.get() + p * 2 * pairs;
      for (size_t i = 0; i < pairs; ++i) {
        row[i] = static_cast<float>(magnitude_ * std::cos(position * frequencies_[i]));
        row[pairs + i] = static_cast<float>(magnitude_ * std::sin(position * frequencies_[i]));
      }
    }
    blocks_.push_back(std::move(block));
  }
}

}  // namespace edgellm::engine
