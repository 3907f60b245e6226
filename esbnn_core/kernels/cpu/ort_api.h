// The part of ONNX Runtime's C interface that this project calls, without its headers and without linking to it.
//
// OrtApi is a table of functions to which versions only append, so that a place never changes; the names here are
// those of onnxruntime_c_api.h. API 17 (ONNX Runtime 1.17 and later) has all of them.
#pragma once
#include <cstddef>
#include <cstdint>

struct OrtStatus;
struct OrtEnv;
struct OrtSession;
struct OrtSessionOptions;
struct OrtRunOptions;
struct OrtMemoryInfo;
struct OrtModelMetadata;
struct OrtAllocator;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtCustomOpDomain;
struct OrtCustomOp;

struct OrtApi {
  void (*at[275])();
};
struct OrtApiBase {
  const OrtApi *(*GetApi)(uint32_t version);
  const char *(*GetVersionString)();
};

namespace ort {

constexpr uint32_t API_VERSION = 17;
enum ErrorCode { FAIL = 1, INVALID_ARGUMENT = 2 };
enum ElementType { UNDEFINED = 0, FLOAT = 1, INT32 = 6 };
enum Presence { REQUIRED = 0, OPTIONAL = 1 };
enum AllocatorType { ARENA = 1 };
enum MemoryType { DEFAULT = 0 };
enum LogLevel { WARNING = 2 };

// ort::NAME(api)(arguments) calls one function of the table
#define ORT_ENTRY(place, result, name, ...)                                                                            \
  inline result (*name(const OrtApi *api))(__VA_ARGS__) {                                                              \
    return reinterpret_cast<result (*)(__VA_ARGS__)>(api->at[place]);                                                  \
  }

ORT_ENTRY(0, OrtStatus *, CreateStatus, int code, const char *message)
ORT_ENTRY(2, const char *, GetErrorMessage, const OrtStatus *status)
ORT_ENTRY(3, OrtStatus *, CreateEnv, int log_level, const char *log_id, OrtEnv **out)
ORT_ENTRY(7, OrtStatus *, CreateSession, const OrtEnv *env, const char *path, const OrtSessionOptions *options,
          OrtSession **out)
ORT_ENTRY(9, OrtStatus *, Run, OrtSession *session, const OrtRunOptions *options, const char *const *input_names,
          const OrtValue *const *inputs, size_t input_count, const char *const *output_names, size_t output_count,
          OrtValue **outputs)
ORT_ENTRY(10, OrtStatus *, CreateSessionOptions, OrtSessionOptions **out)
ORT_ENTRY(24, OrtStatus *, SetIntraOpNumThreads, OrtSessionOptions *options, int threads)
ORT_ENTRY(26, OrtStatus *, CreateCustomOpDomain, const char *domain, OrtCustomOpDomain **out)
ORT_ENTRY(27, OrtStatus *, CustomOpDomain_Add, OrtCustomOpDomain *domain, const OrtCustomOp *op)
ORT_ENTRY(28, OrtStatus *, AddCustomOpDomain, OrtSessionOptions *options, OrtCustomOpDomain *domain)
ORT_ENTRY(29, OrtStatus *, RegisterCustomOpsLibrary, OrtSessionOptions *options, const char *path, void **handle)
ORT_ENTRY(36, OrtStatus *, SessionGetInputName, const OrtSession *session, size_t index, OrtAllocator *allocator,
          char **out)
ORT_ENTRY(37, OrtStatus *, SessionGetOutputName, const OrtSession *session, size_t index, OrtAllocator *allocator,
          char **out)
ORT_ENTRY(49, OrtStatus *, CreateTensorWithDataAsOrtValue, const OrtMemoryInfo *info, void *data, size_t bytes,
          const int64_t *shape, size_t rank, int element_type, OrtValue **out)
ORT_ENTRY(51, OrtStatus *, GetTensorMutableData, OrtValue *value, void **out)
ORT_ENTRY(60, OrtStatus *, GetTensorElementType, const OrtTensorTypeAndShapeInfo *info, int *out)
ORT_ENTRY(61, OrtStatus *, GetDimensionsCount, const OrtTensorTypeAndShapeInfo *info, size_t *out)
ORT_ENTRY(62, OrtStatus *, GetDimensions, const OrtTensorTypeAndShapeInfo *info, int64_t *out, size_t count)
ORT_ENTRY(65, OrtStatus *, GetTensorTypeAndShape, const OrtValue *value, OrtTensorTypeAndShapeInfo **out)
ORT_ENTRY(69, OrtStatus *, CreateCpuMemoryInfo, int allocator_type, int memory_type, OrtMemoryInfo **out)
ORT_ENTRY(78, OrtStatus *, GetAllocatorWithDefaultOptions, OrtAllocator **out)
ORT_ENTRY(86, OrtStatus *, KernelInfoGetAttribute_int64, const OrtKernelInfo *info, const char *name, int64_t *out)
ORT_ENTRY(88, OrtStatus *, KernelContext_GetInputCount, const OrtKernelContext *context, size_t *out)
ORT_ENTRY(90, OrtStatus *, KernelContext_GetInput, const OrtKernelContext *context, size_t index, const OrtValue **out)
ORT_ENTRY(91, OrtStatus *, KernelContext_GetOutput, OrtKernelContext *context, size_t index, const int64_t *shape,
          size_t rank, OrtValue **out)
ORT_ENTRY(93, void, ReleaseStatus, OrtStatus *status)
ORT_ENTRY(99, void, ReleaseTensorTypeAndShapeInfo, OrtTensorTypeAndShapeInfo *info)
ORT_ENTRY(111, OrtStatus *, SessionGetModelMetadata, const OrtSession *session, OrtModelMetadata **out)
ORT_ENTRY(116, OrtStatus *, ModelMetadataLookupCustomMetadataMap, const OrtModelMetadata *metadata,
          OrtAllocator *allocator, const char *key, char **out)
ORT_ENTRY(163, OrtStatus *, KernelInfoGetAttributeArray_int64, const OrtKernelInfo *info, const char *name,
          int64_t *out, size_t *count)
ORT_ENTRY(249, OrtStatus *, KernelInfoGetConstantInput_tensor, const OrtKernelInfo *info, size_t index, int *constant,
          const OrtValue **out)
ORT_ENTRY(274, OrtStatus *, KernelContext_ParallelFor, const OrtKernelContext *context,
          void (*share)(void *of, size_t i), size_t shares, size_t batches, void *of)
#undef ORT_ENTRY

} // namespace ort

// What the runtime asks an operator; the members that API 17 has, in its order.
struct OrtCustomOp {
  uint32_t version;
  void *(*CreateKernel)(const OrtCustomOp *, const OrtApi *, const OrtKernelInfo *);
  const char *(*GetName)(const OrtCustomOp *);
  const char *(*GetExecutionProviderType)(const OrtCustomOp *);
  int (*GetInputType)(const OrtCustomOp *, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp *);
  int (*GetOutputType)(const OrtCustomOp *, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp *);
  void (*KernelCompute)(void *kernel, OrtKernelContext *);
  void (*KernelDestroy)(void *kernel);
  int (*GetInputCharacteristic)(const OrtCustomOp *, size_t index);
  int (*GetOutputCharacteristic)(const OrtCustomOp *, size_t index);
  int (*GetInputMemoryType)(const OrtCustomOp *, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp *);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp *);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp *);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp *);
  OrtStatus *(*CreateKernelV2)(const OrtCustomOp *, const OrtApi *, const OrtKernelInfo *, void **kernel);
  OrtStatus *(*KernelComputeV2)(void *kernel, OrtKernelContext *);
  OrtStatus *(*InferOutputShapeFn)(const OrtCustomOp *, OrtShapeInferContext *);
  int (*GetStartVersion)(const OrtCustomOp *);
  int (*GetEndVersion)(const OrtCustomOp *);
};
