// Several steps as one call: what Python prepares once for a shape of the input, and runs with the addresses of a call.
#include <cstring>

#include "interface.h"

namespace {

using namespace esbnn;

// One number after the other of a program.
struct Reader {
  const int64_t *at;
  int64_t next() { return *at++; }
  const int64_t *next(int64_t count) {
    at += count;
    return at - count;
  }
};

// The shares of a step on `*threads` threads of OpenMP, as esbnn_run.
void on_threads(void *threads, void (*share)(void *, size_t), size_t shares, void *of) {
  const int count = *static_cast<int *>(threads);
#pragma omp parallel for schedule(static) num_threads(count) if (count > 1)
  for (int64_t i = 0; i < int64_t(shares); i++) share(of, size_t(i));
}

int step(int path, int64_t kind, const int64_t *n, void *const *p, int threads) {
  const auto floats = [&](int i) { return static_cast<const float *>(p[i]); };
  float *const to = static_cast<float *>(p[1]);
  switch (kind) {
  case BINARY_CONV:
    return esbnn_conv(path, n, p);
  case CLEAR:
    std::memset(p[0], 0, size_t(n[0]));
    return 0;
  case REAL_CONV:
    return esbnn_real_conv(path, n, floats(0), floats(2), floats(3), to, threads);
  case AVERAGE_POOL:
    esbnn_average_pool(path, n, floats(0), to, on_threads, &threads);
    return 0;
  case MEANS:
    esbnn_means(path, n[0], n[1], n[2], floats(0), to, on_threads, &threads);
    return 0;
  case TILED_AFFINE: {
    const float *const given[7] = {floats(0), floats(2), floats(3)};
    esbnn_tail(path, n[0], n[1], n[2], n[3], given, to, n[4], on_threads, &threads);
    return 0;
  }
  }
  return 1;
}

} // namespace

API int esbnn_program(int path, const int64_t *program, void *const *bases) {
  Reader reader{program};
  const int threads = int(reader.next());
  void *pointers[POINTER_LENGTH];
  for (int64_t left = reader.next(); left > 0; left--) {
    const int64_t kind = reader.next(), numbers = reader.next(), count = reader.next();
    const int64_t *const n = reader.next(numbers);
    for (int64_t i = 0; i < count; i++) {
      const int64_t base = reader.next();
      pointers[i] = reinterpret_cast<void *>(reinterpret_cast<uintptr_t>(bases[base]) + uintptr_t(reader.next()));
    }
    if (step(path, kind, n, pointers, threads)) return 1;
  }
  return 0;
}
