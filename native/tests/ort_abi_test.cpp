// Our places in ONNX Runtime's interface against its own header, which nothing but this test includes: it compiles, or
// it does not. onnxruntime/ is the header of ONNX Runtime 1.23 with its licence; later ones only add at the end.

#include "../onnx/ort_abi.h"

#include <cstddef>

#include "onnxruntime_c_api.h"

namespace ort = edgellm::ort;

#define SAME_PLACE(place, function) \
  static_assert(static_cast<size_t>(ort::Place::place) * sizeof(void*) == offsetof(OrtApi, function))

SAME_PLACE(kCreateStatus, CreateStatus);
SAME_PLACE(kErrorMessage, GetErrorMessage);
SAME_PLACE(kCreateDomain, CreateCustomOpDomain);
SAME_PLACE(kAddToDomain, CustomOpDomain_Add);
SAME_PLACE(kAddDomain, AddCustomOpDomain);
SAME_PLACE(kTensorData, GetTensorMutableData);
SAME_PLACE(kElementType, GetTensorElementType);
SAME_PLACE(kRank, GetDimensionsCount);
SAME_PLACE(kDimensions, GetDimensions);
SAME_PLACE(kElements, GetTensorShapeElementCount);
SAME_PLACE(kShapeOf, GetTensorTypeAndShape);
SAME_PLACE(kAttributeFloat, KernelInfoGetAttribute_float);
SAME_PLACE(kAttributeInt, KernelInfoGetAttribute_int64);
SAME_PLACE(kAttributeText, KernelInfoGetAttribute_string);
SAME_PLACE(kInput, KernelContext_GetInput);
SAME_PLACE(kOutput, KernelContext_GetOutput);
SAME_PLACE(kReleaseStatus, ReleaseStatus);
SAME_PLACE(kReleaseShape, ReleaseTensorTypeAndShapeInfo);
SAME_PLACE(kReleaseDomain, ReleaseCustomOpDomain);
SAME_PLACE(kConstantInput, KernelInfoGetConstantInput_tensor);
SAME_PLACE(kParallelFor, KernelContext_ParallelFor);

#define SAME_FIELD(ours, theirs) static_assert(offsetof(ort::Operator, ours) == offsetof(OrtCustomOp, theirs))

SAME_FIELD(version, version);
SAME_FIELD(create_kernel, CreateKernel);
SAME_FIELD(name, GetName);
SAME_FIELD(provider, GetExecutionProviderType);
SAME_FIELD(input_type, GetInputType);
SAME_FIELD(input_count, GetInputTypeCount);
SAME_FIELD(output_type, GetOutputType);
SAME_FIELD(output_count, GetOutputTypeCount);
SAME_FIELD(compute, KernelCompute);
SAME_FIELD(destroy, KernelDestroy);
SAME_FIELD(input_presence, GetInputCharacteristic);
SAME_FIELD(output_presence, GetOutputCharacteristic);
SAME_FIELD(input_memory, GetInputMemoryType);
SAME_FIELD(variadic_input_minimum, GetVariadicInputMinArity);
SAME_FIELD(variadic_input_alike, GetVariadicInputHomogeneity);
SAME_FIELD(variadic_output_minimum, GetVariadicOutputMinArity);
SAME_FIELD(variadic_output_alike, GetVariadicOutputHomogeneity);
SAME_FIELD(create_kernel_2, CreateKernelV2);
SAME_FIELD(compute_2, KernelComputeV2);
SAME_FIELD(infer_shape, InferOutputShapeFn);
SAME_FIELD(start_version, GetStartVersion);
SAME_FIELD(end_version, GetEndVersion);
SAME_FIELD(may_inplace, GetMayInplace);
SAME_FIELD(release_may_inplace, ReleaseMayInplace);
SAME_FIELD(alias_map, GetAliasMap);
SAME_FIELD(release_alias_map, ReleaseAliasMap);
static_assert(sizeof(ort::Operator) == sizeof(OrtCustomOp));

static_assert(offsetof(ort::ApiBase, get) == offsetof(OrtApiBase, GetApi));
static_assert(offsetof(ort::ApiBase, version_string) == offsetof(OrtApiBase, GetVersionString));

static_assert(int{ort::kFail} == ORT_FAIL && int{ort::kInvalidArgument} == ORT_INVALID_ARGUMENT);
static_assert(int{ort::kFloat} == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
static_assert(int{ort::kUint8} == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8);
static_assert(int{ort::kInt32} == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32);
static_assert(int{ort::kInt64} == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
static_assert(int{ort::kRequired} == INPUT_OUTPUT_REQUIRED && int{ort::kOptional} == INPUT_OUTPUT_OPTIONAL);
