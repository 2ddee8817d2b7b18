#include "library.h"

#include <mutex>

#include "group_query_attention.h"
#include "matmul_nbits.h"

using namespace edgellm::ort;

extern "C" EDGELLM_EXPORT Status* EDGELLM_ORT_CALL RegisterCustomOps(Options* options, const ApiBase* base) {
  const Function* table = base->get(kVersion);
  if (table == nullptr) return nullptr;  // there is no table to make an error with; the graph's operator stays unknown
  const Api api(table);
  static std::mutex mutex;
  static Domain *any = nullptr, *bytes = nullptr;  // for good: sessions refer to them
  const std::lock_guard lock(mutex);
  if (any == nullptr) {
    Domain* made = nullptr;
    if (Status* status = api.create_domain(kDomain, &made)) return status;
    if (Status* status = api.add(made, matmul_nbits(false))) return status;
    if (Status* status = api.add(made, group_query_attention())) return status;
    any = made;
  }
  if (bytes == nullptr) {
    Domain* made = nullptr;
    if (Status* status = api.create_domain(kBytesDomain, &made)) return status;
    if (Status* status = api.add(made, matmul_nbits(true))) return status;
    bytes = made;
  }
  if (Status* status = api.add(options, any)) return status;
  return api.add(options, bytes);
}
