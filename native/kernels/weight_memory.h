// Memory for weights, which every pass reads from end to end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace edgellm::kernels {

// `bytes` bytes that begin at a multiple of 64; std::bad_alloc. Small matrices lie together in one piece of
// SystemMemory, which is given back with the last of them.
class WeightMemory {
 public:
  explicit WeightMemory(size_t bytes);
  uint8_t* get() const { return data_.get(); }

 private:
  std::shared_ptr<uint8_t> data_;  // and holds what it is a part of
};

}  // namespace edgellm::kernels
