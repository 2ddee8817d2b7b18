// Runs one C function while the kernel refuses AMX to this process.
#pragma once

#include <cstdint>

namespace edgellm {

// Calls `function(argument)` and returns its result. On Linux, ARCH_REQ_XCOMP_PERM fails with ENOSPC meanwhile;
// elsewhere, and in a process that holds the permission already, this is a plain call.
//
// The kernel grants AMX only when every thread's alternate signal stack can hold a signal frame with the 8 KiB of
// tile data in it (Linux Documentation/arch/x86/xstate.rst). A short-lived thread with a smaller stack, and all
// signals blocked, makes that false without touching any thread of the host application.
uintptr_t call_refusing_amx(uintptr_t function, uintptr_t argument);

}  // namespace edgellm
