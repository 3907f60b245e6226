// classify LIBONNXRUNTIME OPERATORS NETWORK.onnx IMAGE.ppm prints the class of an image, without Python and PyTorch.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "ort_api.h"

static const OrtApi *api;
static OrtAllocator *memory;

static void stop(const std::string &text) { std::fprintf(stderr, "error: %s\n", text.c_str()), std::exit(2); }
static void check(OrtStatus *status) {
  if (status) stop(ort::GetErrorMessage(api)(status));
}
static std::string metadata(OrtModelMetadata *of, const char *key) {
  char *value = nullptr;
  check(ort::ModelMetadataLookupCustomMetadataMap(api)(of, memory, key, &value));
  return value ? value : "";
}
// The number of channel c in "[0.5, 0.25]", or `otherwise` where the file has none.
static float number(std::string list, int c, float otherwise) {
  std::replace_if(list.begin(), list.end(), [](char x) { return x == '[' || x == ',' || x == ']'; }, ' ');
  std::istringstream text(list);
  for (float value; text >> value; c--)
    if (c == 0) return value;
  return otherwise;
}

// The next number of an image's header, after the comments that GIMP and others write there; 0 without any.
static int64_t header_number(std::istream &file) {
  std::string comment;
  while ((file >> std::ws).peek() == '#') std::getline(file, comment);
  int64_t value = 0;
  file >> value;
  return value;
}

int main(int argc, char **argv) {
  if (argc != 5) stop("four files are expected: LIBONNXRUNTIME OPERATORS NETWORK.onnx IMAGE.ppm");
  void *runtime = dlopen(argv[1], RTLD_NOW);
  void *entry = runtime ? dlsym(runtime, "OrtGetApiBase") : nullptr;
  if (entry) api = reinterpret_cast<const OrtApiBase *(*)()>(entry)()->GetApi(ort::API_VERSION);
  if (!api) stop(std::string(argv[1]) + " must be the library of ONNX Runtime 1.17 or later");

  OrtEnv *env;
  OrtSessionOptions *options;
  OrtSession *session;
  OrtModelMetadata *about;
  void *operators;
  check(ort::CreateEnv(api)(ort::WARNING, "classify", &env));
  check(ort::CreateSessionOptions(api)(&options));
  check(ort::RegisterCustomOpsLibrary(api)(options, argv[2], &operators));
  check(ort::CreateSession(api)(env, argv[3], options, &session));
  check(ort::GetAllocatorWithDefaultOptions(api)(&memory));
  check(ort::SessionGetModelMetadata(api)(session, &about));

  std::ifstream file(argv[4], std::ios::binary); // binary PPM or PGM of 8 bits, of the size that the network takes
  std::string magic;
  file >> magic;
  const int64_t width = header_number(file), height = header_number(file), most = header_number(file);
  file.get();
  const int64_t channels = magic == "P6" ? 3 : 1, pixels = width * height;
  if ((magic != "P6" && magic != "P5") || width < 1 || height < 1 || pixels > 1 << 26 || most != 255)
    stop(std::string(argv[4]) + " must be a binary PPM or PGM image of 8 bits");
  std::vector<unsigned char> bytes(channels * pixels);
  if (!file.read(reinterpret_cast<char *>(bytes.data()), bytes.size())) stop(std::string(argv[4]) + " is incomplete");
  std::vector<float> planes(bytes.size());
  const std::string mean = metadata(about, "mean"), std = metadata(about, "std");
  for (int c = 0; c < channels; c++)
    for (int64_t i = 0; i < pixels; i++)
      planes[c * pixels + i] = (bytes[i * channels + c] / 255.f - number(mean, c, 0)) / number(std, c, 1);

  const int64_t shape[] = {1, channels, height, width};
  OrtMemoryInfo *place;
  OrtValue *images, *logits = nullptr;
  OrtTensorTypeAndShapeInfo *info;
  char *input, *output;
  int64_t sizes[2];
  void *values;
  check(ort::CreateCpuMemoryInfo(api)(ort::ARENA, ort::DEFAULT, &place));
  check(ort::CreateTensorWithDataAsOrtValue(api)(place, planes.data(), planes.size() * sizeof(float), shape, 4,
                                                 ort::FLOAT, &images));
  check(ort::SessionGetInputName(api)(session, 0, memory, &input));
  check(ort::SessionGetOutputName(api)(session, 0, memory, &output));
  check(ort::Run(api)(session, nullptr, &input, &images, 1, &output, 1, &logits));
  check(ort::GetTensorTypeAndShape(api)(logits, &info));
  check(ort::GetDimensions(api)(info, sizes, 2));
  check(ort::GetTensorMutableData(api)(logits, &values));
  const float *found = static_cast<float *>(values), *best = std::max_element(found, found + sizes[1]);
  std::istringstream names(metadata(about, "classes"));
  std::string name;
  for (int64_t i = 0; i <= best - found; i++) std::getline(names, name);
  std::printf("%lld %s %.6f\n", static_cast<long long>(best - found), name.c_str(), *best);
}
