// Memory at multiples of the width of a cache line and of the widest register.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace edgellm::kernels {

constexpr size_t kAlign = 64;

// Memory of `count` values at a multiple of 64 bytes. std::bad_alloc if there is none.
template <typename T>
class Aligned {
 public:
  Aligned() = default;
  explicit Aligned(size_t count)
      : data_(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{kAlign}))), count_(count) {}
  T* get() const { return data_.get(); }
  size_t size() const { return count_; }

 private:
  struct Free {
    void operator()(T* data) const { ::operator delete(data, std::align_val_t{kAlign}); }
  };
  std::unique_ptr<T, Free> data_;
  size_t count_ = 0;
};

}  // namespace edgellm::kernels
