// A flag that one thread raises and a computing thread reads without asking Python.
#pragma once

#include <atomic>

namespace edgellm {

using AbortFlag = std::atomic<bool>;

}  // namespace edgellm

// The shape of ggml_abort_callback: `data` is the address of an AbortFlag.
extern "C" bool edgellm_abort_requested(void* data);

// The shape of ggml_log_callback: forgets the line. Safe after the interpreter has gone.
extern "C" void edgellm_discard_log(int level, const char* text, void* data);
