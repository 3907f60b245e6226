// Real convolutions and max-pooling behind the C interface: choice of the instruction set, zeros around the image, and
// the division of the work among threads. The caller has checked the arguments.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "real_kernels.h"
#include "scratch.h"
#include "workers.h"

namespace {

using namespace esbnn;

// The instruction set that goes with a path of the binary kernels.
const RealKernels &kernels_of(int path) {
  int usable;
  const std::string name = esbnn_path(path, &usable);
#ifdef ESBNN_X86
  if (name == "amx-s8" || name.rfind("avx512", 0) == 0) return real_avx512;
  if (name.rfind("avx2", 0) == 0 && __builtin_cpu_supports("fma")) return real_avx2;
#endif
#ifdef ESBNN_NEON
  if (name == "neon") return real_neon;
#endif
  return real_portable;
}

thread_local Scratch image_rows, map_rows; // of the image with zeros around them, and of a convolution's output

// In the order of interface.h.
struct Sizes {
  int64_t images, in_h, in_w, channels, out_h, out_w, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, filters;
};

const Sizes &sizes_of(const int64_t *shape) { return *reinterpret_cast<const Sizes *>(shape); }

// Rows [first, first + count) of the image, which may be outside of it, with `side` zero pixels on both sides.
void padded(const float *x, const Sizes &s, int64_t first, int64_t count, float *to) {
  const int64_t values = s.in_w * s.channels, side = s.pad_w * s.channels;
  for (int64_t row = first; row < first + count; row++, to += values + 2 * side) {
    if (row < 0 || row >= s.in_h) {
      std::memset(to, 0, (values + 2 * side) * sizeof(float));
      continue;
    }
    std::memset(to, 0, side * sizeof(float));
    std::memcpy(to + side, x + row * values, values * sizeof(float));
    std::memset(to + side + values, 0, side * sizeof(float));
  }
}

// A convolution's rows, from a padded copy of those of the image that they read.
struct Rows {
  const RealKernels &kernels;
  const Sizes &s;
  const float *weights, *bias;
  int64_t wide, run;
  std::vector<int64_t> places;

  Rows(int path, const Sizes &s, const float *weights, const float *bias)
      : kernels(kernels_of(path)), s(s), weights(weights), bias(bias), wide((s.in_w + 2 * s.pad_w) * s.channels),
        run(s.kernel_w * s.channels) {
    for (int64_t row = 0; row < s.kernel_h; row++)
      for (int64_t k = 0; k < run; k++) places.push_back(row * wide + k);
  }
  RealConv conv() const {
    return {s.kernel_h * run, s.stride_w * s.channels, s.filters, places.data(), weights, bias};
  }
  int64_t image() const { return s.in_h * s.in_w * s.channels; }
  int64_t line() const { return s.out_w * s.filters; } // values of an output row

  // Output rows [from, to) of an image; false where memory is short.
  bool make(const float *x, int64_t from, int64_t to, float *y) const {
    const int64_t first = from * s.stride_h - s.pad_h, count = (to - from - 1) * s.stride_h + s.kernel_h;
    const float *start = x + first * wide;
    if (s.pad_h || s.pad_w) {
      float *copy = image_rows.need<float>(count * wide);
      if (!copy) return false;
      padded(x, s, first, count, copy);
      start = copy;
    }
    kernels.conv(conv(), start, s.stride_h * wide, to - from, s.out_w, y);
    return true;
  }
};

RealPool pool_of(const Sizes &s, int64_t copies, const float *scale, const float *offset) {
  return {s.in_h,     s.in_w,  s.out_w, s.channels, s.kernel_h, s.kernel_w, s.stride_h,
          s.stride_w, s.pad_h, s.pad_w, copies,     scale,      offset};
}

} // namespace

API int esbnn_real_conv(int path, const int64_t *shape, const float *x, const float *weights, const float *bias, float *y,
                        int threads) {
  const Sizes &s = sizes_of(shape);
  const Rows rows(path, s, weights, bias);
  const bool one = s.kernel_h == 1 && s.kernel_w == 1 && s.stride_h == 1 && s.stride_w == 1;
  const bool flat = one && !s.pad_h && !s.pad_w; // the pixels of an image are one row
  const int64_t extent = flat ? s.out_h * s.out_w : s.out_h, least = flat ? (threads > 1 ? 48 : extent) : 8;
  const int64_t shares = std::max<int64_t>(1, extent / least);
  std::atomic<int> failed{0};
  spread({threads}, s.images * shares, [&](int64_t i) {
    const int64_t n = i / shares, from = i % shares * extent / shares, to = (i % shares + 1) * extent / shares;
    const float *image = x + n * rows.image();
    float *out = y + n * s.out_h * rows.line();
    if (flat)
      rows.kernels.conv(rows.conv(), image + from * s.channels, 0, 1, to - from, out + from * s.filters);
    else if (!rows.make(image, from, to, out + from * rows.line()))
      failed = 1;
  });
  return failed;
}

API void esbnn_max_pool(int path, const int64_t *shape, const float *x, float *y, int threads) {
  const Sizes &s = sizes_of(shape);
  const RealPool c = pool_of(s, 1, nullptr, nullptr);
  const auto pool = kernels_of(path).pool;
  spread({threads}, s.images * s.out_h, [&](int64_t i) {
    const float *image = x + i / s.out_h * s.in_h * s.in_w * s.channels;
    pool(c, image, 0, i % s.out_h, y + i * s.out_w * s.channels);
  });
}

// A norm gives alpha * x + beta, rounded once or twice, which never falls (rises, if alpha is negative) as x grows: the
// largest of its values is its value of the largest. Only a zero's sign could differ. It cannot where beta is no smaller
// than 2^-70, and else where every x that is picked is at least 2^-40, if alpha has an ordinary size.
API int esbnn_pool_before_norm(int path, const int64_t *shape, const float *x, int64_t copies, const float *weight,
                               const float *bias, const float *mean, const float *variance, double eps, float *y,
                               int threads) {
  const Sizes &s = sizes_of(shape);
  const int64_t all = copies * s.channels;
  std::vector<float> sign(all), least(all);
  for (int64_t c = 0; c < all; c++) {
    const double alpha = (weight ? weight[c] : 1.0) / std::sqrt(variance[c] + eps), moved = mean[c] * alpha;
    const double start = bias ? bias[c] : 0.0, beta = std::abs(start - moved), size = std::abs(alpha);
    if (!(size >= 0x1p-26 && size <= 0x1p60 && beta <= 0x1p60)) return 0;
    sign[c] = alpha < 0 ? -1.0f : 1.0f;
    least[c] = beta >= 0x1p-69 && beta >= 0x1p-18 * (std::abs(start) + std::abs(moved)) ? 0.0f : 0x1p-40f;
  }
  const RealPool c = pool_of(s, copies, nullptr, nullptr);
  const auto extremes = kernels_of(path).extremes;
  std::atomic<int> same{1};
  spread({threads}, s.images * s.out_h, [&](int64_t i) {
    const float *image = x + i / s.out_h * s.in_h * s.in_w * s.channels;
    if (!extremes(c, sign.data(), least.data(), image, i % s.out_h, y + i * s.out_w * all)) same = 0;
  });
  return same;
}

// A few rows of the convolution at a time stay in the second cache until they are pooled.
API int esbnn_real_conv_pool(int path, const int64_t *conv_shape, const int64_t *pool_shape, const float *x,
                             const float *weights, const float *bias, int64_t copies, const float *scale,
                             const float *offset, float *y, int threads) {
  const Sizes &p = sizes_of(pool_shape);
  const Rows rows(path, sizes_of(conv_shape), weights, bias);
  const RealPool c = pool_of(p, copies, scale, offset);
  const int64_t together = 4, shares = threads > 1 ? std::max<int64_t>(1, std::min<int64_t>(2 * threads, p.out_h / 4)) : 1;
  std::atomic<int> failed{0};
  spread({threads}, p.images * shares, [&](int64_t i) {
    const int64_t n = i / shares, from = i % shares * p.out_h / shares, to = (i % shares + 1) * p.out_h / shares;
    const auto needs = [&](int64_t out_row) { return std::max<int64_t>(0, out_row * p.stride_h - p.pad_h); };
    float *kept = map_rows.need<float>(((together - 1) * p.stride_h + p.kernel_h) * rows.line());
    if (!kept) {
      failed = 1;
      return;
    }
    int64_t begin = 0, end = 0; // rows of the map that are there
    for (int64_t row = from; row < to; row += together) {
      const int64_t last = std::min(row + together, to), first = needs(row);
      const int64_t wanted = std::min(p.in_h, (last - 1) * p.stride_h - p.pad_h + p.kernel_h);
      const int64_t old = std::max<int64_t>(0, end - first);
      if (old) std::memmove(kept, kept + (first - begin) * rows.line(), old * rows.line() * sizeof(float));
      begin = first, end = std::max(wanted, first + old);
      if (first + old < wanted &&
          !rows.make(x + n * rows.image(), first + old, wanted, kept + old * rows.line())) {
        failed = 1;
        return;
      }
      for (int64_t out = row; out < last; out++)
        rows.kernels.pool(c, kept, begin, out, y + (n * p.out_h + out) * p.out_w * copies * p.channels);
    }
  });
  return failed;
}

// In shares of a few pixels, for `run` as in esbnn_conv_in.
API void esbnn_tail(int path, int64_t images, int64_t pixels, int64_t channels, int64_t copies, const float *const *given,
                    float *y, int64_t shares, esbnn_run run, void *pool) {
  const RealKernels &kernels = kernels_of(path);
  const RealTail c{channels, copies, given[1], given[2], given[3]};
  const int64_t all = channels * copies;
  spread({1, run, pool}, images * shares, [&](int64_t i) {
    const int64_t n = i / shares, from = i % shares * pixels / shares, to = (i % shares + 1) * pixels / shares;
    const int64_t first = n * pixels + from;
    const auto map = [&](const float *of) { return of ? of + first * all : nullptr; };
    kernels.tail(c, given[0] + first * channels, given[4] ? given[4] + n * all : nullptr, map(given[5]), map(given[6]),
                 to - from, y + first * all);
  });
}

API void esbnn_average_pool(int path, const int64_t *shape, const float *x, float *y, esbnn_run run, void *pool) {
  const Sizes &s = sizes_of(shape);
  const RealPool c = pool_of(s, 1, nullptr, nullptr);
  const auto average = kernels_of(path).average;
  spread({1, run, pool}, s.images * s.out_h, [&](int64_t i) {
    const float *image = x + i / s.out_h * s.in_h * s.in_w * s.channels;
    average(c, image, i % s.out_h, y + i * s.out_w * s.channels);
  });
}

// The sums of a few pixels at a time are float32, their sum is float64.
API void esbnn_means(int path, int64_t images, int64_t pixels, int64_t channels, const float *x, float *y, esbnn_run run,
                     void *pool) {
  const RealKernels &kernels = kernels_of(path);
  spread({1, run, pool}, images, [&](int64_t n) {
    std::vector<float> part(channels);
    std::vector<double> total(channels);
    for (int64_t from = 0; from < pixels; from += 64) {
      kernels.sum(x + (n * pixels + from) * channels, std::min<int64_t>(64, pixels - from), channels, part.data());
      for (int64_t c = 0; c < channels; c++) total[c] += double(part[c]);
    }
    for (int64_t c = 0; c < channels; c++) y[n * channels + c] = float(total[c] / double(pixels));
  });
}
