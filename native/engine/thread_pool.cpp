#include "thread_pool.h"

#include <algorithm>
#include <chrono>
#include <system_error>
#include <thread>
#include <utility>

#ifdef _WIN32
#include <process.h>
#else
#include <unistd.h>
#include <csignal>
#endif
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <climits>
#endif
#if defined(_M_X64) || defined(_M_ARM64)
#include <intrin.h>
#endif

namespace edgellm::engine {

namespace {

using std::chrono::microseconds;
using std::chrono::steady_clock;

// How long those who wait stay on the processor: alone, and while others may have it.
constexpr microseconds kSpin{5}, kYield{200};     // for the other members of a pass
constexpr microseconds kStay{20}, kLinger{1000};  // for the next pass

// Whoever comes back to the clock so late was held up by others who want the processor. If that happens again and
// again, those who wait sleep soon: who spins or lets others have the processor loses his share of it, who sleeps has
// it when he wakes.
constexpr steady_clock::duration kHeldUp = microseconds(100), kAgain = microseconds(50000);
std::atomic<steady_clock::rep> held_up{0}, contended_until{0};  // times

// One member of a pass has thrown: the others unwind.
struct Left : std::exception {};

inline void pause() {
#if defined(_M_X64)
  _mm_pause();
#elif defined(_M_ARM64)
  __yield();
#elif defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void sleep_while(Signal& signal, uint32_t value) {
  signal.sleeping.fetch_add(1);
  while (signal.value.load() == value) {
#ifdef __linux__  // where std::atomic::wait lets others have the processor some times before it sleeps
    syscall(SYS_futex, &signal.value, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
    signal.value.wait(value);
#endif
  }
  signal.sleeping.fetch_sub(1);
}

// Adds 1, and wakes those who sleep.
void advance(Signal& signal) {
  signal.value.fetch_add(1);
  if (signal.sleeping.load() == 0) return;
#ifdef __linux__
  syscall(SYS_futex, &signal.value, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#else
  signal.value.notify_all();
#endif
}

// Returns when it is no longer `value`.
void wait_while(Signal& signal, uint32_t value, microseconds spin, microseconds yield) {
  const auto changed = [&] { return signal.value.load(std::memory_order_acquire) != value; };
  for (int i = 0; i < 64; ++i) {  // mostly that is enough, and the clock need not be asked
    if (changed()) return;
    pause();
  }
  const auto start = steady_clock::now();
  if (start.time_since_epoch().count() < contended_until.load(std::memory_order_relaxed)) spin = yield = kSpin;
  for (auto now = start; now - start < yield;) {
    if (now - start < spin) {
      for (int i = 0; i < 32 && !changed(); ++i) pause();
    } else {
      std::this_thread::yield();
    }
    const auto before = std::exchange(now, steady_clock::now());
    if (now - before > kHeldUp) {
      const auto time = now.time_since_epoch().count(), last = held_up.exchange(time, std::memory_order_relaxed);
      if (time - last < kAgain.count()) contended_until.store(time + kAgain.count(), std::memory_order_relaxed);
    }
    if (changed()) return;
  }
  sleep_while(signal, value);
}

long this_process() {
#ifdef _WIN32
  return _getpid();
#else
  return getpid();
#endif
}

// Threads that are started meanwhile get no signals: those are for the threads of the program, whose waiting they end.
class NoSignals {
 public:
#ifdef _WIN32
  NoSignals() = default;
#else
  NoSignals() {
    sigset_t all;
    sigfillset(&all);
    for (const int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP}) sigdelset(&all, own);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~NoSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  NoSignals(const NoSignals&) = delete;
  NoSignals& operator=(const NoSignals&) = delete;

 private:
  sigset_t before_;
#endif
};

}  // namespace

void Team::begin(size_t size) {
  size_ = size;
  arrived_.store(0, std::memory_order_relaxed);
  ticket_.store(0, std::memory_order_relaxed);
  failed_.store(false, std::memory_order_relaxed);
  error_ = nullptr;
}

bool Team::take(size_t count, size_t step, size_t& first, size_t& last) {
  const size_t ticket = ticket_.fetch_add(1, std::memory_order_relaxed);
  // In each round every member takes a part, of three quarters of what is left: small parts are read slowly, and large
  // ones end at different times.
  size_t left = (count + step - 1) / step, start = 0;
  for (size_t before = 0; left > 0; before += size_) {
    const size_t part = (3 * left + 4 * size_ - 1) / (4 * size_);
    const size_t parts = std::min(size_, (left + part - 1) / part);
    if (ticket < before + parts) {
      const size_t skipped = (ticket - before) * part;
      first = (start + skipped) * step;
      last = std::min(count, first + std::min(part, left - skipped) * step);
      return true;
    }
    if (parts < size_) return false;
    const size_t taken = std::min(left, parts * part);
    start += taken;
    left -= taken;
  }
  return false;
}

bool Team::arrive() {
  const uint32_t stage = stage_.value.load(std::memory_order_acquire);
  if (failed_.load(std::memory_order_relaxed)) throw Left();
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) return true;
  wait_while(stage_, stage, kSpin, kYield);
  if (failed_.load(std::memory_order_relaxed)) throw Left();
  return false;
}

void Team::next_stage() {
  arrived_.store(0, std::memory_order_relaxed);
  ticket_.store(0, std::memory_order_relaxed);
  advance(stage_);
}

void Team::fail(std::exception_ptr error) {
  if (!failed_.exchange(true, std::memory_order_acq_rel)) error_ = std::move(error);
  advance(stage_);  // those who come later look at failed_
}

ThreadPool::ThreadPool() : owner_(this_process()) {}

ThreadPool& ThreadPool::process() {
  // Never destroyed: its threads sleep until the process ends.
  static std::atomic<ThreadPool*> current{nullptr};
  ThreadPool* pool = current.load(std::memory_order_acquire);
  if (pool != nullptr && pool->owner_ == this_process()) return *pool;
  std::unique_ptr<ThreadPool> fresh(new ThreadPool);
  if (current.compare_exchange_strong(pool, fresh.get(), std::memory_order_acq_rel)) return *fresh.release();
  return *pool;
}

size_t ThreadPool::grow(size_t threads) {
  if (workers_.size() + 1 >= threads) return threads;
  const NoSignals quiet;
  try {
    workers_.reserve(threads - 1);
    while (workers_.size() + 1 < threads) {
      auto worker = std::make_unique<Worker>();
      std::thread(&ThreadPool::live, this, std::ref(*worker), workers_.size() + 1).detach();
      workers_.push_back(std::move(worker));
    }
  } catch (const std::system_error&) {
    threads = workers_.size() + 1;  // there are no more
  }
  return threads;
}

void ThreadPool::live(Worker& worker, size_t member) {
  for (uint32_t seen = 0;; ++seen) {
    wait_while(worker.call, seen, kStay, kLinger);
    do_work(member);
    advance(done_);
  }
}

void ThreadPool::do_work(size_t member) {
  try {
    (*work_)(team_, member);
  } catch (...) {
    team_.fail(std::current_exception());
  }
}

ThreadPool::Turn::Turn(ThreadPool& pool, size_t threads)
    : pool_(pool), lock_(pool.turns_), threads_(pool.grow(std::max<size_t>(threads, 1))) {}

void ThreadPool::Turn::run(const Work& work) {
  pool_.team_.begin(threads_);
  pool_.work_ = &work;
  const auto done = [&] { return pool_.done_.value.load(std::memory_order_acquire); };
  const uint32_t all = done() + static_cast<uint32_t>(threads_ - 1);
  for (size_t i = 0; i + 1 < threads_; ++i) advance(pool_.workers_[i]->call);
  pool_.do_work(0);
  for (uint32_t now = done(); now != all; now = done()) wait_while(pool_.done_, now, kSpin, kYield);
  if (pool_.team_.error_ != nullptr) std::rethrow_exception(std::exchange(pool_.team_.error_, nullptr));
}

void ThreadPool::Turn::each(size_t count, const std::function<void(size_t)>& work) {
  run([&](Team& team, size_t) {
    for (size_t first = 0, last = 0; team.take(count, 1, first, last);)
      for (size_t i = first; i < last; ++i) work(i);
  });
}

}  // namespace edgellm::engine
