// The compute threads of this process.
//
// A pass is one function that all members of a team run side by side, each with its own index; the caller is member 0.
// It goes through stages, with a barrier between them; what there is to do in a stage is handed out by a counter, so
// that a member that is held up gets less of it. Members that wait spin for some microseconds, then let others have the
// processor, then sleep: soon, where others want the processor. Between passes they wait a little longer for the next
// one, as long as a loop that generates takes to come back, and then sleep too.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace edgellm::engine {

// A number that others wait for.
struct Signal {
  std::atomic<uint32_t> value{0};
  std::atomic<uint32_t> sleeping{0};  // those who sleep until it changes
};

// The members of one pass, as they see each other.
class Team {
 public:
  size_t size() const { return size_; }

  // The next things [first, last) of the `count` of this stage; false when there are none left. They begin at multiples
  // of `step`: large parts first, small ones at the end. All members call it with the same count and step.
  bool take(size_t count, size_t step, size_t& first, size_t& last);

  // Returns when all members are here.
  void barrier() {
    barrier([] {});
  }
  // The last to come calls `between` before the others go on.
  template <typename Between>
  void barrier(const Between& between) {
    if (!arrive()) return;
    between();
    next_stage();
  }

 private:
  friend class ThreadPool;
  void begin(size_t size);
  bool arrive();  // true for the last one, at once; false when the next stage has begun
  void next_stage();
  void fail(std::exception_ptr error);  // of one member: the others leave at their next barrier

  size_t size_ = 1;
  alignas(64) Signal stage_;
  alignas(64) std::atomic<size_t> arrived_{0};
  alignas(64) std::atomic<size_t> ticket_{0};
  alignas(64) std::atomic<bool> failed_{false};
  std::exception_ptr error_;  // the first one
};

class ThreadPool {
 public:
  // What a member does in a pass.
  using Work = std::function<void(Team&, size_t member)>;

  // The pool of this process. A child that was forked off has one of its own: no thread of its parent is there.
  static ThreadPool& process();

  // Passes are made by one caller at a time; others wait. Whoever holds a turn must not ask for another one.
  class Turn {
   public:
    // By so many threads, or as many as can be started.
    Turn(ThreadPool& pool, size_t threads);
    size_t threads() const { return threads_; }
    // A pass. What a member throws ends it, and is thrown here.
    void run(const Work& work);
    // Calls `work` for every index below `count`.
    void each(size_t count, const std::function<void(size_t)>& work);

   private:
    ThreadPool& pool_;
    std::unique_lock<std::mutex> lock_;
    size_t threads_;
  };

 private:
  struct Worker {
    alignas(64) Signal call;  // counts the passes that it takes part in
  };

  ThreadPool();
  size_t grow(size_t threads);
  void live(Worker& worker, size_t member);
  void do_work(size_t member);

  const long owner_;  // the process
  std::mutex turns_;
  std::vector<std::unique_ptr<Worker>> workers_;
  Team team_;
  const Work* work_ = nullptr;
  alignas(64) Signal done_;  // counts the members that have done their part of a pass, but for the callers
};

}  // namespace edgellm::engine
