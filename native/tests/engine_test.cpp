// The engine under sanitizers: the thread pool, and passes of a tiny decoder by several threads. What they compute is
// tested from Python.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "../engine/forward.h"
#include "../engine/thread_pool.h"

namespace {

using namespace edgellm;
using namespace edgellm::engine;

std::atomic<int> passed{0}, failed{0};

void check(bool holds, const char* what, size_t a = 0, size_t b = 0) {
  ++(holds ? passed : failed);
  if (!holds) std::printf("failed: %s (%zu, %zu)\n", what, a, b);
}

void everything_is_handed_out_once(size_t threads, size_t count, size_t step) {
  std::vector<int> seen(count);
  ThreadPool::Turn turn(ThreadPool::process(), threads);
  turn.run([&](Team& team, size_t) {
    for (int stage = 1; stage <= 3; ++stage) {
      for (size_t first = 0, last = 0; team.take(count, step, first, last);) {
        if (first % step != 0) throw std::logic_error("a part that begins at no multiple");
        for (size_t i = first; i < last; ++i) ++seen[i];
      }
      team.barrier([&] {
        check(std::all_of(seen.begin(), seen.end(), [&](int times) { return times == stage; }), "take", count, step);
      });
    }
  });
}

// Of stages, and of what is done between them.
void exceptions_reach_the_caller(size_t threads) {
  for (size_t who = 0; who <= threads; ++who) {
    ThreadPool::Turn turn(ThreadPool::process(), threads);
    bool caught = false;
    try {
      turn.run([&](Team& team, size_t member) {
        team.barrier();
        if (member == who) throw std::domain_error("a member");
        team.barrier([&] { throw std::domain_error("between"); });
      });
    } catch (const std::domain_error&) {
      caught = true;
    }
    check(caught, "exceptions", who);
  }
  size_t members = 0;
  ThreadPool::Turn(ThreadPool::process(), threads).run([&](Team& team, size_t) {
    team.barrier([&] { members = team.size(); });
  });
  check(members == threads, "a pass after one that failed");
}

#ifdef __linux__
// A process that may start no threads computes with its own one. Before any others run: the sanitizers ask for that.
void no_threads_are_needed() {
  const pid_t child = fork();
  if (child == 0) {
    const rlimit none{1, 1};
    constexpr uid_t kNobody = 65534;  // of root nothing is counted
    if (setrlimit(RLIMIT_NPROC, &none) != 0 || (geteuid() == 0 && setuid(kNobody) != 0)) _exit(2);
    ThreadPool::Turn turn(ThreadPool::process(), 4);
    size_t done = 0;
    turn.each(100, [&](size_t) { ++done; });
    _exit(turn.threads() == 1 && done == 100 ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a pool without threads", static_cast<size_t>(status));
}
#endif

// More members than cores: those who wait are held up, and sleep.
void many_members_sleep(size_t threads, size_t stages) {
  ThreadPool::Turn turn(ThreadPool::process(), threads);
  std::vector<size_t> seen(threads);
  size_t total = 0;
  turn.run([&](Team& team, size_t member) {
    for (size_t stage = 0; stage < stages; ++stage) {
      ++seen[member];
      team.barrier([&] {
        for (const size_t each : seen) total += each;
      });
    }
  });
  check(total == threads * stages * (stages + 1) / 2, "stages of many members", total);
}

class Decoder {
 public:
  Decoder(const KernelSet& kernels, kernels::Type type, size_t experts)
      : type_(type),
        model_({.layers = 3,
                .embd = 64,
                .ff = 160,
                .heads = 4,
                .kv_heads = 2,
                .head = 32,
                .vocab = 90,
                .experts = experts,
                .used = (experts + 1) / 2,
                .eps = 1e-5F,
                .gate = Gate::silu,
                .attention_scale = 0.2F,
                .attention_cap = 0,
                .final_cap = 5,
                .embedding_scale = 2,
                .residual_scale = 0.5F,
                .logit_scale = 2,
                .windows = {SIZE_MAX, 20, SIZE_MAX},
                .rotations = {1, 0, 1}},
               kernels, 4) {
    set(-1, "token_embd", 90, 64);
    norm(-1, "output_norm", 64);
    for (int64_t i = 0; i < 3; ++i) {
      set(i, "attn_q", 128, 64);
      set(i, "attn_k", 64, 64);
      set(i, "attn_v", 64, 64);
      set(i, "attn_output", 64, 128);
      const std::string suffix = experts == 0 ? "" : "_exps";
      const size_t each = std::max<size_t>(experts, 1);
      set(i, "ffn_gate" + suffix, each * 160, 64);
      set(i, "ffn_up" + suffix, each * 160, 64);
      set(i, "ffn_down" + suffix, each * 64, 160);
      if (experts != 0) set(i, "ffn_gate_inp", experts, 64);
      norm(i, "attn_norm", 64);
      norm(i, "attn_q_norm", 32);
      norm(i, "attn_k_norm", 64);
      norm(i, "post_attention_norm", 64);
      norm(i, "ffn_norm", 64);
      if (i != 1) norm(i, "post_ffw_norm", 64);
    }
    model_.set_rotation(1, {1.0, 0.5, 0.1, 0.01}, 1.0);
    model_.finish();
  }
  DenseModel& model() { return model_; }

 private:
  void set(int64_t layer, const std::string& role, size_t rows, size_t columns) {
    const kernels::Storage stored = kernels::storage(type_);
    std::vector<std::byte> data(rows * columns / stored.numbers * stored.bytes);
    for (std::byte& byte : data) byte = static_cast<std::byte>(engine_() % 256);
    const uint16_t scale = 0x2000;  // 2^-7, of a block in front of its codes
    std::uniform_real_distribution<float> number(-0.2F, 0.2F);
    for (size_t at = 0; at < data.size(); at += stored.bytes) {
      const float value = number(engine_);
      if (type_ == kernels::Type::f32)
        std::memcpy(data.data() + at, &value, sizeof value);
      else
        std::memcpy(data.data() + at, &scale, sizeof scale);
    }
    model_.set_matrix(layer, role, static_cast<uint32_t>(type_), rows, columns, {data.data(), -1, 0, data.size()},
                      nullptr);
  }
  void norm(int64_t layer, const std::string& role, size_t size) {
    model_.set_vector(layer, role, std::vector<float>(size, 1.25F));
  }

  std::mt19937 engine_{3};
  kernels::Type type_;
  DenseModel model_;
};

std::vector<int32_t> text(size_t count, int32_t first) {
  std::vector<int32_t> tokens(count);
  for (size_t i = 0; i < count; ++i) tokens[i] = (first + static_cast<int32_t>(i) * 7) % 90;
  return tokens;
}

// Passes of many rows and of few, of one sequence and of several, give a text the same logits.
void decode(const KernelSet& kernels, kernels::Type type, size_t experts) {
  Decoder decoder(kernels, type, experts);
  Forward forward(decoder.model(), 24);
  const auto pages = std::make_shared<Pages>(PageShape{kernels::KvType::int16, 3, 2, 32}, 40);
  const std::vector<int32_t> tokens = text(70, 5);
  const size_t vocab = 90;

  Table whole(pages), cut(pages), other(pages);
  const AbortFlag quiet{false}, raised{true};
  const Logits expected = forward.run({{&whole, tokens, tokens.size()}}, &quiet);
  bool stopped = false;
  try {
    forward.run({{&cut, tokens, 1}}, &raised);
  } catch (const Interrupted&) {
    stopped = cut.length() == 0;
  }
  check(stopped, "interrupted");
  for (size_t at = 0, size = 1; at < tokens.size(); at += size, size = size % 5 + 1) {
    size = std::min(size, tokens.size() - at);
    const auto begin = tokens.begin() + static_cast<ptrdiff_t>(at);
    const Logits found = forward.run(
        {{&other, text(at % 3 + 1, 8), 0}, {&cut, {begin, begin + static_cast<ptrdiff_t>(size)}, size}}, nullptr);
    check(std::memcmp(found->get(), expected->get() + at * vocab, size * vocab * sizeof(float)) == 0, "bits", at, size);
  }
}

}  // namespace

int main() {
#ifdef __linux__
  no_threads_are_needed();
#endif
  for (const size_t threads : {1, 2, 4})
    for (const size_t count : {0, 1, 5, 64, 333})
      for (const size_t step : {1, 3}) everything_is_handed_out_once(threads, count, step);
  exceptions_reach_the_caller(4);
  many_members_sleep(12, 1500);
  for (const kernels::KernelSet* set : kernels::kernel_sets())
    for (const kernels::Type type : {kernels::Type::q4_0, kernels::Type::f32}) {
      std::thread beside([&] { decode(*set, type, 5); });  // two models take turns
      decode(*set, type, 0);
      beside.join();
    }
  std::printf("%d passed, %d failed\n", passed.load(), failed.load());
  return failed == 0 ? 0 : 1;
}
