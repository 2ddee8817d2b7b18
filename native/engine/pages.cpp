#include "pages.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "../kernels/system_memory.h"

namespace edgellm::engine {

namespace {

constexpr size_t kSlabBytes = size_t{32} << 20;

size_t pages_of(size_t tokens) { return tokens / kPageTokens + (tokens % kPageTokens != 0); }

}  // namespace

class Pages::Slab {
 public:
  Slab(size_t pages, size_t page_bytes) : memory_(pages * page_bytes), page_bytes_(page_bytes), holders_(pages) {
    free_.reserve(pages);
    for (size_t i = pages; i-- > 0;) free_.push_back(i);
  }
  const std::byte* begin() const { return memory_.begin(); }
  size_t bytes() const { return holders_.size() * page_bytes_; }
  bool full() const { return free_.empty(); }
  bool empty() const { return free_.size() == holders_.size(); }
  uint32_t& holders(const std::byte* page) { return holders_[static_cast<size_t>(page - begin()) / page_bytes_]; }

  std::byte* take() {
    const size_t index = free_.back();
    free_.pop_back();
    holders_[index] = 1;
    return memory_.begin() + index * page_bytes_;
  }
  void give_back(const std::byte* page) { free_.push_back(static_cast<size_t>(page - begin()) / page_bytes_); }

 private:
  kernels::SystemMemory memory_;
  size_t page_bytes_;
  std::vector<uint32_t> holders_;
  std::vector<size_t> free_;
};

Pages::Pages(const PageShape& shape, size_t most) : shape_(shape), most_(most) {
  constexpr size_t kMany = 4096;  // of layers or heads, that a product of all fits
  if (shape.layers == 0 || shape.layers > kMany || shape.kv_heads == 0 || shape.kv_heads > kMany) {
    throw std::invalid_argument("a page has 1 to 4,096 layers, and as many heads");
  }
  if (shape.size == 0 || shape.size > kernels::kMostSize || shape.size % 16 != 0) {
    throw std::invalid_argument("the size of a head is a multiple of 16 up to 256");
  }
  slab_pages_ = std::max<size_t>(1, (kSlabBytes + shape.bytes() - 1) / shape.bytes());
}

Pages::~Pages() = default;

size_t Pages::used() const {
  const std::lock_guard lock(mutex_);
  return used_;
}

size_t Pages::bytes() const {
  const std::lock_guard lock(mutex_);
  size_t all = 0;
  for (const auto& [begin, slab] : slabs_) all += slab->bytes();
  return all;
}

Pages::Slabs::const_iterator Pages::slab_of(const std::byte* page) const { return std::prev(slabs_.upper_bound(page)); }

std::byte* Pages::acquire() {
  const std::lock_guard lock(mutex_);
  if (used_ >= most_) return nullptr;
  auto found = std::find_if(slabs_.begin(), slabs_.end(), [](const auto& each) { return !each.second->full(); });
  if (found == slabs_.end()) {
    auto slab = std::make_unique<Slab>(std::min(slab_pages_, most_ - used_), shape_.bytes());
    const std::byte* begin = slab->begin();
    found = slabs_.emplace(begin, std::move(slab)).first;
  }
  ++used_;
  return found->second->take();
}

void Pages::hold(std::byte* page) {
  const std::lock_guard lock(mutex_);
  ++slab_of(page)->second->holders(page);
}

void Pages::release(std::byte* page) {
  const std::lock_guard lock(mutex_);
  const auto found = slab_of(page);
  Slab& slab = *found->second;
  if (--slab.holders(page) > 0) return;
  slab.give_back(page);
  --used_;
  // One that is empty waits for the next sequence.
  const auto empty = [](const auto& each) { return each.second->empty(); };
  if (slab.empty() && std::count_if(slabs_.begin(), slabs_.end(), empty) > 1) slabs_.erase(found);
}

bool Pages::shared(std::byte* page) const {
  const std::lock_guard lock(mutex_);
  return slab_of(page)->second->holders(page) > 1;
}

Table::Table(std::shared_ptr<Pages> pages) : pages_(std::move(pages)) {
  if (pages_ == nullptr) throw std::invalid_argument("a table needs pages");
}

Table::~Table() { close(); }

Table::Use Table::use() const {
  if (used_.exchange(true, std::memory_order_acquire))
    throw std::logic_error("another thread uses this table of pages");
  return Use(this);
}

const Pages& Table::open() const {
  if (pages_ == nullptr) throw std::logic_error("this table of pages was closed");
  return *pages_;
}

void Table::close() {
  if (pages_ == nullptr) return;
  for (std::byte* page : held_) pages_->release(page);
  held_.clear();
  length_ = 0;
  pages_.reset();
}

void Table::reserve(size_t length) {
  const size_t page_bytes = open().shape().bytes();
  if (length <= length_) return;
  const size_t first = length_ / kPageTokens;
  std::vector<std::byte*> own;  // in place of the held ones from `first` on
  const auto undo = [&] {
    for (size_t i = 0; i < own.size(); ++i) {
      if (first + i >= held_.size() || own[i] != held_[first + i]) pages_->release(own[i]);
    }
  };
  try {
    const size_t count = std::min(pages_of(length) - 1, pages_->most()) + 1;  // however long it is meant to become
    own.reserve(count - std::min(first, count));
    held_.reserve(std::max(held_.size(), count));
    for (size_t i = first; i < count; ++i) {
      const bool there = i < held_.size() && !pages_->shared(held_[i]);
      std::byte* page = there ? held_[i] : pages_->acquire();
      if (page == nullptr)
        throw KvFull("the KV cache is full: " + std::to_string(pages_->used()) + " of " +
                     std::to_string(pages_->most()) + " pages are used, and " + std::to_string(length) +
                     " tokens are to fit into a sequence");
      own.push_back(page);
    }
  } catch (...) {
    undo();
    throw;
  }
  for (size_t i = 0; i < own.size(); ++i) {
    if (first + i == held_.size()) {
      held_.push_back(own[i]);
    } else if (std::byte*& page = held_[first + i]; page != own[i]) {
      if (length_ > (first + i) * kPageTokens) std::memcpy(own[i], page, page_bytes);
      pages_->release(std::exchange(page, own[i]));
    }
  }
}

void Table::commit(size_t length) {
  open();
  if (length < length_ || pages_of(length) > held_.size()) throw std::invalid_argument("no pages for so many tokens");
  length_ = length;
}

void Table::truncate(size_t length) {
  open();
  if (length > length_) throw std::invalid_argument("a sequence is not made longer by truncating it");
  for (; held_.size() > pages_of(length); held_.pop_back()) pages_->release(held_.back());
  length_ = length;
}

std::unique_ptr<Table> Table::fork(size_t length) const {
  open();
  if (length > length_) throw std::invalid_argument("a fork is no longer than its sequence");
  auto twin = std::make_unique<Table>(pages_);
  const auto stop = held_.begin() + static_cast<std::ptrdiff_t>(pages_of(length));
  twin->held_.assign(held_.begin(), stop);
  for (std::byte* page : twin->held_) pages_->hold(page);
  twin->length_ = length;
  return twin;
}

// Saved state

namespace {

// What attention cannot bear becomes 0: numbers that are not finite, scales beyond kMostScale. Any code is a number.
void mend(const PageShape& shape, std::byte* head) {
  const size_t numbers = 2 * kPageTokens * shape.size;
  const bool scaled = shape.type != kernels::KvType::f32;
  const float most = scaled ? kernels::kMostScale : std::numeric_limits<float>::max();
  std::byte* from = scaled ? head + numbers * shape.number_bytes() : head;
  for (size_t i = 0; i < (scaled ? 2 * kPageTokens : numbers); ++i, from += sizeof(float)) {
    float x = 0;
    std::memcpy(&x, from, sizeof x);
    x = std::fabs(x) <= most ? x : 0;
    std::memcpy(from, &x, sizeof x);
  }
}

// Calls `move(in the head, in the saved state)` for each number of a token, where that is `bytes` long.
template <typename Move>
void each_number(const PageShape& shape, size_t token, Move move) {
  const size_t bytes = shape.number_bytes(), numbers = kPageTokens * shape.size;
  size_t saved = 0;
  for (size_t d = 0; d < shape.size; ++d, saved += bytes) {
    move(((d / 2 * kPageTokens + token) * 2 + d % 2) * bytes, saved, bytes);
  }
  for (size_t d = 0; d < shape.size; ++d, saved += bytes) {
    move((numbers + (token / 2 * shape.size + d) * 2 + token % 2) * bytes, saved, bytes);
  }
  if (shape.type == kernels::KvType::f32) return;
  for (size_t i = 0; i < 2; ++i, saved += sizeof(float)) {
    move(2 * numbers * bytes + (i * kPageTokens + token) * sizeof(float), saved, sizeof(float));
  }
}

// Calls `whole(index of the page)` or `part(index of the page, token in it)`, in the order of the saved state.
template <typename Whole, typename Part>
void each_page(size_t start, size_t stop, Whole whole, Part part) {
  while (start < stop) {
    const size_t page = start / kPageTokens, token = start % kPageTokens;
    if (token == 0 && stop - start >= kPageTokens) {
      whole(page);
      start += kPageTokens;
    } else {
      part(page, token);
      ++start;
    }
  }
}

}  // namespace

size_t Table::saved_bytes(size_t start, size_t stop) const {
  const size_t token_bytes = open().shape().bytes() / kPageTokens;
  if (start > stop || stop - start > SIZE_MAX / token_bytes) throw std::invalid_argument("no such positions");
  return (stop - start) * token_bytes;
}

void Table::save(size_t start, size_t stop, std::byte* out) const {
  const PageShape& shape = open().shape();
  if (start > stop || stop > length_) throw std::invalid_argument("positions that the sequence does not have");
  const size_t heads = shape.layers * shape.kv_heads, head_bytes = shape.head_bytes();
  each_page(
      start, stop,
      [&](size_t page) {
        std::memcpy(out, held_[page], shape.bytes());
        out += shape.bytes();
      },
      [&](size_t page, size_t token) {
        for (size_t i = 0; i < heads; ++i, out += head_bytes / kPageTokens) {
          const std::byte* head = held_[page] + i * head_bytes;
          each_number(shape, token, [&](size_t at, size_t saved, size_t n) { std::memcpy(out + saved, head + at, n); });
        }
      });
}

void Table::put(const std::byte* saved, size_t start, size_t stop) {
  const PageShape& shape = open().shape();
  if (start < length_ || start > stop || pages_of(stop) > held_.size()) {
    throw std::invalid_argument("saved state in front of the end of the sequence, or without pages");
  }
  const size_t heads = shape.layers * shape.kv_heads, head_bytes = shape.head_bytes();
  each_page(
      start, stop,
      [&](size_t page) {
        for (size_t i = 0; i < heads; ++i, saved += head_bytes) {
          std::byte* head = held_[page] + i * head_bytes;
          std::memcpy(head, saved, head_bytes);
          mend(shape, head);
        }
      },
      [&](size_t page, size_t token) {
        for (size_t i = 0; i < heads; ++i, saved += head_bytes / kPageTokens) {
          std::byte* head = held_[page] + i * head_bytes;
          each_number(shape, token, [&](size_t at, size_t from, size_t n) { std::memcpy(head + at, saved + from, n); });
        }
        if (token + 1 == kPageTokens || page * kPageTokens + token + 1 == stop) {
          for (size_t i = 0; i < heads; ++i) mend(shape, held_[page] + i * head_bytes);
        }
      });
}

}  // namespace edgellm::engine
