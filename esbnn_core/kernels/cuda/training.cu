// The steps of training on bits as kernels, all in one compilation.
#include "signs.cuh"
#include "tail.cuh"

#ifdef __CUDACC__
#define KERNEL(name, threads, Arguments) extern "C" __global__ void __launch_bounds__(threads) name(const Arguments p)

KERNEL(tail, ROW_THREADS, Tail) { tail_forward(p); }
KERNEL(tail_gradients, ROW_THREADS, Tail) {
  __shared__ TailMemory memory;
  tail_backward(p, memory);
}
KERNEL(statistics, ROW_THREADS, Statistics) { add_statistics(p); }
KERNEL(estimator, ROW_THREADS, Estimator) {
  __shared__ LineMemory memory;
  through_estimator(p, memory);
}
KERNEL(signs, ROW_THREADS, Signs) { read_signs(p); }
KERNEL(moments, ROW_THREADS, Moments) {
  __shared__ MomentsMemory memory;
  add_moments(p, memory);
}
KERNEL(totals, TOTAL_THREADS, Totals) {
  __shared__ BlockLines memory;
  add_blocks(p, memory);
}
#endif
