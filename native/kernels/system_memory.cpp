#include "system_memory.h"

#include <cstdint>
#include <cstdlib>
#include <new>

#ifndef _WIN32
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace edgellm::kernels {

#ifdef _WIN32

SystemMemory::SystemMemory(size_t bytes) : bytes_(bytes) {
  constexpr size_t kLine = 64;
  taken_ = bytes > SIZE_MAX - kLine ? nullptr : std::calloc(bytes + kLine, 1);
  if (taken_ == nullptr) throw std::bad_alloc();
  begin_ = static_cast<std::byte*>(taken_) + (kLine - reinterpret_cast<uintptr_t>(taken_) % kLine) % kLine;
}

SystemMemory::~SystemMemory() { std::free(taken_); }

#else

SystemMemory::SystemMemory(size_t bytes) {
  constexpr size_t kHugePage = size_t{2} << 20, kLarge = 2 * kHugePage;  // of less, too much would be unused
  const size_t all = bytes < kLarge ? bytes : bytes + kHugePage;
  if (all < bytes) throw std::bad_alloc();
  taken_ = mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (taken_ == MAP_FAILED) throw std::bad_alloc();
  begin_ = static_cast<std::byte*>(taken_);
  bytes_ = bytes;
  if (bytes < kLarge) return;
  // What is before and behind the part that begins at a huge page goes back.
  const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(begin_) % kHugePage) % kHugePage;
  if (before != 0) munmap(begin_, before);
  begin_ += before;
  taken_ = begin_;
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  bytes_ = (bytes + page - 1) / page * page;
  if (all - before > bytes_) munmap(begin_ + bytes_, all - before - bytes_);
#ifdef MADV_HUGEPAGE
  madvise(begin_, bytes_, MADV_HUGEPAGE);  // without any, pages are small
#endif
}

SystemMemory::~SystemMemory() { munmap(taken_, bytes_); }

#endif

}  // namespace edgellm::kernels
