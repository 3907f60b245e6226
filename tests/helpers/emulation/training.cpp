// The kernels of esbnn_core/kernels/cuda/training.cu and norm.cu as a library for the CPU, on the emulated device.
#include "ptx.h"

#include "norm.cu"
#include "training.cu"

namespace {

void *shared;

using Run = void (*)(const void *);

template <class Arguments, void (*CALL)(const Arguments &)> void plain(const void *p) {
  CALL(*static_cast<const Arguments *>(p));
}
template <class Arguments, class Memory, void (*CALL)(const Arguments &, Memory &)> void sharing(const void *p) {
  CALL(*static_cast<const Arguments *>(p), *static_cast<Memory *>(shared));
}

struct Known {
  const char *name;
  Run run;
  size_t arguments, memory;
  int threads;
};

const Known ALL[] = {
    {"tail", plain<Tail, tail_forward>, sizeof(Tail), 0, ROW_THREADS},
    {"tail_gradients", sharing<Tail, TailMemory, tail_backward>, sizeof(Tail), sizeof(TailMemory), ROW_THREADS},
    {"statistics", plain<Statistics, add_statistics>, sizeof(Statistics), 0, ROW_THREADS},
    {"estimator", sharing<Estimator, LineMemory, through_estimator>, sizeof(Estimator), sizeof(LineMemory),
     ROW_THREADS},
    {"signs", plain<Signs, read_signs>, sizeof(Signs), 0, ROW_THREADS},
    {"moments", sharing<Moments, MomentsMemory, add_moments>, sizeof(Moments), sizeof(MomentsMemory), ROW_THREADS},
    {"batch_norm", plain<Norm, norm_forward>, sizeof(Norm), 0, NORM_THREADS},
    {"batch_norm_gradients", plain<Norm, norm_backward>, sizeof(Norm), 0, NORM_THREADS},
    {"totals", sharing<Totals, BlockLines, add_blocks>, sizeof(Totals), sizeof(BlockLines), TOTAL_THREADS},
};

const Known *find(const char *name) {
  for (const Known &one : ALL)
    if (!std::strcmp(name, one.name)) return &one;
  return nullptr;
}

} // namespace

// Bytes of a kernel's arguments, 0 for an unknown one.
extern "C" int emulate_size(const char *name) {
  const Known *found = find(name);
  return found ? int(found->arguments) : 0;
}

// Rows of a thread of a tail with copies.
extern "C" int emulate_turns() { return TURNS; }

extern "C" int emulate(const char *name, const void *p, unsigned across, unsigned down, int threads, int eager,
                       int backwards) {
  const Known *found = find(name);
  if (!found) return 1;
  if (threads != found->threads) fail("a launch has another number of threads than its kernel");
  shared = found->memory ? std::aligned_alloc(16, found->memory) : nullptr; // anew, as in kernels.cpp
  run_grid(found->run, p, across, down, threads, eager, backwards, shared, found->memory);
  std::free(shared);
  return 0;
}
