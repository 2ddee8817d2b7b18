#include "file_rows.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>
#include <system_error>

#ifdef _WIN32
#include <io.h>
#include <windows.h>
#else
#include <unistd.h>
#endif

namespace edgellm::kernels {

namespace {

constexpr size_t kMost = size_t{1} << 30;  // bytes that are asked for at once

[[noreturn]] void fail(int code, const std::error_category& category) {
  throw std::domain_error("the file cannot be read: " + std::error_code(code, category).message());
}

// Some bytes from `at` on, or 0 behind the end; the position of the file is left alone.
size_t read_some(int descriptor, uint64_t at, std::byte* out, size_t bytes) {
#ifdef _WIN32
  OVERLAPPED place{};
  place.Offset = static_cast<DWORD>(at);
  place.OffsetHigh = static_cast<DWORD>(at >> 32);
  DWORD got = 0;
  const auto file = reinterpret_cast<HANDLE>(_get_osfhandle(descriptor));
  if (ReadFile(file, out, static_cast<DWORD>(bytes), &got, &place) == 0 && GetLastError() != ERROR_HANDLE_EOF)
    fail(static_cast<int>(GetLastError()), std::system_category());
  return got;
#else
  while (true) {
    const auto got = pread(descriptor, out, bytes, static_cast<off_t>(at));
    if (got >= 0) return static_cast<size_t>(got);
    if (errno != EINTR) fail(errno, std::generic_category());
  }
#endif
}

void read(int descriptor, uint64_t at, std::byte* out, size_t bytes) {
  while (bytes > 0) {
    const size_t got = read_some(descriptor, at, out, std::min(bytes, kMost));
    if (got == 0) throw std::domain_error("the file ends at byte " + std::to_string(at));
    at += got;
    out += got;
    bytes -= got;
  }
}

}  // namespace

FileRows rows_of(const FileBytes& bytes, size_t row_bytes, const int64_t* order) {
  const auto place = [order, row_bytes](size_t row) {
    return (order == nullptr ? row : static_cast<size_t>(order[row])) * row_bytes;
  };
  return [=](size_t first, size_t count, std::byte* room) -> const std::byte* {
    if (order == nullptr && bytes.data != nullptr) return bytes.data + place(first);
    const size_t together = order == nullptr ? count : 1;
    for (size_t i = 0; i < count; i += together) {
      std::byte* const to = room + i * row_bytes;
      if (bytes.data != nullptr)
        std::memcpy(to, bytes.data + place(first + i), row_bytes);
      else
        read(bytes.descriptor, bytes.at + place(first + i), to, together * row_bytes);
    }
    return room;
  };
}

}  // namespace edgellm::kernels
