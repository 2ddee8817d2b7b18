// The KV cache: pages that sequences share by reference count.
//
// A page is written by one sequence alone: who is about to write into one that others hold too gets a copy of it. So a
// fork copies nothing but, later, the one page in which its first own token lies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "../kernels/paged_attention.h"

namespace edgellm::engine {

using kernels::kPageTokens;
using kernels::PageShape;

// All pages of a model: made when they are needed, `most` at once. Used by one thread at a time.
class Pages {
 public:
  Pages(const PageShape& shape, size_t most);
  const PageShape& shape() const { return shape_; }
  size_t most() const { return most_; }
  size_t used() const;         // pages that somebody holds
  std::byte* acquire();        // held once; null when `most` are used; std::bad_alloc
  void hold(std::byte* page);  // once more
  void release(std::byte* page);
  bool shared(std::byte* page) const;  // held more than once

 private:
  PageShape shape_;
  size_t most_;
  // how it keeps count is its own affair
};

// The state of one sequence.
class Table {
 public:
  explicit Table(std::shared_ptr<Pages> pages);
  ~Table();
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;

  size_t length() const { return length_; }
  // Pages for so many tokens, of which those that will be written, from length() on, are its own. False, and nothing
  // changed, when the pages are used up; std::bad_alloc.
  bool reserve(size_t length);
  void commit(size_t length);  // so many tokens are there now
  void truncate(size_t length);
  std::unique_ptr<Table> fork(size_t length) const;
  std::byte* const* pages() const { return held_.data(); }

  // The state of [start, stop), as bytes that `load` takes back exactly; whole pages lie in it as they are.
  size_t saved_bytes(size_t start, size_t stop) const;
  void save(size_t start, size_t stop, std::byte* out) const;
  // Append it behind length(), for which `reserve(stop)` was called; commits.
  void load(const std::byte* saved, size_t start, size_t stop);

 private:
  std::shared_ptr<Pages> pages_;
  std::vector<std::byte*> held_;
  size_t length_ = 0;
};

}  // namespace edgellm::engine
