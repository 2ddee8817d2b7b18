#include "abort_flag.h"

extern "C" bool edgellm_abort_requested(void* data) {
  return static_cast<const edgellm::AbortFlag*>(data)->load(std::memory_order_relaxed);
}

extern "C" void edgellm_discard_log(int, const char*, void*) {}
