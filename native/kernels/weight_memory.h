// Memory for weights, which every pass reads from end to end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace edgellm::kernels {

// `bytes` bytes that begin at a multiple of 64; std::bad_alloc. On Linux they lie in huge pages where the system gives
// some to who asks, small matrices together: with pages of 4 KiB, more than a third of the time of a pass can go into
// looking up addresses. A huge page is given back with the last matrix in it.
class WeightMemory {
 public:
  explicit WeightMemory(size_t bytes);
  uint8_t* get() const { return data_.get(); }

 private:
  std::shared_ptr<uint8_t> data_;  // and holds what it is a part of
};

}  // namespace edgellm::kernels
