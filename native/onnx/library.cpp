#include "library.h"

#include <mutex>

#include "group_query_attention.h"
#include "matmul_nbits.h"
#include "operator.h"

using namespace edgellm::ort;

extern "C" EDGELLM_EXPORT Status* EDGELLM_ORT_CALL RegisterCustomOps(Options* options, const ApiBase* base) {
  const Function* table = base->get(kVersion);
  if (table == nullptr) return nullptr;  // there is no table to make an error with; the graph's operator stays unknown
  const Api api(table);
  return guarded(api, "edgellm", [&] {
    static std::mutex mutex;
    static Domain *any = nullptr, *bytes = nullptr;  // for good: sessions refer to them
    const std::lock_guard lock(mutex);
    const Checked check(api);
    if (any == nullptr) {
      Domain* made = nullptr;
      check(api.create_domain(kDomain, &made));
      check(api.add(made, matmul_nbits(false)));
      check(api.add(made, group_query_attention()));
      any = made;
    }
    if (bytes == nullptr) {
      Domain* made = nullptr;
      check(api.create_domain(kBytesDomain, &made));
      check(api.add(made, matmul_nbits(true)));
      bytes = made;
    }
    check(api.add(options, any));
    check(api.add(options, bytes));
  });
}
