#include "pages.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "../kernels/system_memory.h"

namespace edgellm::engine {

namespace {

constexpr size_t kSlabBytes = size_t{32} << 20;

size_t pages_of(size_t tokens) { return tokens / kPageTokens + (tokens % kPageTokens != 0); }

// Calls `work` for the parts of keys and of values of each layer and head of a page.
template <typename Byte, typename Work>
void each_head(const PageShape& shape, Byte* page, Work work) {
  const size_t values_at = shape.values_at();
  for (size_t i = 0; i < shape.layers * shape.kv_heads; ++i, page += 2 * values_at) work(page, page + values_at);
}

void copy_page(const PageShape& shape, const std::byte* from, std::byte* to) {
  const size_t part_bytes = shape.part_bytes();
  each_head(shape, from, [&](const std::byte* keys, const std::byte* values) {
    std::memcpy(to + (keys - from), keys, part_bytes);
    std::memcpy(to + (values - from), values, part_bytes);
  });
}

}  // namespace

// Whole blocks of pages.
class Pages::Slab {
 public:
  Slab(const PageShape& shape, size_t blocks)
      : memory_(blocks * shape.block_bytes()), shape_(shape), holders_(blocks * kBlockPages), free_(blocks, kEmpty) {}
  const std::byte* begin() const { return memory_.begin(); }
  size_t bytes() const { return holders_.size() * shape_.bytes(); }
  bool empty() const {
    return std::all_of(free_.begin(), free_.end(), [](uint8_t free) { return free == kEmpty; });
  }
  uint32_t& holders(const std::byte* page) { return holders_[index(page)]; }
  size_t block_of(const std::byte* page) const { return index(page) / kBlockPages; }

  // The first block whose free pages (bit i is page i) fit; blocks() if there is none.
  template <typename Fits>
  size_t find(Fits fits) const {
    return static_cast<size_t>(std::find_if(free_.begin(), free_.end(), fits) - free_.begin());
  }
  size_t blocks() const { return free_.size(); }
  uint8_t free(size_t block) const { return free_[block]; }

  // The page at this place of a block, if it is free, else the first one that is.
  std::byte* take(size_t block, size_t place) {
    const uint8_t free = free_[block];
    if ((free >> place & 1) == 0) place = static_cast<size_t>(std::countr_zero(free));
    free_[block] = static_cast<uint8_t>(free & ~(1U << place));
    holders_[block * kBlockPages + place] = 1;
    return memory_.begin() + block * shape_.block_bytes() + place * shape_.part_bytes();
  }
  void give_back(const std::byte* page) {
    const size_t at = index(page);
    free_[at / kBlockPages] = static_cast<uint8_t>(free_[at / kBlockPages] | 1U << at % kBlockPages);
  }

  static constexpr uint8_t kEmpty = 0xff;

 private:
  size_t index(const std::byte* page) const {
    const auto at = static_cast<size_t>(page - begin());
    return at / shape_.block_bytes() * kBlockPages + at % shape_.block_bytes() / shape_.part_bytes();
  }

  static_assert(kBlockPages == 8);
  kernels::SystemMemory memory_;
  const PageShape& shape_;
  std::vector<uint32_t> holders_;
  std::vector<uint8_t> free_;  // of each block
};

Pages::Pages(const PageShape& shape, size_t most) : shape_(shape), most_(most) {
  constexpr size_t kMany = 4096;  // of layers or heads, that a product of all fits
  if (shape.layers == 0 || shape.layers > kMany || shape.kv_heads == 0 || shape.kv_heads > kMany) {
    throw std::invalid_argument("a page has 1 to 4,096 layers, and as many heads");
  }
  if (shape.size == 0 || shape.size > kernels::kMostSize || shape.size % 16 != 0) {
    throw std::invalid_argument("the size of a head is a multiple of 16 up to 256");
  }
  slab_blocks_ = (kSlabBytes + shape.block_bytes() - 1) / shape.block_bytes();
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

std::byte* Pages::acquire(size_t nth, const std::byte* before) {
  constexpr size_t kSpare = 64;  // pages that may be free in blocks that are in use, beside an eighth of the used ones
  const std::lock_guard lock(mutex_);
  if (used_ >= most_) return nullptr;
  const size_t place = nth % kBlockPages;
  Slab* in = nullptr;
  size_t block = 0;
  const auto look = [&](auto fits) {
    for (auto at = slabs_.begin(); in == nullptr && at != slabs_.end(); ++at) {
      block = at->second->find(fits);
      if (block < at->second->blocks()) in = at->second.get();
    }
  };
  const auto empty = [](uint8_t free) { return free == Slab::kEmpty; };
  const auto here = [&](uint8_t free) { return free != Slab::kEmpty && (free >> place & 1) != 0; };
  const auto any = [](uint8_t free) { return free != Slab::kEmpty && free != 0; };
  const bool begins = before == nullptr || place == 0;  // else it is a fork's, unless its block has room
  const bool opens = begins && open_blocks_ * kBlockPages <= used_ + used_ / 8 + kSpare;
  if (before != nullptr && place != 0) {
    Slab& slab = *slab_of(before)->second;
    const size_t own = slab.block_of(before);
    if (here(slab.free(own))) {
      in = &slab;
      block = own;
    }
  }
  if (opens) look(empty);
  if (!opens) {
    look(here);
    look(any);
    look(empty);
  }
  if (in == nullptr) {
    const size_t left = most_ - used_, blocks = left / kBlockPages + (left % kBlockPages != 0);
    auto slab = std::make_unique<Slab>(shape_, std::min(slab_blocks_, blocks));
    in = slab.get();
    block = 0;
    slabs_.emplace(in->begin(), std::move(slab));
  }
  if (empty(in->free(block))) ++open_blocks_;
  ++used_;
  return in->take(block, place);
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
  if (slab.free(slab.block_of(page)) == Slab::kEmpty) --open_blocks_;
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
  for (; !held_.empty(); held_.pop_back()) pages_->release(held_.back());
  length_ = 0;
  pages_.reset();
}

void Table::reserve(size_t length) {
  const PageShape& shape = open().shape();
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
      std::byte* page = there ? held_[i]
                              : pages_->acquire(i, i == 0       ? nullptr
                                                   : i == first ? held_[i - 1]
                                                                : own.back());
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
      if (length_ > (first + i) * kPageTokens) copy_page(shape, page, own[i]);
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
void mend(const PageShape& shape, std::byte* part) {
  const bool scaled = shape.type != kernels::KvType::f32;
  const float most = scaled ? kernels::kMostScale : std::numeric_limits<float>::max();
  const std::byte* const stop = part + shape.part_bytes();
  for (part += scaled ? shape.numbers_bytes() : 0; part < stop; part += sizeof(float)) {
    float x = 0;
    std::memcpy(&x, part, sizeof x);
    x = std::fabs(x) <= most ? x : 0;
    std::memcpy(part, &x, sizeof x);
  }
}

// Calls `move(of values, in the part, in the saved state, bytes)` for each number of a token in a head.
template <typename Move>
void each_number(const PageShape& shape, size_t token, Move move) {
  const size_t bytes = shape.number_bytes();
  size_t saved = 0;
  for (size_t d = 0; d < shape.size; ++d, saved += bytes) {
    move(false, ((d / 2 * kPageTokens + token) * 2 + d % 2) * bytes, saved, bytes);
  }
  for (size_t d = 0; d < shape.size; ++d, saved += bytes) {
    move(true, ((token / 2 * shape.size + d) * 2 + token % 2) * bytes, saved, bytes);
  }
  if (shape.type == kernels::KvType::f32) return;
  for (const bool of_values : {false, true}) {
    move(of_values, shape.numbers_bytes() + token * sizeof(float), saved, sizeof(float));
    saved += sizeof(float);
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
  const size_t numbers = shape.numbers_bytes(), scales = shape.part_bytes() - numbers;
  const auto put = [&](const std::byte* from, size_t bytes) {
    std::memcpy(out, from, bytes);
    out += bytes;
  };
  each_page(
      start, stop,
      [&](size_t page) {
        each_head(shape, held_[page], [&](const std::byte* keys, const std::byte* values) {
          put(keys, numbers);
          put(values, numbers);
          put(keys + numbers, scales);
          put(values + numbers, scales);
        });
      },
      [&](size_t page, size_t token) {
        each_head(shape, held_[page], [&](const std::byte* keys, const std::byte* values) {
          each_number(shape, token, [&](bool of_values, size_t at, size_t saved, size_t n) {
            std::memcpy(out + saved, (of_values ? values : keys) + at, n);
          });
          out += 2 * (numbers + scales) / kPageTokens;
        });
      });
}

void Table::put(const std::byte* saved, size_t start, size_t stop) {
  const PageShape& shape = open().shape();
  if (start < length_ || start > stop || pages_of(stop) > held_.size()) {
    throw std::invalid_argument("saved state in front of the end of the sequence, or without pages");
  }
  const size_t numbers = shape.numbers_bytes(), scales = shape.part_bytes() - numbers;
  const auto take = [&](std::byte* to, size_t bytes) {
    std::memcpy(to, saved, bytes);
    saved += bytes;
  };
  const auto mend_head = [&](std::byte* keys, std::byte* values) {
    mend(shape, keys);
    mend(shape, values);
  };
  each_page(
      start, stop,
      [&](size_t page) {
        each_head(shape, held_[page], [&](std::byte* keys, std::byte* values) {
          take(keys, numbers);
          take(values, numbers);
          take(keys + numbers, scales);
          take(values + numbers, scales);
          mend_head(keys, values);
        });
      },
      [&](size_t page, size_t token) {
        each_head(shape, held_[page], [&](std::byte* keys, std::byte* values) {
          each_number(shape, token, [&](bool of_values, size_t at, size_t from, size_t n) {
            std::memcpy((of_values ? values : keys) + at, saved + from, n);
          });
          saved += 2 * (numbers + scales) / kPageTokens;
        });
        if (token + 1 == kPageTokens || page * kPageTokens + token + 1 == stop)
          each_head(shape, held_[page], mend_head);
      });
}

}  // namespace edgellm::engine
