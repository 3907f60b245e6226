// What an operator sees of its node: attributes, tensors and threads, each checked, a refusal as one sentence.
#pragma once
#include <initializer_list>
#include <string>

#include "ort_api.h"

namespace esbnn {

// One sentence for the runtime to report.
struct Refusal {
  std::string text;
};

inline std::string text_of(const int64_t *sizes, size_t count) {
  std::string text = "(";
  for (size_t i = 0; i < count; i++) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + ")";
}

// An error of the runtime's own, handed on as it is.
struct Passed {
  OrtStatus *status;
};

inline void pass(OrtStatus *status) {
  if (status) throw Passed{status};
}

constexpr size_t MOST_DIMENSIONS = 8;
constexpr int64_t MOST = (int64_t(1) << 31) - 1; // no size of a tensor or attribute is larger

struct Tensor {
  const char *name = "";
  void *data = nullptr; // null where an optional input is left out
  int type = ort::UNDEFINED;
  int64_t shape[MOST_DIMENSIONS] = {};
  size_t rank = 0;

  std::string described() const { return text_of(shape, rank); }

  void expect(int wanted, std::initializer_list<int64_t> sizes) const {
    if (type != wanted)
      throw Refusal{std::string(name) + " must hold " + (wanted == ort::FLOAT ? "float" : "int32") +
                    " values, got type " + std::to_string(type) + " of ONNX: export the network again"};
    bool equal = rank == sizes.size();
    for (size_t i = 0; equal && i < rank; i++) equal = shape[i] == sizes.begin()[i];
    if (!equal)
      throw Refusal{std::string(name) + " must have shape " + text_of(sizes.begin(), sizes.size()) + ", got " +
                    described() + ": give images of a size that the network takes"};
  }
};

inline Tensor read(const OrtApi *api, const OrtValue *value, const char *name) {
  Tensor t;
  t.name = name;
  OrtTensorTypeAndShapeInfo *info = nullptr;
  pass(ort::GetTensorTypeAndShape(api)(value, &info));
  OrtStatus *status = ort::GetTensorElementType(api)(info, &t.type);
  if (!status) status = ort::GetDimensionsCount(api)(info, &t.rank);
  const bool fits = t.rank <= MOST_DIMENSIONS;
  if (!status && fits) status = ort::GetDimensions(api)(info, t.shape, t.rank);
  ort::ReleaseTensorTypeAndShapeInfo(api)(info);
  pass(status);
  if (!fits) throw Refusal{std::string(name) + " must have at most 8 dimensions, got " + std::to_string(t.rank)};
  pass(ort::GetTensorMutableData(api)(const_cast<OrtValue *>(value), &t.data));
  return t;
}

// What is known when the session is made.
struct Info {
  const OrtApi *api;
  const OrtKernelInfo *of;

  static int64_t between(const char *name, int64_t value, int64_t least, int64_t most = MOST) {
    if (value < least || value > most)
      throw Refusal{std::string(name) + " must be from " + std::to_string(least) + " to " + std::to_string(most) +
                    ", got " + std::to_string(value) + ": export the network again"};
    return value;
  }
  int64_t number(const char *name, int64_t least, int64_t most = MOST) const {
    int64_t value = 0;
    pass(ort::KernelInfoGetAttribute_int64(api)(of, name, &value));
    return between(name, value, least, most);
  }
  void pair(const char *name, int64_t least, int64_t *out) const {
    size_t count = 0;
    pass(ort::KernelInfoGetAttributeArray_int64(api)(of, name, nullptr, &count));
    if (count != 2) throw Refusal{std::string(name) + " must have 2 numbers, got " + std::to_string(count)};
    pass(ort::KernelInfoGetAttributeArray_int64(api)(of, name, out, &count));
    for (int i = 0; i < 2; i++) between(name, out[i], least);
  }
  // An initializer of the file, or a tensor without data for anything else.
  Tensor constant(size_t index, const char *name) const {
    int is_constant = 0;
    const OrtValue *value = nullptr;
    pass(ort::KernelInfoGetConstantInput_tensor(api)(of, index, &is_constant, &value));
    return is_constant && value ? read(api, value, name) : Tensor{};
  }
};

// What is known at a call.
struct Context {
  const OrtApi *api;
  OrtKernelContext *of;
  size_t inputs = 0;

  Context(const OrtApi *api, OrtKernelContext *of) : api(api), of(of) {
    pass(ort::KernelContext_GetInputCount(api)(of, &inputs));
  }
  Tensor input(size_t index, const char *name) const {
    const OrtValue *value = nullptr;
    if (index < inputs) pass(ort::KernelContext_GetInput(api)(of, index, &value));
    return value ? read(api, value, name) : Tensor{};
  }
  void *output(size_t index, std::initializer_list<int64_t> shape) const {
    return output(index, shape.begin(), shape.size());
  }
  void *output(size_t index, const int64_t *shape, size_t rank) const {
    OrtValue *value = nullptr;
    void *data = nullptr;
    pass(ort::KernelContext_GetOutput(api)(of, index, shape, rank, &value));
    if (value) pass(ort::GetTensorMutableData(api)(value, &data));
    return data;
  }
  // An esbnn_run on the threads of the session; `pool` is the Context.
  static void run(void *pool, void (*share)(void *of, size_t i), size_t shares, void *of) {
    const Context &context = *static_cast<Context *>(pool);
    OrtStatus *status = nullptr;
    if (shares > 1) status = ort::KernelContext_ParallelFor(context.api)(context.of, share, shares, 0, of);
    if (shares > 1 && !status) return;
    if (status) ort::ReleaseStatus(context.api)(status);
    for (size_t i = 0; i < shares; i++) share(of, i); // done by this thread, with the same result
  }
};

// The functions that the runtime calls for an operator: KERNEL has a name, the types of its inputs (the first GIVEN are
// required) and outputs, a constructor from an Info and a method compute.
template <typename KERNEL> struct Operator : OrtCustomOp {
  Operator() : OrtCustomOp{} {
    version = ort::API_VERSION;
    GetName = [](const OrtCustomOp *) { return KERNEL::NAME; };
    GetExecutionProviderType = [](const OrtCustomOp *) -> const char * { return nullptr; };
    GetInputTypeCount = [](const OrtCustomOp *) { return KERNEL::INPUTS; };
    GetInputType = [](const OrtCustomOp *, size_t i) { return KERNEL::input_type(i); };
    GetInputCharacteristic = [](const OrtCustomOp *, size_t i) {
      return int(i < KERNEL::GIVEN ? ort::REQUIRED : ort::OPTIONAL);
    };
    GetInputMemoryType = [](const OrtCustomOp *, size_t) { return int(ort::DEFAULT); };
    GetOutputTypeCount = [](const OrtCustomOp *) { return KERNEL::OUTPUTS; };
    GetOutputType = [](const OrtCustomOp *, size_t i) { return KERNEL::output_type(i); };
    GetOutputCharacteristic = [](const OrtCustomOp *, size_t i) { return int(i ? ort::OPTIONAL : ort::REQUIRED); };
    GetStartVersion = [](const OrtCustomOp *) { return 1; };
    GetEndVersion = [](const OrtCustomOp *) { return 1; };
    CreateKernelV2 = [](const OrtCustomOp *, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
      return guarded(api, [&] { *kernel = new KERNEL(Info{api, info}); });
    };
    KernelComputeV2 = [](void *kernel, OrtKernelContext *context) {
      const KERNEL &called = *static_cast<const KERNEL *>(kernel);
      return guarded(called.api, [&] { called.compute(Context(called.api, context)); });
    };
    KernelDestroy = [](void *kernel) { delete static_cast<KERNEL *>(kernel); };
  }

  template <typename Action> static OrtStatus *guarded(const OrtApi *api, const Action &action) {
    const std::string name = std::string("esbnn::") + KERNEL::NAME + ": ";
    try {
      action();
      return nullptr;
    } catch (const Passed &error) {
      return error.status;
    } catch (const Refusal &error) {
      return ort::CreateStatus(api)(ort::INVALID_ARGUMENT, (name + error.text).c_str());
    } catch (...) {
      const std::string text = name + "there is not enough memory: give fewer or smaller images";
      return ort::CreateStatus(api)(ort::FAIL, text.c_str());
    }
  }
};

} // namespace esbnn
