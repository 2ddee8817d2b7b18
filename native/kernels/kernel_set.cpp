#include "kernel_set.h"

#include <stdexcept>
#include <string>

#include "../cpu.h"

namespace edgellm::kernels {

#if defined(EDGELLM_AVX512_VNNI)
extern const KernelSet kAvx512;
#endif
extern const KernelSet kScalar;

namespace {

std::vector<const KernelSet*> found_sets() {
  std::vector<const KernelSet*> sets;
#if defined(EDGELLM_AVX512_VNNI)
  if (has_cpu_features({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"})) sets.push_back(&kAvx512);
#endif
  sets.push_back(&kScalar);
  return sets;
}

}  // namespace

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
