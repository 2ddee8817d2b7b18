#include "weight_memory.h"

#include <mutex>
#include <utility>

#include "system_memory.h"

namespace edgellm::kernels {

namespace {

constexpr size_t kLine = 64, kShared = size_t{32} << 20;

std::shared_ptr<uint8_t> part_of(std::shared_ptr<SystemMemory> memory, size_t at) {
  auto* const data = reinterpret_cast<uint8_t*>(memory->begin()) + at;
  return {std::move(memory), data};
}

std::shared_ptr<uint8_t> allocate(size_t bytes) {
  if (bytes > kShared / 4) return part_of(std::make_shared<SystemMemory>(bytes), 0);
  static std::mutex mutex;
  static std::weak_ptr<SystemMemory> last;  // which small ones go into, one behind another
  static size_t used;
  const std::scoped_lock lock(mutex);
  auto shared = last.lock();
  if (shared == nullptr || bytes > kShared - used) {
    shared = std::make_shared<SystemMemory>(kShared);
    last = shared;
    used = 0;
  }
  const size_t at = used;
  used += (bytes + kLine - 1) / kLine * kLine;
  return part_of(std::move(shared), at);
}

}  // namespace

WeightMemory::WeightMemory(size_t bytes) : data_(allocate(bytes)) {}

}  // namespace edgellm::kernels
