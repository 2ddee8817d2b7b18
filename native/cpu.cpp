// Sources: Intel 64 and IA-32 SDM volume 2A (CPUID) and volume 1 chapter 13 (XCR0); AMD64 APM volume 3 appendix E;
// Linux Documentation/arch/x86/xstate.rst (permission for AMX); Linux Documentation/arch/arm64/elf_hwcaps.rst;
// Apple "Determining instruction set characteristics"; Microsoft IsProcessorFeaturePresent.
#include "cpu.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) || defined(__i386__) || defined(_M_X64) || defined(_M_IX86)
#define EDGELLM_X86 1
#if defined(_MSC_VER) && !defined(__clang__)
#include <immintrin.h>
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

#if defined(__aarch64__) || defined(_M_ARM64)
#define EDGELLM_ARM64 1
#endif

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__linux__)
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace edgellm {
namespace {

#if defined(__APPLE__)
bool sysctl_flag(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
#endif

#if defined(EDGELLM_X86)

struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf = 0) {
  Registers r;
#if defined(_MSC_VER) && !defined(__clang__)
  int out[4];
  __cpuidex(out, static_cast<int>(leaf), static_cast<int>(subleaf));
  r = {static_cast<uint32_t>(out[0]), static_cast<uint32_t>(out[1]), static_cast<uint32_t>(out[2]),
       static_cast<uint32_t>(out[3])};
#else
  __cpuid_count(leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
#endif
  return r;
}

uint64_t xcr0() {
#if defined(_MSC_VER) && !defined(__clang__)
  return _xgetbv(0);
#else
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
#endif
}

constexpr uint64_t kYmm = 0x6;        // XMM and YMM state
constexpr uint64_t kZmm = 0xe0;       // opmask and both halves of the ZMM state
constexpr uint64_t kTiles = 0x60000;  // tile configuration and tile data

#if defined(__linux__)
constexpr int kArchGetXcompSupp = 0x1021;
constexpr int kArchGetXcompPerm = 0x1022;
constexpr uint64_t kTileData = 1u << 18;

// The answer of an arch_prctl query, 0 when the kernel does not know the question.
uint64_t xcomp(int question) {
#if defined(SYS_arch_prctl)
  unsigned long mask = 0;
  return syscall(SYS_arch_prctl, question, &mask) == 0 ? mask : 0;
#else
  (void)question;
  return 0;
#endif
}
#endif

std::vector<std::string> x86_features() {
  std::vector<std::string> names;
  const auto add = [&](bool present, const char* name) {
    if (present) names.emplace_back(name);
  };
  const auto bit = [](uint32_t word, int index) { return ((word >> index) & 1) != 0; };

  const uint32_t top = cpuid(0).eax;
  const Registers one = cpuid(1);
  add(bit(one.edx, 26), "sse2");
  add(bit(one.ecx, 1), "pclmulqdq");
  add(bit(one.ecx, 9), "ssse3");
  add(bit(one.ecx, 20), "sse4_2");
  add(bit(one.ecx, 23), "popcnt");

  const uint64_t saved = bit(one.ecx, 27) ? xcr0() : 0;
  const Registers seven = top >= 7 ? cpuid(7) : Registers{};
  const Registers seven1 = top >= 7 && seven.eax >= 1 ? cpuid(7, 1) : Registers{};
  add(bit(seven.ebx, 8), "bmi2");

  const bool ymm = (saved & kYmm) == kYmm && bit(one.ecx, 28);
  if (ymm) {
    add(true, "avx");
    add(bit(one.ecx, 12), "fma");
    add(bit(one.ecx, 29), "f16c");
    add(bit(seven.ebx, 5), "avx2");
    add(bit(seven1.eax, 4), "avx_vnni");
  }

  bool zmm = ymm && (saved & kZmm) == kZmm;
#if defined(__APPLE__)
  zmm = zmm || sysctl_flag("hw.optional.avx512f");  // Darwin enables this state at its first use
#endif
  if (zmm && bit(seven.ebx, 16)) {
    add(true, "avx512f");
    add(bit(seven.ebx, 17), "avx512dq");
    add(bit(seven.ebx, 30), "avx512bw");
    add(bit(seven.ebx, 31), "avx512vl");
    add(bit(seven.ecx, 1), "avx512vbmi");
    add(bit(seven.ecx, 11), "avx512_vnni");
    add(bit(seven1.eax, 5), "avx512_bf16");
    add(bit(seven.edx, 23), "avx512_fp16");
  }

  bool tiles = (saved & kTiles) == kTiles;
#if defined(__linux__)
  tiles = tiles && (xcomp(kArchGetXcompSupp) & kTileData) != 0;
#endif
  if (tiles) {
    add(bit(seven.edx, 22), "amx_bf16");
    add(bit(seven.edx, 24), "amx_tile");
    add(bit(seven.edx, 25), "amx_int8");
  }
  return names;
}

#endif  // EDGELLM_X86

#if defined(EDGELLM_ARM64)

std::vector<std::string> arm_features() {
  std::vector<std::string> names{"neon"};  // part of every 64-bit Arm processor
  const auto add = [&](bool present, const char* name) {
    if (present) names.emplace_back(name);
  };
#if defined(__linux__)
  const unsigned long first = getauxval(AT_HWCAP);
  const unsigned long second = getauxval(AT_HWCAP2);
  add(((first >> 7) & 1) != 0, "crc32");
  add(((first >> 10) & 1) != 0, "fp16");
  add(((first >> 20) & 1) != 0, "dotprod");
  add(((first >> 22) & 1) != 0, "sve");
  add(((second >> 1) & 1) != 0, "sve2");
  add(((second >> 13) & 1) != 0, "i8mm");
  add(((second >> 14) & 1) != 0, "bf16");
#elif defined(__APPLE__)
  add(sysctl_flag("hw.optional.armv8_crc32"), "crc32");
  add(sysctl_flag("hw.optional.arm.FEAT_FP16"), "fp16");
  add(sysctl_flag("hw.optional.arm.FEAT_DotProd"), "dotprod");
  add(sysctl_flag("hw.optional.arm.FEAT_I8MM"), "i8mm");
  add(sysctl_flag("hw.optional.arm.FEAT_BF16"), "bf16");
#elif defined(_WIN32)
  // Numbers of winnt.h's PF_ARM_* constants: older SDKs lack the names.
  add(IsProcessorFeaturePresent(31) != 0, "crc32");
  add(IsProcessorFeaturePresent(43) != 0, "dotprod");
  add(IsProcessorFeaturePresent(46) != 0, "sve");
  add(IsProcessorFeaturePresent(47) != 0, "sve2");
  add(IsProcessorFeaturePresent(66) != 0, "i8mm");
  add(IsProcessorFeaturePresent(67) != 0, "fp16");
  add(IsProcessorFeaturePresent(68) != 0, "bf16");
#endif
  return names;
}

#endif  // EDGELLM_ARM64

}  // namespace

std::vector<std::string> cpu_features() {
#if defined(EDGELLM_X86)
  return x86_features();
#elif defined(EDGELLM_ARM64)
  return arm_features();
#else
  return {};
#endif
}

bool has_cpu_features(std::initializer_list<const char*> names) {
  const std::vector<std::string> features = cpu_features();
  return std::all_of(names.begin(), names.end(), [&](const char* name) {
    return std::find(features.begin(), features.end(), name) != features.end();
  });
}

std::string cpu_name() {
  std::string name;
#if defined(__APPLE__)
  std::array<char, 256> text{};
  size_t size = text.size() - 1;
  if (sysctlbyname("machdep.cpu.brand_string", text.data(), &size, nullptr, 0) == 0) name = text.data();
#elif defined(EDGELLM_X86)
  if (cpuid(0x80000000).eax >= 0x80000004) {
    std::array<char, 49> text{};
    for (uint32_t i = 0; i < 3; ++i) {
      const Registers r = cpuid(0x80000002 + i);
      const std::array<uint32_t, 4> words{r.eax, r.ebx, r.ecx, r.edx};
      std::memcpy(text.data() + size_t{16} * i, words.data(), 16);
    }
    name = text.data();
  }
#endif
  const auto first = name.find_first_not_of(' ');
  const auto last = name.find_last_not_of(' ');
  return first == std::string::npos ? std::string() : name.substr(first, last - first + 1);
}

bool amx_permitted() {
#if defined(EDGELLM_X86) && defined(__linux__)
  return (xcomp(kArchGetXcompPerm) & kTileData) != 0;
#else
  return false;
#endif
}

}  // namespace edgellm
