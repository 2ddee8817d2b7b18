#include "amx_refusal.h"

#include <system_error>
#include <thread>

#include "cpu.h"

#if defined(__linux__)
#include <pthread.h>
#include <signal.h>

#include <cerrno>
#include <exception>
#include <vector>
#endif

namespace edgellm {

uintptr_t call_refusing_amx(uintptr_t function, uintptr_t argument) {
  using Callee = void* (*)(void*);
  const auto callee = reinterpret_cast<Callee>(function);
  void* const given = reinterpret_cast<void*>(argument);
#if defined(__linux__)
  if (amx_permitted()) return reinterpret_cast<uintptr_t>(callee(given));  // too late, and the small stack is invalid

  constexpr size_t kTooSmall = 8192;  // tile data alone fills it; a frame without tiles is below 4 KiB
  std::vector<unsigned char> memory(kTooSmall);
  void* result = nullptr;
  std::exception_ptr failure;  // which must not leave the thread by itself: that would end the process

  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // the new thread inherits the mask
  try {
    std::thread([&] {
      stack_t small{};
      small.ss_sp = memory.data();
      small.ss_size = memory.size();
      if (sigaltstack(&small, nullptr) != 0) {
        failure = std::make_exception_ptr(std::system_error(errno, std::generic_category(), "alternate signal stack"));
        return;
      }
      try {
        result = callee(given);
      } catch (...) {
        failure = std::current_exception();
      }
      stack_t none{};
      none.ss_flags = SS_DISABLE;
      none.ss_size = kTooSmall;
      sigaltstack(&none, nullptr);
    }).join();
  } catch (...) {  // no thread
    failure = std::current_exception();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (failure != nullptr) std::rethrow_exception(failure);
  return reinterpret_cast<uintptr_t>(result);
#else
  return reinterpret_cast<uintptr_t>(callee(given));
#endif
}

}  // namespace edgellm
