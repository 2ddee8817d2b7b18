#include "weight_memory.h"

#include <new>

#if defined(__linux__)
#include <sys/mman.h>

#include <mutex>
#endif

namespace edgellm::kernels {

namespace {

constexpr size_t kLine = 64;

#if defined(__linux__)

constexpr size_t kHugePage = size_t{2} << 20, kShared = 16 * kHugePage;

// Memory that begins at a huge page.
class Mapping {
 public:
  explicit Mapping(size_t bytes) {
    // More than is wanted, of which what is before and behind the part that begins at a huge page goes back.
    const size_t all = bytes + kHugePage, page = 4096;
    if (all < bytes) throw std::bad_alloc();
    void* const mapped = mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    auto* const begin = static_cast<uint8_t*>(mapped);
    const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
    if (before != 0) munmap(begin, before);
    data_ = begin + before;
    bytes_ = (bytes + page - 1) / page * page;
    if (all - before > bytes_) munmap(data_ + bytes_, all - before - bytes_);
#if defined(MADV_HUGEPAGE)
    madvise(data_, bytes_, MADV_HUGEPAGE);  // without any, pages are small
#endif
  }
  ~Mapping() { munmap(data_, bytes_); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  uint8_t* data() const { return data_; }

 private:
  uint8_t* data_;
  size_t bytes_;
};

std::shared_ptr<uint8_t> allocate(size_t bytes) {
  if (bytes > kShared / 4) {
    auto own = std::make_shared<Mapping>(bytes);
    return {own, own->data()};
  }
  static std::mutex mutex;
  static std::weak_ptr<Mapping> last;  // which small ones go into, one behind another
  static size_t used;
  const std::scoped_lock lock(mutex);
  auto shared = last.lock();
  if (shared == nullptr || bytes > kShared - used) {
    shared = std::make_shared<Mapping>(kShared);
    last = shared;
    used = 0;
  }
  uint8_t* const data = shared->data() + used;
  used += (bytes + kLine - 1) / kLine * kLine;
  return {shared, data};
}

#else

std::shared_ptr<uint8_t> allocate(size_t bytes) {
  return {static_cast<uint8_t*>(::operator new(bytes, std::align_val_t{kLine})),
          [](uint8_t* data) { ::operator delete(data, std::align_val_t{kLine}); }};
}

#endif

}  // namespace

WeightMemory::WeightMemory(size_t bytes) : data_(allocate(bytes)) {}

}  // namespace edgellm::kernels
