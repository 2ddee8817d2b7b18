// What the processor can execute, as far as the operating system lets a process use it.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

namespace edgellm {

// Names follow Linux's /proc/cpuinfo on x86 ("avx2", "avx512_vnni", "amx_int8") and are
// "neon", "fp16", "dotprod", "i8mm", "bf16", "sve", "sve2" on Arm.
std::vector<std::string> cpu_features();

// Whether all of these are among them.
bool has_cpu_features(std::initializer_list<const char*> names);

// The processor's own name; empty where it has none to give.
std::string cpu_name();

// Whether this process already holds the kernel's permission for AMX tile data. Asking changes nothing.
bool amx_permitted();

}  // namespace edgellm
