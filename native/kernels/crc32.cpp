#include "crc32.h"

#include <array>
#include <bit>
#include <cstring>

#include "../cpu.h"

namespace edgellm::kernels {

namespace {

constexpr uint32_t kPolynomial = 0xedb88320;  // the bit of x^31 is the lowest
constexpr size_t kAtOnce = 8;

// [n][b]: what the byte b does to the remainder when n more bytes follow it.
using Tables = std::array<std::array<uint32_t, 256>, kAtOnce>;

constexpr Tables make_tables() {
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc % 2 != 0 ? kPolynomial : 0);
    tables[0][byte] = crc;
  }
  for (size_t n = 1; n < kAtOnce; ++n) {
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t crc = tables[n - 1][byte];
      tables[n][byte] = (crc >> 8) ^ tables[0][crc & 0xff];
    }
  }
  return tables;
}

constexpr Tables kTables = make_tables();

using Function = uint32_t (*)(const void*, size_t, uint32_t);

Function fastest() {
#if defined(EDGELLM_PCLMUL)
  if (has_cpu_features({"pclmulqdq", "sse4_2"})) return crc32_pclmul;
#endif
#if defined(EDGELLM_ARM_CRC)
  if (has_cpu_features({"crc32"})) return crc32_arm;
#endif
  return crc32_by_table;
}

}  // namespace

uint32_t crc32_by_table(const void* data, size_t bytes, uint32_t before) {
  const auto* at = static_cast<const uint8_t*>(data);
  uint32_t crc = ~before;
  if constexpr (std::endian::native == std::endian::little) {
    for (; bytes >= kAtOnce; at += kAtOnce, bytes -= kAtOnce) {
      uint64_t next = 0;
      std::memcpy(&next, at, sizeof next);
      next ^= crc;
      crc = 0;
      for (size_t i = 0; i < kAtOnce; ++i) crc ^= kTables[kAtOnce - 1 - i][(next >> 8 * i) & 0xff];
    }
  }
  for (; bytes > 0; ++at, --bytes) crc = (crc >> 8) ^ kTables[0][(crc ^ *at) & 0xff];
  return ~crc;
}

uint32_t crc32(const void* data, size_t bytes, uint32_t before) {
  static const Function function = fastest();
  return function(data, bytes, before);
}

}  // namespace edgellm::kernels
