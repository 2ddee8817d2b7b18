// Memory for weights, which every pass reads from end to end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace edgellm::kernels {

// `bytes` bytes that begin at a multiple of 64; std::bad_alloc. On Linux they lie in huge pages where the system gives
// some to who asks: with those of 4 KiB, more than a third of the time of a pass can go into looking up addresses.
class WeightMemory {
 public:
  explicit WeightMemory(size_t bytes);
  uint8_t* get() const { return data_.get(); }

 private:
  struct Free {
    size_t bytes;
    void operator()(uint8_t* data) const;
  };
  std::unique_ptr<uint8_t, Free> data_;
};

}  // namespace edgellm::kernels
