// The KV cache: pages that sequences share by reference count.
//
// A page is written by one sequence alone: who is about to write into one that others hold too gets a copy of it. So a
// fork copies nothing but, later, the one page in which its first own token lies.
//
// Every number in a page is finite at all times, also those of tokens that nobody has written yet: attention multiplies
// what is not seen with 0.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "../kernels/paged_attention.h"

namespace edgellm::engine {

using kernels::kBlockPages;
using kernels::kPageTokens;
using kernels::PageShape;

// The pages are used up.
struct KvFull : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// All pages of a model: made when they are needed, `most` at once. Safe from any thread.
class Pages {
 public:
  // std::invalid_argument for a shape that cannot be.
  Pages(const PageShape& shape, size_t most);
  ~Pages();
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  const PageShape& shape() const { return shape_; }
  size_t most() const { return most_; }
  size_t used() const;   // pages that somebody holds
  size_t bytes() const;  // memory that is set aside, in use or not
  // For the nth page of a sequence, behind the page `before` (null: the first). Eight of them fill a block, where there
  // is room; a fork's first own ones go where others have left some. Held once; null when `most` are used;
  // std::bad_alloc.
  std::byte* acquire(size_t nth, const std::byte* before);
  void hold(std::byte* page);  // once more
  void release(std::byte* page);
  bool shared(std::byte* page) const;  // held more than once

 private:
  class Slab;  // pages of one allocation
  using Slabs = std::map<const std::byte*, std::unique_ptr<Slab>>;

  Slabs::const_iterator slab_of(const std::byte* page) const;

  PageShape shape_;
  size_t most_, slab_blocks_;
  mutable std::mutex mutex_;
  size_t used_ = 0, open_blocks_ = 0;  // pages that are held; blocks with some of them
  Slabs slabs_;                        // by address
};

// The state of one sequence. Used by one thread at a time. Positions that it does not have, and saved bytes of another
// length, are std::invalid_argument; a table that was closed is std::logic_error.
class Table {
 public:
  struct Release {
    void operator()(const Table* table) const { table->used_.store(false, std::memory_order_release); }
  };
  using Use = std::unique_ptr<const Table, Release>;

  explicit Table(std::shared_ptr<Pages> pages);
  ~Table();
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;

  // While this is held, nobody else gets it. std::logic_error while another one holds it.
  Use use() const;
  size_t length() const { return length_; }
  // Pages for so many tokens, of which those that will be written, from length() on, are its own. KvFull or
  // std::bad_alloc, and nothing changed. To be called before anything is written, every time: a fork may share a page
  // that was its own.
  void reserve(size_t length);
  void commit(size_t length);  // so many tokens are there now, for which there were pages
  void truncate(size_t length);
  std::unique_ptr<Table> fork(size_t length) const;
  void close();  // hold no pages any more; twice is harmless
  std::byte* const* pages() const { return held_.data(); }
  const std::shared_ptr<Pages>& pool() const { return pages_; }  // null when it was closed

  // The state of [start, stop), as bytes that `load` takes back exactly, at the same positions: whole pages as they
  // are (keys, values, scales of keys, of values), of others token after token, of each layer and head.
  size_t saved_bytes(size_t start, size_t stop) const;
  void save(size_t start, size_t stop, std::byte* out) const;
  // Write it where it lies, at or behind length(); `reserve(stop)` was called. Numbers that are not finite, and scales
  // of more than kMostScale, become 0. Several threads may do so at once, for positions in different pages.
  void put(const std::byte* saved, size_t start, size_t stop);

 private:
  const Pages& open() const;

  std::shared_ptr<Pages> pages_;
  std::vector<std::byte*> held_;
  size_t length_ = 0;
  mutable std::atomic<bool> used_{false};
};

}  // namespace edgellm::engine
