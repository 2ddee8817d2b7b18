#include "kernel_set.h"

#include <stdexcept>
#include <string>

#include "../cpu.h"
#include "set.h"

namespace edgellm::kernels {

namespace {

struct Compiled {
  const KernelSet* set;
  bool usable;
};

std::vector<const KernelSet*> found_sets() {
  std::vector<const KernelSet*> sets;
  for (const auto& [set, usable] : {
#if defined(EDGELLM_AVX512_VNNI)
           Compiled{&kAvx512, has_cpu_features({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"})},
#endif
#if defined(EDGELLM_AVX_VNNI)
           Compiled{&kAvxVnni, has_cpu_features({"avx2", "fma", "f16c", "avx_vnni"})},
#endif
#if defined(EDGELLM_AVX_VNNI_AS_AVX512)
           Compiled{&kAvxVnni, has_cpu_features({"avx2", "fma", "f16c", "avx512vl", "avx512_vnni"})},
#endif
#if defined(EDGELLM_AVX2)
           Compiled{&kAvx2, has_cpu_features({"avx2", "fma", "f16c"})},
#endif
#if defined(EDGELLM_NEON_I8MM)
           Compiled{&kNeonI8mm, has_cpu_features({"dotprod", "i8mm"})},
#endif
#if defined(EDGELLM_NEON_DOT)
           Compiled{&kNeonDot, has_cpu_features({"dotprod"})},
#endif
           Compiled{&kScalar, true}}) {
    if (usable) sets.push_back(set);
  }
  return sets;
}

}  // namespace

Gate gate_named(std::string_view name) {
  if (name == "silu") return Gate::silu;
  if (name == "gelu_tanh") return Gate::gelu_tanh;
  if (name == "gelu") return Gate::gelu;
  throw std::invalid_argument("there is no gate \"" + std::string(name) + "\"; silu, gelu_tanh and gelu are known");
}

bool asks_ahead() {
  static const bool asks = cpu_name().find("AMD") == std::string::npos;
  return asks;
}

const std::vector<const KernelSet*>& kernel_sets() {
  static const std::vector<const KernelSet*> sets = found_sets();
  return sets;
}

const KernelSet& kernel_set(std::string_view name) {
  for (const KernelSet* set : kernel_sets()) {
    if (set->name == name) return *set;
  }
  throw std::invalid_argument("this processor has no kernels \"" + std::string(name) + "\"");
}

}  // namespace edgellm::kernels
