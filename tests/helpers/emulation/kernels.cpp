// The kernels of esbnn_core/kernels/cuda as a library for the CPU, one variant a tile and path, all steps at run time.
#include "ptx.h"

#include "conv.cu"
#include "lanes.cu"
#include "pack.cu"

namespace {

void *shared;

template <class T, class Path> void conv_kernel(const void *p) {
  convolve<T, Path, -1>(*static_cast<const Conv *>(p), *static_cast<Memory<T> *>(shared));
}
void lanes_kernel(const void *p) { make_lanes(*static_cast<const Lanes *>(p)); }
void pack_kernel(const void *p) { pack_any(*static_cast<const Pack *>(p)); }

template <class T, class Path>
void run_conv(const void *p, unsigned across, unsigned down, int threads, bool eager, bool backwards) {
  if (threads != T::THREADS) fail("a launch has another number of threads than its tile");
  shared = std::aligned_alloc(16, sizeof(Memory<T>)); // anew, so that a sanitizer sees what goes past its end
  run_grid(conv_kernel<T, Path>, p, across, down, threads, eager, backwards, shared, sizeof(Memory<T>));
  std::free(shared);
}

} // namespace

extern "C" int emulate_size(int which) { return which == 0 ? sizeof(Conv) : which == 1 ? sizeof(Pack) : sizeof(Lanes); }

// The twin's own rounding, for its test: kind FLOAT16 or BFLOAT16.
extern "C" void emulate_rounding(const float *x, int n, int kind, float *out) {
  for (int i = 0; i < n; i++) out[i] = widened(kind == FLOAT16 ? to_halves(x[i], 0) : to_bfloats(x[i], 0), kind);
}

extern "C" int emulate(const char *name, const void *p, unsigned across, unsigned down, int threads, int eager,
                       int backwards) {
  const auto is = [&](const char *other) { return std::strcmp(name, other) == 0; };
  if (is("pack"))
    run_grid(pack_kernel, p, across, down, threads, eager, backwards, nullptr, 0);
  else if (is("lanes"))
    run_grid(lanes_kernel, p, across, down, threads, eager, backwards, nullptr, 0);
  else if (is("conv Large Bits"))
    run_conv<Large, Bits>(p, across, down, threads, eager, backwards);
  else if (is("conv Small Bits"))
    run_conv<Small, Bits>(p, across, down, threads, eager, backwards);
  else if (is("conv Large Bytes"))
    run_conv<Large, Bytes>(p, across, down, threads, eager, backwards);
  else if (is("conv Small Bytes"))
    run_conv<Small, Bytes>(p, across, down, threads, eager, backwards);
  else
    return 1;
  return 0;
}
