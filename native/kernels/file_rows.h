// The rows of a tensor, from memory or from a file that stays open, where several threads read it at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace edgellm::kernels {

// The bytes of `count` rows from `first` on, one row behind another. They may be put into `room`, which holds as many.
using FileRows = std::function<const std::byte*(size_t first, size_t count, std::byte* room)>;

// Bytes of a tensor: at `data`, or, where that is null, from byte `at` of a file on.
struct FileBytes {
  const std::byte* data;
  int descriptor;
  uint64_t at;
  size_t size;
};

// Rows of so many bytes. order: for each row which one of the file it is, or null for the same; it and the bytes
// outlive the function. That throws std::domain_error for a file that ends before or cannot be read.
FileRows rows_of(const FileBytes& bytes, size_t row_bytes, const int64_t* order);

}  // namespace edgellm::kernels
