// What real.cpp passes to the real kernels, and what a source for one instruction set provides.
#pragma once
#include <cstdint>

namespace esbnn {

constexpr int ROW_BLOCKS = 4;

// Tap k of a filter reads the value at places[k]; neighbouring outputs begin `pixel_step` values apart. Weights are
// (filters / 64, taps, 64), the last filters fewer side by side: up to a multiple of 16, as the bias.
struct RealConv {
  int64_t taps, pixel_step, filters;
  const int64_t *places;
  const float *weights, *bias;
};

// Of a window's largest values, as many copies as that; each times its scale plus its offset, if they are not null.
struct RealPool {
  int64_t in_h, in_w, out_w, channels, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, copies;
  const float *scale, *offset; // (copies, channels)
};

// What follows a layer, each step null where it is left out: y[j] = x[j mod channels] * gate[j] * factor[j], then
// * scale[j] + bias[j], then PReLU, then + residual[j]. Maps have copies * channels channels, vectors as many numbers.
struct RealTail {
  int64_t channels, copies;
  const float *scale, *bias, *slope;
};

struct RealKernels {
  void (*conv)(const RealConv &, const float *x, int64_t line_step, int64_t lines, int64_t pixels, float *y);
  void (*pool)(const RealPool &, const float *x, int64_t base, int64_t out_row, float *y);
  bool (*extremes)(const RealPool &, const float *sign, const float *least, const float *x, int64_t out_row, float *y);
  void (*average)(const RealPool &, const float *x, int64_t out_row, float *y);
  void (*tail)(const RealTail &, const float *x, const float *gate, const float *factor, const float *residual,
               int64_t pixels, float *y);
  void (*sum)(const float *x, int64_t pixels, int64_t channels, float *to); // of each channel
};

extern const RealKernels real_portable;
#ifdef ESBNN_X86
extern const RealKernels real_avx2, real_avx512;
#endif
#ifdef ESBNN_NEON
extern const RealKernels real_neon;
#endif

} // namespace esbnn
