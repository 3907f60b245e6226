// Real steps between the binary layers as operators of ONNX Runtime; maps have their channels last.
#pragma once
#include <algorithm>
#include <string>

#include "ort_choice.h"

namespace esbnn {

// What the operators of real maps share: the first input is required, and one output.
struct RealOperator {
  static constexpr size_t GIVEN = 1, OUTPUTS = 1;
  static int input_type(size_t) { return ort::FLOAT; }
  static int output_type(size_t) { return ort::FLOAT; }

  const OrtApi *api;
  int path;

  explicit RealOperator(const Info &info) : api(info.api), path(choose_path()) {}
};

// y = Tail(x, scale?, bias?, slope?, gate?, factor?, residual?): real_kernels.h. x (N, H, W, C), vectors (copies*C,), the
// gate (N, 1, 1, copies*C), factor and residual (N, H, W, copies*C) as y.
struct Tail : RealOperator {
  static constexpr const char *NAME = "Tail";
  static constexpr size_t INPUTS = 7;
  int64_t copies;

  explicit Tail(const Info &info) : RealOperator(info), copies(info.number("copies", 1)) {}

  void compute(Context context) const {
    static const char *const names[INPUTS] = {"x", "scale", "bias", "slope", "gate", "factor", "residual"};
    const Tensor x = context.input(0, names[0]);
    if (x.rank != 4) throw Refusal{"x must have 4 dimensions (N, H, W, channels), got " + x.described()};
    const int64_t n = x.shape[0], h = x.shape[1], w = x.shape[2], channels = x.shape[3], all = copies * channels;
    const float *given[INPUTS] = {static_cast<const float *>(x.data)};
    for (size_t i = 1; i < INPUTS; i++) {
      const Tensor t = context.input(i, names[i]);
      if (!t.data) continue;
      if (i < 4)
        t.expect(ort::FLOAT, {all});
      else if (i == 4)
        t.expect(ort::FLOAT, {n, 1, 1, all});
      else
        t.expect(ort::FLOAT, {n, h, w, all});
      given[i] = static_cast<const float *>(t.data);
    }
    if (!given[1] != !given[2]) throw Refusal{"scale and bias go together: export the network again"};
    float *y = static_cast<float *>(context.output(0, {n, h, w, all}));
    if (n * h * w * all == 0) return;
    const int64_t shares = std::min(h * w, worth(h * w * all * 4));
    esbnn_tail(path, n, h * w, channels, copies, given, y, shares, Context::run, &context);
  }
};

// y = Means(x): (N, H, W, C) -> (N, 1, 1, C).
struct Means : RealOperator {
  static constexpr const char *NAME = "Means";
  static constexpr size_t INPUTS = 1;

  using RealOperator::RealOperator;

  void compute(Context context) const {
    const Tensor x = context.input(0, "x");
    if (x.rank != 4 || x.shape[1] * x.shape[2] == 0)
      throw Refusal{"x must have pixels (N, H, W, channels), got " + x.described()};
    float *y = static_cast<float *>(context.output(0, {x.shape[0], 1, 1, x.shape[3]}));
    esbnn_means(path, x.shape[0], x.shape[1] * x.shape[2], x.shape[3], static_cast<const float *>(x.data), y,
                Context::run, &context);
  }
};

// y = AveragePool(x): means over windows, the last of them cut where the image ends. (N, H, W, C) -> (N, H', W', C).
struct AveragePool : RealOperator {
  static constexpr const char *NAME = "AveragePool";
  static constexpr size_t INPUTS = 1;
  int64_t side;

  explicit AveragePool(const Info &info) : RealOperator(info), side(info.number("side", 1)) {}

  void compute(Context context) const {
    const Tensor x = context.input(0, "x");
    if (x.rank != 4) throw Refusal{"x must have 4 dimensions (N, H, W, channels), got " + x.described()};
    const int64_t n = x.shape[0], h = x.shape[1], w = x.shape[2], channels = x.shape[3];
    const int64_t oh = (h + side - 1) / side, ow = (w + side - 1) / side;
    float *y = static_cast<float *>(context.output(0, {n, oh, ow, channels}));
    const int64_t shape[13] = {n, h, w, channels, oh, ow, side, side, side, side, 0, 0, channels};
    esbnn_average_pool(path, shape, static_cast<const float *>(x.data), y, Context::run, &context);
  }
};

} // namespace esbnn
