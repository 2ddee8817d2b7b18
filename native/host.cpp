// Sources: Apple sysctl(3) and mach/host_info.h; Microsoft GetLogicalProcessorInformationEx, GlobalMemoryStatusEx.
#include "host.h"

#include <initializer_list>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>

#include <vector>
#elif defined(__APPLE__)
#include <mach/mach.h>
#include <sys/sysctl.h>
#endif

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace edgellm {

#if defined(_WIN32)

unsigned physical_cores() {
  DWORD size = 0;
  GetLogicalProcessorInformationEx(RelationProcessorCore, nullptr, &size);
  std::vector<unsigned char> buffer(size);
  auto* first = reinterpret_cast<SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX*>(buffer.data());
  if (size == 0 || !GetLogicalProcessorInformationEx(RelationProcessorCore, first, &size)) return 0;

  // The affinity mask speaks of one processor group; a process that spans several has a mask of zero.
  DWORD_PTR allowed = 0, system = 0;
  GetProcessAffinityMask(GetCurrentProcess(), &allowed, &system);
  USHORT group = 0, groups = 1;
  const bool one_group = allowed != 0 && GetProcessGroupAffinity(GetCurrentProcess(), &groups, &group) && groups == 1;

  unsigned cores = 0;
  for (DWORD at = 0; at < size;) {
    const auto* entry = reinterpret_cast<const SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX*>(buffer.data() + at);
    const GROUP_AFFINITY& core = entry->Processor.GroupMask[0];
    if (!one_group || (core.Group == group && (core.Mask & allowed) != 0)) ++cores;
    at += entry->Size;
  }
  return cores;
}

HostMemory host_memory() {
  MEMORYSTATUSEX status{};
  status.dwLength = sizeof status;
  if (!GlobalMemoryStatusEx(&status)) return {};
  return {status.ullTotalPhys, status.ullAvailPhys};
}

#elif defined(__APPLE__)

unsigned physical_cores() {
  // Efficiency cores slow a pass down that waits for its slowest thread: count the fast ones where they differ.
  for (const char* name : {"hw.perflevel0.physicalcpu", "hw.physicalcpu"}) {
    int value = 0;
    size_t size = sizeof value;
    if (sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value > 0) return static_cast<unsigned>(value);
  }
  return 0;
}

HostMemory host_memory() {
  HostMemory memory;
  size_t size = sizeof memory.total;
  if (sysctlbyname("hw.memsize", &memory.total, &size, nullptr, 0) != 0) return {};
  vm_statistics64_data_t pages{};
  mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
  vm_size_t page = 0;
  const mach_port_t host = mach_host_self();
  const bool known =
      host_page_size(host, &page) == KERN_SUCCESS &&
      host_statistics64(host, HOST_VM_INFO64, reinterpret_cast<host_info64_t>(&pages), &count) == KERN_SUCCESS;
  mach_port_deallocate(mach_task_self(), host);
  if (!known) return {};
  memory.available = (static_cast<uint64_t>(pages.free_count) + pages.inactive_count + pages.purgeable_count) * page;
  return memory;
}

#else

unsigned physical_cores() { return 0; }

HostMemory host_memory() { return {}; }

#endif

void trim_heap() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

}  // namespace edgellm
