// What the operating system and the C library tell and do through a C interface only.
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

// What was freed leaves the process where the C library (glibc) keeps it, between blocks that are in use.
void trim_heap();

}  // namespace edgellm
