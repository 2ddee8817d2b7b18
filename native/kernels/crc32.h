// CRC-32 of ISO 3309, which zlib, gzip and PNG use, at the speed of memory where the processor can.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edgellm::kernels {

// Of `bytes` bytes behind others, of which `before` is: 0 for none.
uint32_t crc32(const void* data, size_t bytes, uint32_t before = 0);

// The same with a table, eight bytes at a time: on every processor.
uint32_t crc32_by_table(const void* data, size_t bytes, uint32_t before);

// The same with instructions of its own; only on a processor that has them.
uint32_t crc32_pclmul(const void* data, size_t bytes, uint32_t before);
uint32_t crc32_arm(const void* data, size_t bytes, uint32_t before);

}  // namespace edgellm::kernels
