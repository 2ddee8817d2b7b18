// Large memory, from the system itself.
#pragma once

#include <cstddef>

namespace edgellm::kernels {

// `bytes` zeros that begin at a multiple of 64; std::bad_alloc. The system gives them when they are touched, and has
// them back when this goes. On Linux those of 4 MiB and more lie in huge pages, where it gives some to who asks: with
// pages of 4 KiB, more than a third of the time of a pass can go into looking up addresses.
class SystemMemory {
 public:
  explicit SystemMemory(size_t bytes);
  ~SystemMemory();
  SystemMemory(const SystemMemory&) = delete;
  SystemMemory& operator=(const SystemMemory&) = delete;
  std::byte* begin() const { return begin_; }

 private:
  void* taken_;
  size_t bytes_;
  std::byte* begin_;
};

}  // namespace edgellm::kernels
