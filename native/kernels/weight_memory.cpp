#include "weight_memory.h"

#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace edgellm::kernels {

#if defined(__linux__)

namespace {

constexpr size_t kHugePage = size_t{2} << 20;

uint8_t* allocate(size_t bytes) {
  // More than is wanted, of which what is before and behind the part that begins at a huge page goes back.
  const size_t all = bytes + kHugePage;
  if (all < bytes) throw std::bad_alloc();
  void* const mapped = mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  auto* const begin = static_cast<uint8_t*>(mapped);
  const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  if (before != 0) munmap(begin, before);
  uint8_t* const data = begin + before;
  const size_t page = 4096, kept = (bytes + page - 1) / page * page;
  if (all - before > kept) munmap(data + kept, all - before - kept);
#if defined(MADV_HUGEPAGE)
  madvise(data, kept, MADV_HUGEPAGE);  // without any, pages are small
#endif
  return data;
}

}  // namespace

WeightMemory::WeightMemory(size_t bytes) : data_(allocate(bytes), Free{bytes}) {}

void WeightMemory::Free::operator()(uint8_t* data) const { munmap(data, bytes); }

#else

constexpr std::align_val_t kAlign{64};

WeightMemory::WeightMemory(size_t bytes) : data_(static_cast<uint8_t*>(::operator new(bytes, kAlign)), Free{bytes}) {}

void WeightMemory::Free::operator()(uint8_t* data) const { ::operator delete(data, kAlign); }

#endif

}  // namespace edgellm::kernels
