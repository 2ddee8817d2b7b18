// Cores and memory where the operating system tells them through a C interface only (macOS, Windows).
#pragma once

#include <cstdint>

namespace edgellm {

// Physical cores this process may be scheduled on; 0 where the caller must find out in another way (Linux).
unsigned physical_cores();

struct HostMemory {
  uint64_t total = 0;
  uint64_t available = 0;  // bytes a process can take without swapping
};

// Zeros where the caller must find out in another way (Linux).
HostMemory host_memory();

}  // namespace edgellm
