// What every operator of ONNX Runtime asks first.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <string>
#include <thread>

#include "interface.h"
#include "ort_node.h"

namespace esbnn {

// The kernels' path: the best that this processor has, or the one that ESBNN_BACKEND names.
inline int choose_path() {
  const char *wanted = std::getenv("ESBNN_BACKEND");
  std::string usable;
  const char *name;
  for (int i = 0, here; (name = esbnn_path(i, &here)); i++) {
    if (here && (!wanted || !*wanted || std::string(name) == wanted)) return i;
    if (here) usable += (usable.empty() ? "" : ", ") + std::string(name);
  }
  throw Refusal{"ESBNN_BACKEND must be one of " + usable + " in ONNX Runtime on this machine, got " + wanted};
}

// Threads that `work` steps of the inner loop are worth, each of 32 products; the runtime gives as many as it has.
inline int64_t worth(int64_t work) {
  static const int64_t most = std::max(1u, std::thread::hardware_concurrency());
  return std::max<int64_t>(1, std::min(most, work >> 18));
}

} // namespace esbnn
