#include "saved_blocks.h"

#include <algorithm>
#include <cerrno>
#include <memory>
#include <system_error>

#include "../kernels/crc32.h"
#include "thread_pool.h"

#ifdef _WIN32
#include <io.h>
#else
#include <unistd.h>
#endif

namespace edgellm::engine {

namespace {

constexpr size_t kPiece = size_t{128} << 10;  // bytes that are still in a near cache when their checksum is taken

size_t read_some(int descriptor, std::byte* out, size_t bytes) {
  while (true) {
#ifdef _WIN32
    const auto got = _read(descriptor, out, static_cast<unsigned>(bytes));
#else
    const auto got = read(descriptor, out, bytes);
#endif
    if (got >= 0) return static_cast<size_t>(got);
    if (errno != EINTR) throw std::system_error(errno, std::generic_category(), "a file of saved state");
  }
}

// Bytes of a file, one after another, and the CRC-32 of all so far.
class Reader {
 public:
  Reader(int descriptor, uint32_t before) : descriptor_(descriptor), crc_(before) {}
  uint32_t crc() const { return crc_; }

  void read(std::byte* out, size_t bytes) {
    while (bytes > 0) {
      const size_t got = read_some(descriptor_, out, std::min(bytes, kPiece));
      if (got == 0) throw DamagedFile("truncated");
      crc_ = kernels::crc32(out, got, crc_);
      out += got;
      bytes -= got;
    }
  }

 private:
  int descriptor_;
  uint32_t crc_;
};

// The positions of a block, a page or a part of one at a time. page_bytes: room for a page.
void load_block(Table& table, const SavedBlock& block, std::byte* page_bytes) {
  Reader reader(block.descriptor, block.before);
  const std::byte* saved = block.saved;
  for (size_t start = block.start, stop = 0; start < block.stop; start = stop) {
    stop = std::min(block.stop, (start / kPageTokens + 1) * kPageTokens);
    const size_t bytes = table.saved_bytes(start, stop);
    if (block.saved == nullptr) reader.read(page_bytes, bytes);
    table.put(block.saved == nullptr ? page_bytes : saved, start, stop);
    if (block.saved != nullptr) saved += bytes;
  }
  if (block.saved == nullptr && reader.crc() != block.crc) throw DamagedFile("the payload's checksum is wrong");
}

}  // namespace

void load(Table& table, const std::vector<SavedBlock>& blocks, size_t threads) {
  if (blocks.empty()) return;
  std::vector<size_t> begins;  // of blocks that share a page with the one before, one thread loads both
  size_t here = table.length();
  for (const SavedBlock& block : blocks) {
    if (block.start != here || block.stop < here) {
      throw std::invalid_argument("saved state that does not continue the sequence");
    }
    const auto index = static_cast<size_t>(&block - blocks.data());
    if (index == 0 || here % kPageTokens == 0) begins.push_back(index);
    here = block.stop;
  }
  begins.push_back(blocks.size());
  table.reserve(here);
  const size_t room = table.saved_bytes(0, kPageTokens);
  try {
    ThreadPool::Turn turn(ThreadPool::process(), std::min(threads, begins.size() - 1));
    turn.each(begins.size() - 1, [&](size_t task) {
      const auto page_bytes = std::make_unique_for_overwrite<std::byte[]>(room);
      for (size_t i = begins[task]; i < begins[task + 1]; ++i) load_block(table, blocks[i], page_bytes.get());
    });
  } catch (...) {
    table.truncate(table.length());  // the pages behind its end go
    throw;
  }
  table.commit(here);
}

}  // namespace edgellm::engine
