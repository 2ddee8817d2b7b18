// The part of ONNX Runtime's C interface that an operator of our own needs, by its binary layout: a table of functions,
// whose order never changes, and the structure that describes an operator.
//
// Source: include/onnxruntime/core/session/onnxruntime_c_api.h of ONNX Runtime 1.17 and later; its rule that functions
// are only ever added at the end is stated in onnxruntime/core/session/onnxruntime_c_api.cc.
// native/tests/ort_abi_test.cpp holds every place against the header.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edgellm::ort {

#if defined(_WIN32)
#define EDGELLM_ORT_CALL __stdcall
#else
#define EDGELLM_ORT_CALL
#endif

constexpr uint32_t kVersion = 17;  // the oldest whose table has all of the functions below

struct Status;
struct Options;
struct Domain;
struct KernelInfo;
struct KernelContext;
struct Tensor;
struct Shape;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int { kFloat = 1, kUint8 = 2, kInt32 = 6, kInt64 = 7 };
enum Presence : int { kRequired = 0, kOptional = 1 };

using Function = void (*)();

// The functions by their places in the table.
enum class Place : size_t {
  kCreateStatus = 0,
  kErrorMessage = 2,
  kCreateDomain = 26,
  kAddToDomain = 27,
  kAddDomain = 28,
  kTensorData = 51,
  kElementType = 60,
  kRank = 61,
  kDimensions = 62,
  kElements = 64,
  kShapeOf = 65,
  kAttributeFloat = 85,
  kAttributeInt = 86,
  kAttributeText = 87,
  kInput = 90,
  kOutput = 91,
  kReleaseStatus = 93,
  kReleaseShape = 99,
  kReleaseDomain = 101,
  kConstantInput = 249,
  kParallelFor = 274,
};

// ONNX Runtime's table. Functions that return a Status* return null on success.
class Api {
 public:
  explicit Api(const Function* table) : table_(table) {}

  Status* status(ErrorCode code, const char* message) const {
    return call<Status*(EDGELLM_ORT_CALL*)(int, const char*)>(Place::kCreateStatus)(code, message);
  }
  const char* message(const Status* status) const {  // lives as long as the status
    return call<const char*(EDGELLM_ORT_CALL*)(const Status*)>(Place::kErrorMessage)(status);
  }
  void release(Status* status) const { call<void(EDGELLM_ORT_CALL*)(Status*)>(Place::kReleaseStatus)(status); }

  Status* create_domain(const char* name, Domain** out) const {
    return call<Status*(EDGELLM_ORT_CALL*)(const char*, Domain**)>(Place::kCreateDomain)(name, out);
  }
  void release(Domain* domain) const { call<void(EDGELLM_ORT_CALL*)(Domain*)>(Place::kReleaseDomain)(domain); }
  Status* add(Domain* domain, const struct Operator* op) const {
    return call<Status*(EDGELLM_ORT_CALL*)(Domain*, const Operator*)>(Place::kAddToDomain)(domain, op);
  }
  Status* add(Options* options, Domain* domain) const {
    return call<Status*(EDGELLM_ORT_CALL*)(Options*, Domain*)>(Place::kAddDomain)(options, domain);
  }

  Status* attribute(const KernelInfo* info, const char* name, int64_t* out) const {
    return call<Status*(EDGELLM_ORT_CALL*)(const KernelInfo*, const char*, int64_t*)>(Place::kAttributeInt)(info, name,
                                                                                                            out);
  }
  Status* attribute(const KernelInfo* info, const char* name, float* out) const {
    return call<Status*(EDGELLM_ORT_CALL*)(const KernelInfo*, const char*, float*)>(Place::kAttributeFloat)(info, name,
                                                                                                            out);
  }
  // size: of `out`; then of the text, with the 0 at its end. Fails where it does not fit.
  Status* attribute(const KernelInfo* info, const char* name, char* out, size_t* size) const {
    return call<Status*(EDGELLM_ORT_CALL*)(const KernelInfo*, const char*, char*, size_t*)>(Place::kAttributeText)(
        info, name, out, size);
  }
  Status* constant_input(const KernelInfo* info, size_t index, int* is_constant, const Tensor** out) const {
    return call<Status*(EDGELLM_ORT_CALL*)(const KernelInfo*, size_t, int*, const Tensor**)>(Place::kConstantInput)(
        info, index, is_constant, out);
  }

  Status* input(const KernelContext* context, size_t index, const Tensor** out) const {
    return call<Status*(EDGELLM_ORT_CALL*)(const KernelContext*, size_t, const Tensor**)>(Place::kInput)(context, index,
                                                                                                         out);
  }
  Status* output(KernelContext* context, size_t index, const int64_t* dimensions, size_t rank, Tensor** out) const {
    return call<Status*(EDGELLM_ORT_CALL*)(KernelContext*, size_t, const int64_t*, size_t, Tensor**)>(Place::kOutput)(
        context, index, dimensions, rank, out);
  }
  // Calls function(data, index) for every index below total, one by one, from the threads of the session, and waits.
  Status* parallel_for(const KernelContext* context, void (*function)(void*, size_t), size_t total, void* data) const {
    using Type = Status*(EDGELLM_ORT_CALL*)(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*);
    return call<Type>(Place::kParallelFor)(context, function, total, total, data);
  }

  Status* data(const Tensor* tensor, void** out) const {
    return call<Status*(EDGELLM_ORT_CALL*)(const Tensor*, void**)>(Place::kTensorData)(tensor, out);
  }
  Status* shape_of(const Tensor* tensor, Shape** out) const {
    return call<Status*(EDGELLM_ORT_CALL*)(const Tensor*, Shape**)>(Place::kShapeOf)(tensor, out);
  }
  Status* element_type(const Shape* shape, int* out) const {
    return call<Status*(EDGELLM_ORT_CALL*)(const Shape*, int*)>(Place::kElementType)(shape, out);
  }
  Status* elements(const Shape* shape, size_t* out) const {
    return call<Status*(EDGELLM_ORT_CALL*)(const Shape*, size_t*)>(Place::kElements)(shape, out);
  }
  Status* rank(const Shape* shape, size_t* out) const {
    return call<Status*(EDGELLM_ORT_CALL*)(const Shape*, size_t*)>(Place::kRank)(shape, out);
  }
  Status* dimensions(const Shape* shape, int64_t* out, size_t rank) const {
    return call<Status*(EDGELLM_ORT_CALL*)(const Shape*, int64_t*, size_t)>(Place::kDimensions)(shape, out, rank);
  }
  void release(Shape* shape) const { call<void(EDGELLM_ORT_CALL*)(Shape*)>(Place::kReleaseShape)(shape); }

 private:
  template <typename Type>
  Type call(Place place) const {
    return reinterpret_cast<Type>(table_[static_cast<size_t>(place)]);
  }

  const Function* table_;
};

struct ApiBase {
  const Function*(EDGELLM_ORT_CALL* get)(uint32_t version);  // null for a version that it does not know
  const char*(EDGELLM_ORT_CALL* version_string)();
};

// What ONNX Runtime reads of an operator. The callbacks at the end came with later versions and may be null.
struct Operator {
  uint32_t version;
  void*(EDGELLM_ORT_CALL* create_kernel)(const Operator*, const Function*, const KernelInfo*);
  const char*(EDGELLM_ORT_CALL* name)(const Operator*);
  const char*(EDGELLM_ORT_CALL* provider)(const Operator*);
  int(EDGELLM_ORT_CALL* input_type)(const Operator*, size_t);
  size_t(EDGELLM_ORT_CALL* input_count)(const Operator*);
  int(EDGELLM_ORT_CALL* output_type)(const Operator*, size_t);
  size_t(EDGELLM_ORT_CALL* output_count)(const Operator*);
  void(EDGELLM_ORT_CALL* compute)(void*, KernelContext*);
  void(EDGELLM_ORT_CALL* destroy)(void*);
  int(EDGELLM_ORT_CALL* input_presence)(const Operator*, size_t);
  int(EDGELLM_ORT_CALL* output_presence)(const Operator*, size_t);
  int(EDGELLM_ORT_CALL* input_memory)(const Operator*, size_t);
  int(EDGELLM_ORT_CALL* variadic_input_minimum)(const Operator*);
  int(EDGELLM_ORT_CALL* variadic_input_alike)(const Operator*);
  int(EDGELLM_ORT_CALL* variadic_output_minimum)(const Operator*);
  int(EDGELLM_ORT_CALL* variadic_output_alike)(const Operator*);
  Status*(EDGELLM_ORT_CALL* create_kernel_2)(const Operator*, const Function*, const KernelInfo*, void**);
  Status*(EDGELLM_ORT_CALL* compute_2)(void*, KernelContext*);
  Status*(EDGELLM_ORT_CALL* infer_shape)(const Operator*, void*);
  int(EDGELLM_ORT_CALL* start_version)(const Operator*);
  int(EDGELLM_ORT_CALL* end_version)(const Operator*);
  size_t(EDGELLM_ORT_CALL* may_inplace)(int**, int**);
  void(EDGELLM_ORT_CALL* release_may_inplace)(int*, int*);
  size_t(EDGELLM_ORT_CALL* alias_map)(int**, int**);
  void(EDGELLM_ORT_CALL* release_alias_map)(int*, int*);
};

}  // namespace edgellm::ort
