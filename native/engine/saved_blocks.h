// Saved blocks of a sequence's state, from memory and from files, straight into its pages by several threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "pages.h"

namespace edgellm::engine {

// The state of [start, stop), as Table::save wrote it: behind `saved`, or, where that is null, behind the position of
// an open file. `before`: the CRC-32 of what lies in front of it; `crc`: of both together.
struct SavedBlock {
  size_t start, stop;
  const std::byte* saved;
  int descriptor;
  uint32_t before, crc;
};

// A file that is not what was written.
struct DamagedFile : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Append blocks, of which each continues the one before and the first continues the table, by so many threads: all of
// them, or none and an error. std::invalid_argument, KvFull, std::bad_alloc; DamagedFile, std::system_error for a file
// that cannot be read.
void load(Table& table, const std::vector<SavedBlock>& blocks, size_t threads);

}  // namespace edgellm::engine
