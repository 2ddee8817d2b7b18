#include <arm_acle.h>

#include <cstring>

#include "crc32.h"

namespace edgellm::kernels {

uint32_t crc32_arm(const void* data, size_t bytes, uint32_t before) {
  const auto* at = static_cast<const uint8_t*>(data);
  uint32_t crc = ~before;
  for (; bytes >= sizeof(uint64_t); at += sizeof(uint64_t), bytes -= sizeof(uint64_t)) {
    uint64_t next = 0;
    std::memcpy(&next, at, sizeof next);
    crc = __crc32d(crc, next);
  }
  for (; bytes > 0; ++at, --bytes) crc = __crc32b(crc, *at);
  return ~crc;
}

}  // namespace edgellm::kernels
