// Who does the shares of a call.
#pragma once
#include <cstdint>

#include "interface.h"

namespace esbnn {

// `threads` of OpenMP, or a caller's own pool, which `run` hands the shares to.
struct Workers {
  int threads;
  esbnn_run run = nullptr;
  void *pool = nullptr;
};

// Calls share(i) for every i below `count`.
template <typename Share> static void spread(const Workers &workers, int64_t count, const Share &share) {
  if (workers.run) {
    const auto call = [](void *of, size_t i) { (*static_cast<const Share *>(of))(int64_t(i)); };
    workers.run(workers.pool, call, size_t(count), const_cast<Share *>(&share));
    return;
  }
#pragma omp parallel for schedule(static) num_threads(workers.threads) if (workers.threads > 1)
  for (int64_t i = 0; i < count; i++) share(i);
}

} // namespace esbnn
