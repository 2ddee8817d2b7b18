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
    static Domain* domain = nullptr;  // for good: sessions refer to it
    const std::lock_guard lock(mutex);
    const Checked check(api);
    if (domain == nullptr) {
      Domain* made = nullptr;
      check(api.create_domain(kDomain, &made));
      Owned<Domain> owned(made, {&api});
      check(api.add(made, matmul_nbits()));
      check(api.add(made, group_query_attention()));
      domain = owned.release();
    }
    check(api.add(options, domain));
  });
}
