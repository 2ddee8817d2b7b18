// What the processor gives to a loop that does nothing else: bytes read per second, and operations of its widest
// product of bytes. limits.py compiles it for this machine and asks: limits BYTES THREADS → two numbers, the second 0
// where there is no such instruction.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Seconds until `threads` threads have all done work(i), which gets ready before the clock starts.
template <class Work>
double together(int threads, const Work& work) {
  double begin = 0;
  std::vector<std::thread> team;
  begin = seconds();
  for (int i = 1; i < threads; ++i) team.emplace_back(work, i);
  work(0);
  for (std::thread& thread : team) thread.join();
  return seconds() - begin;
}

volatile uint64_t sink;

// Walks two halves at once and asks for what comes 2 KiB later, which is how a product of a row of weights reads.
uint64_t read_all(const uint64_t* data, size_t count) {
  const size_t half = count / 2 / 16 * 16;
  uint64_t sums[16] = {};
  for (size_t i = 0; i < half; i += 16) {
    __builtin_prefetch(data + i + 256);
    __builtin_prefetch(data + i + 264);
    __builtin_prefetch(data + half + i + 256);
    __builtin_prefetch(data + half + i + 264);
    for (size_t j = 0; j < 16; ++j) sums[j] += data[i + j] ^ data[half + i + j];
  }
  uint64_t sum = 0;
  for (uint64_t each : sums) sum += each;
  return sum;
}

double read_bandwidth(size_t bytes, int threads) {
  const size_t count = bytes / sizeof(uint64_t), part = count / static_cast<size_t>(threads);
  std::vector<uint64_t> data(count, 1);
  const int passes = static_cast<int>(std::clamp<size_t>((size_t{1} << 30) / std::max<size_t>(bytes, 1), 1, 64));
  double best = 1e30;
  for (int round = 0; round < 6; ++round) {
    const double taken = together(threads, [&](int i) {
      for (int pass = 0; pass < passes; ++pass) sink = read_all(data.data() + static_cast<size_t>(i) * part, part);
    });
    best = std::min(best, taken / passes);
  }
  return static_cast<double>(bytes) / best;
}

constexpr int kTimes = 20'000'000, kChains = 10;  // products of a chain; chains that do not wait for each other

#if defined(__AVX512VNNI__)
constexpr double kOperations = 128;
void products(int) {
  __m512i sums[kChains], a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
  for (int i = 0; i < kChains; ++i) sums[i] = _mm512_set1_epi32(i);  // or they are one chain to the compiler
  for (int i = 0; i < kTimes; ++i) {
    for (__m512i& sum : sums) sum = _mm512_dpbusd_epi32(sum, a, b);
    asm volatile("" : "+v"(a), "+v"(b));
  }
  for (int i = 1; i < kChains; ++i) sums[0] = _mm512_xor_si512(sums[0], sums[i]);
  sink = static_cast<uint64_t>(_mm512_reduce_add_epi32(sums[0]));
}
#elif defined(__AVXVNNI__)
constexpr double kOperations = 64;
void products(int) {
  __m256i sums[kChains], a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5);
  for (int i = 0; i < kChains; ++i) sums[i] = _mm256_set1_epi32(i);  // or they are one chain to the compiler
  for (int i = 0; i < kTimes; ++i) {
    for (__m256i& sum : sums) sum = _mm256_dpbusd_avx_epi32(sum, a, b);
    asm volatile("" : "+x"(a), "+x"(b));
  }
  for (int i = 1; i < kChains; ++i) sums[0] = _mm256_xor_si256(sums[0], sums[i]);
  sink = static_cast<uint64_t>(_mm256_extract_epi32(sums[0], 0));
}
#else
constexpr double kOperations = 0;
void products(int) {}
#endif

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const size_t bytes = std::strtoull(argv[1], nullptr, 10);
  const int threads = std::max(1, std::atoi(argv[2]));
  double best = 1e30;
  for (int round = 0; round < 3 && kOperations > 0; ++round) best = std::min(best, together(threads, products));
  const double operations = kOperations * kTimes * kChains * threads / best;
  std::printf("%.6g %.6g\n", read_bandwidth(bytes, threads), kOperations > 0 ? operations : 0.0);
}
