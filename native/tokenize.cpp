// llama.cpp matches with std::regex, which libstdc++ runs by calling itself for every character (regex_executor.tcc,
// _M_dfs): the stack that a text takes grows with the longest match in it. Other libraries throw when a match is long.
#include "tokenize.h"

#include <algorithm>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <process.h>
#include <windows.h>
#else
#include <pthread.h>
#endif

namespace edgellm {

namespace {

constexpr size_t kStackStep = 64 << 10;  // a multiple of every system's pages
constexpr size_t kThread = 1 << 20;      // what a thread has on its stack beside: libraries' variables, a call of a log

bool is_blank(unsigned char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

bool is_line_end(unsigned char c) { return c == '\n' || c == '\r'; }

bool is_letter(unsigned char c) { return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c >= 0x80; }

// Whether no match goes on from text[at - 1] to text[at].
bool parts(std::string_view text, size_t at) {
  const auto byte = [&](size_t index) { return static_cast<unsigned char>(index < text.size() ? text[index] : '\n'); };
  const unsigned char before = byte(at - 1), here = byte(at);
  if (before >= 0x80 || here >= 0x80 || is_blank(before) == is_blank(here)) return false;
  if (is_blank(here)) return !is_line_end(here) && !(here == ' ' && is_letter(before) && is_letter(byte(at + 1)));
  if (is_line_end(before)) return here != '/';
  return !(before == ' ' && is_letter(here) && at >= 2 && is_letter(byte(at - 2)));
}

// The lowest and the highest address of this thread's stack; zeros where the system does not tell.
struct Bounds {
  uintptr_t low = 0, high = 0;
};

Bounds stack_of_thread() {
#if defined(_WIN32)
  ULONG_PTR low = 0, high = 0;
  GetCurrentThreadStackLimits(&low, &high);
  return {low, high};
#elif defined(__APPLE__)
  const auto high = reinterpret_cast<uintptr_t>(pthread_get_stackaddr_np(pthread_self()));
  return {high - pthread_get_stacksize_np(pthread_self()), high};
#elif defined(__linux__)
  pthread_attr_t attributes;
  if (pthread_getattr_np(pthread_self(), &attributes) != 0) return {};
  void* low = nullptr;
  size_t size = 0;
  const bool known = pthread_attr_getstack(&attributes, &low, &size) == 0;
  pthread_attr_destroy(&attributes);
  return known ? Bounds{reinterpret_cast<uintptr_t>(low), reinterpret_cast<uintptr_t>(low) + size} : Bounds{};
#else
  return {};
#endif
}

// Bytes of stack that are left where this is called; 0 on a stack that is not the thread's.
size_t stack_left() {
  thread_local const Bounds bounds = stack_of_thread();  // for the first thread it reads a file
  const char here = 0;
  const auto address = reinterpret_cast<uintptr_t>(&here);
  return bounds.low < address && address < bounds.high ? address - bounds.low : 0;
}

struct Start {
  void (*body)(void*);
  void* data;
};

// run_in_thread: runs body(data) in a thread with a stack of so many bytes, and waits for it. False where the system
// gives no such thread.
#if defined(_WIN32)

unsigned __stdcall begin(void* start) {
  static_cast<Start*>(start)->body(static_cast<Start*>(start)->data);
  return 0;
}

bool run_in_thread(size_t stack, void (*body)(void*), void* data) {
  Start start{body, data};
  if (stack > std::numeric_limits<unsigned>::max()) return false;
  const uintptr_t thread =
      _beginthreadex(nullptr, static_cast<unsigned>(stack), begin, &start, STACK_SIZE_PARAM_IS_A_RESERVATION, nullptr);
  if (thread == 0) return false;
  WaitForSingleObject(reinterpret_cast<HANDLE>(thread), INFINITE);
  CloseHandle(reinterpret_cast<HANDLE>(thread));
  return true;
}

#else

void* begin(void* start) {
  static_cast<Start*>(start)->body(static_cast<Start*>(start)->data);
  return nullptr;
}

bool run_in_thread(size_t stack, void (*body)(void*), void* data) {
  Start start{body, data};
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes) != 0) return false;
  pthread_t thread;
  const bool begun =
      pthread_attr_setstacksize(&attributes, stack) == 0 && pthread_create(&thread, &attributes, begin, &start) == 0;
  pthread_attr_destroy(&attributes);
  return begun && pthread_join(thread, nullptr) == 0;
}

#endif

struct Call {
  TokenizeFunction function;
  const void* vocabulary;
  std::string_view text;
  bool parse_special;
  std::vector<int32_t> tokens;
  enum { kDone, kTooLong, kNoMemory, kFailed } outcome = kDone;
  std::string what;

  void run() {
    int32_t count = 0;
    do {  // a negative count is the room that is needed
      tokens.resize(count == 0 ? text.size() + 8 : static_cast<size_t>(-count));
      count = function(vocabulary, text.data(), static_cast<int32_t>(text.size()), tokens.data(),
                       static_cast<int32_t>(tokens.size()), false, parse_special);
      if (count == std::numeric_limits<int32_t>::min()) {
        outcome = kTooLong;
        return;
      }
    } while (count < 0);
    tokens.resize(static_cast<size_t>(count));
  }
};

}  // namespace

Stretch longest_stretch(std::string_view text) {
  Stretch longest, current;
  size_t characters = 0;
  for (size_t at = 0; at < text.size(); ++at) {
    if ((static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) continue;  // inside of a character
    if (at > 0 && parts(text, at)) current = {characters, 0};
    ++characters;
    ++current.count;
    if (current.count > longest.count) longest = current;
  }
  return longest;
}

std::vector<int32_t> tokenize(TokenizeFunction function, const void* vocabulary, std::string_view text,
                              bool parse_special, size_t stack) {
  if (text.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max()) - 8) throw std::length_error("text");
  Call call{function, vocabulary, text, parse_special, {}, Call::kDone, {}};
  const auto guarded = [](void* data) {
    Call& each = *static_cast<Call*>(data);
    try {
      each.run();
    } catch (const std::bad_alloc&) {
      each.outcome = Call::kNoMemory;
    } catch (const std::exception& error) {
      each.outcome = Call::kFailed;
      try {
        each.what = error.what();
      } catch (const std::bad_alloc&) {
        each.what.clear();  // then without words
      }
    } catch (...) {
      each.outcome = Call::kFailed;
    }
  };
  if (stack <= stack_left()) {
    guarded(&call);
  } else if (!run_in_thread((stack + kThread) / kStackStep * kStackStep, guarded, &call)) {
    throw std::bad_alloc();
  }
  switch (call.outcome) {
    case Call::kTooLong:
      throw std::length_error("text");
    case Call::kNoMemory:
      throw std::bad_alloc();
    case Call::kFailed:
      throw std::runtime_error(call.what);
    case Call::kDone:
      break;
  }
  return std::move(call.tokens);
}

}  // namespace edgellm
