// The operators of the domain `esbnn` for ONNX Runtime, over the same kernels as PyTorch's: bits and arithmetic are
// those of the contract in esbnn_core/kernels/__init__.py, maps have their channels last. Nothing is linked, because
// the runtime hands its interface to RegisterCustomOps. The work runs on the threads of the session.
#include <algorithm>
#include <cstdlib>
#include <thread>
#include <vector>

#include "ort_real.h"
#include "workers.h"

namespace {

using namespace esbnn;

int64_t words_of(int64_t channels) { return (channels + 31) / 32; }

// y, bits = BinaryConv2d(x, weight, scale, bias, prelu?, residual?, rprelu?, sign_shift?, shift?)
struct BinaryConv2d {
  static constexpr const char *NAME = "BinaryConv2d";
  static constexpr size_t INPUTS = 9, GIVEN = 4, OUTPUTS = 2;
  static int input_type(size_t i) { return i == 0 ? ort::UNDEFINED : i == 1 ? ort::INT32 : ort::FLOAT; }
  static int output_type(size_t i) { return i ? ort::INT32 : ort::FLOAT; }

  const OrtApi *api;
  int path;
  int64_t channels, groups, copies, pad_value, sign_groups, stride[2], padding[2], dilation[2];
  int64_t filters, kernel[2], words, out; // out: channels of y
  std::vector<uint32_t> lanes;
  bool checked[INPUTS] = {}; // vectors of the file, whose shapes are known to fit

  explicit BinaryConv2d(const Info &info) : api(info.api), path(choose_path()) {
    channels = info.number("channels", 1), groups = info.number("groups", 1), copies = info.number("copies", 1);
    pad_value = info.number("pad_value", -1, 0), sign_groups = info.number("sign_groups", 0);
    info.pair("stride", 1, stride), info.pair("padding", 0, padding), info.pair("dilation", 1, dilation);
    Tensor weight = info.constant(1, "weight");
    if (weight.rank == 2) weight.shape[3] = weight.shape[1], weight.shape[1] = weight.shape[2] = 1, weight.rank = 4;
    if (!weight.data || weight.rank != 4)
      throw Refusal{"weight must be an initializer (O, KH, KW, words) or (O, words), got another tensor: export the "
                    "network again"};
    filters = weight.shape[0], kernel[0] = weight.shape[1], kernel[1] = weight.shape[2], words = weight.shape[3];
    out = copies * filters;
    if (channels % groups || filters < 1 || filters % groups)
      throw Refusal{"groups must divide " + std::to_string(channels) + " channels and " + std::to_string(filters) +
                    " filters, got " + std::to_string(groups) + ": export the network again"};
    weight.expect(ort::INT32, {filters, kernel[0], kernel[1], words_of(channels / groups)});
    for (int64_t side : kernel) Info::between("a side of the kernel", side, 1, 64);
    if (sign_groups && out % sign_groups)
      throw Refusal{"sign_groups must divide " + std::to_string(out) + " channels, got " + std::to_string(sign_groups)};
    for (size_t i : {2, 3, 4, 6, 7, 8}) {
      const Tensor vector = info.constant(i, NAMES[i]);
      if (vector.data) expect_vector(i, vector), checked[i] = true;
    }
    const int64_t taps = kernel[0] * kernel[1];
    lanes.resize(esbnn_lane_words(path, groups, filters, taps, words));
    esbnn_lanes(path, static_cast<const uint32_t *>(weight.data), groups, filters, taps, words, lanes.data());
  }

  static constexpr const char *NAMES[INPUTS] = {"x",        "weight", "scale",      "bias", "prelu",
                                                "residual", "rprelu", "sign_shift", "shift"};

  void expect_vector(size_t i, const Tensor &t) const {
    if (i == 6)
      t.expect(ort::FLOAT, {3, out});
    else
      t.expect(ort::FLOAT, {i == 8 ? channels : out});
  }

  void *vector(const Context &context, size_t i) const {
    if (!checked[i]) {
      const Tensor t = context.input(i, NAMES[i]);
      if (t.data) expect_vector(i, t);
      return t.data;
    }
    const OrtValue *value = nullptr;
    void *data = nullptr;
    pass(ort::KernelContext_GetInput(api)(context.of, i, &value));
    pass(ort::GetTensorMutableData(api)(const_cast<OrtValue *>(value), &data));
    return data;
  }

  int64_t reach(int i) const { return dilation[i] * (kernel[i] - 1) + 1; }

  void compute(Context context) const {
    const Tensor x = context.input(0, "x");
    const bool real = x.type == ort::FLOAT;
    if (x.rank != 4) throw Refusal{"x must have 4 dimensions (N, H, W, channels), got " + x.described()};
    const int64_t n = x.shape[0], h = x.shape[1], w = x.shape[2];
    x.expect(real ? ort::FLOAT : ort::INT32, {n, h, w, real ? channels : groups * words});
    const int64_t free_h = h + 2 * padding[0] - reach(0), free_w = w + 2 * padding[1] - reach(1);
    if (free_h < 0 || free_w < 0)
      throw Refusal{"x must be at least as large as the reach of the kernel, got " + std::to_string(h) + "x" +
                    std::to_string(w) + " pixels: give larger images"};
    const int64_t oh = free_h / stride[0] + 1, ow = free_w / stride[1] + 1;
    Info::between("the size of y", oh, 1), Info::between("the size of y", ow, 1);
    const Tensor residual = context.input(5, "residual");
    if (residual.data) residual.expect(ort::FLOAT, {n, oh, ow, out});
    void *shift = vector(context, 8);
    if (shift && !real) throw Refusal{"shift must be left out where x holds packed signs: export the network again"};

    float *y = static_cast<float *>(context.output(0, {n, oh, ow, out}));
    const int64_t sign_words = sign_groups ? words_of(out / sign_groups) : 0, row = sign_groups * sign_words;
    int32_t *bits = sign_groups ? static_cast<int32_t *>(context.output(1, {n, oh, ow, row})) : nullptr;
    if (!sign_groups) context.output(1, {0});
    if (n == 0) return;
    // zeros where tail bits have to be 0, or where channels are set one by one because blocks of 16 do not fit
    if (bits && (out / sign_groups % 32 || filters / groups % 16)) std::fill(bits, bits + n * oh * ow * row, 0);

    int64_t s[SHAPE_LENGTH] = {n, h, w, oh, ow, kernel[0], kernel[1], stride[0], stride[1], padding[0], padding[1],
                               dilation[0], dilation[1], groups, words, filters, channels / groups, pad_value == 0,
                               copies, bits ? sign_groups : 0, bits ? sign_words : 0, real, 0};
    s[X_IMAGE_STEP] = h * w * channels, s[X_PIXEL_STEP] = channels, s[X_CHANNEL_STEP] = 1;
    s[THREADS] = worth(n * oh * ow * filters * kernel[0] * kernel[1] * words);
    void *p[POINTER_LENGTH] = {};
    p[X] = x.data, p[SHIFT] = shift, p[LANES_OF] = const_cast<uint32_t *>(lanes.data());
    p[SCALE] = vector(context, 2), p[BIAS] = vector(context, 3), p[PRELU] = vector(context, 4);
    p[RESIDUAL] = residual.data, p[RPRELU] = vector(context, 6), p[SIGN_SHIFT] = vector(context, 7);
    p[Y] = y, p[BITS] = bits;
    if (esbnn_conv_in(path, s, p, Context::run, &context)) throw std::bad_alloc();
  }
};

constexpr const char *BinaryConv2d::NAMES[];

// bits = PackSign(x (..., C), shift?)
struct PackSign {
  static constexpr const char *NAME = "PackSign";
  static constexpr size_t INPUTS = 2, GIVEN = 1, OUTPUTS = 1;
  static int input_type(size_t) { return ort::FLOAT; }
  static int output_type(size_t) { return ort::INT32; }

  const OrtApi *api;
  int path;
  int64_t groups;

  explicit PackSign(const Info &info) : api(info.api), path(choose_path()), groups(info.number("groups", 1)) {}

  void compute(Context context) const {
    const Tensor x = context.input(0, "x"), shift = context.input(1, "shift");
    const int64_t channels = x.rank ? x.shape[x.rank - 1] : 0;
    if (channels < 1 || channels % groups)
      throw Refusal{"x must have channels that " + std::to_string(groups) + " groups divide, got " + x.described()};
    if (shift.data) shift.expect(ort::FLOAT, {channels});
    int64_t shape[MOST_DIMENSIONS], pixels = 1;
    for (size_t i = 0; i + 1 < x.rank; i++) pixels *= shape[i] = x.shape[i];
    const int64_t words = shape[x.rank - 1] = groups * words_of(channels / groups);
    uint32_t *bits = static_cast<uint32_t *>(context.output(0, shape, x.rank));
    const float *from = static_cast<const float *>(x.data);
    const int64_t shares = worth(pixels * words * 8), each = (pixels + shares - 1) / shares;
    const auto share = [&](int64_t i) {
      const int64_t first = i * each, count = std::min(each, pixels - first);
      if (count > 0)
        esbnn_pack(path, from + first * channels, 0, static_cast<const float *>(shift.data), 1, count, channels, groups,
                   0, channels, 1, bits + first * words, 1);
    };
    spread(Workers{1, Context::run, &context}, shares, share);
  }
};

// The domain, made once a process: its operators have no state of their own.
struct Domain {
  Operator<BinaryConv2d> convolution;
  Operator<PackSign> sign;
  Operator<Tail> tail;
  Operator<Means> means;
  Operator<AveragePool> average;
  OrtCustomOpDomain *of = nullptr;
  OrtStatus *failed = nullptr;

  explicit Domain(const OrtApi *api) {
    failed = ort::CreateCustomOpDomain(api)("esbnn", &of);
    if (!failed) failed = ort::CustomOpDomain_Add(api)(of, &convolution);
    if (!failed) failed = ort::CustomOpDomain_Add(api)(of, &sign);
    if (!failed) failed = ort::CustomOpDomain_Add(api)(of, &tail);
    if (!failed) failed = ort::CustomOpDomain_Add(api)(of, &means);
    if (!failed) failed = ort::CustomOpDomain_Add(api)(of, &average);
  }
};

} // namespace

// The entry that ONNX Runtime looks for in a library of operators.
API OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
  const OrtApi *api = base->GetApi(ort::API_VERSION);
  if (!api) {
    const std::string text = std::string("the operators of esbnn need ONNX Runtime 1.17 or later, got ") +
                             base->GetVersionString() + ": install a later one";
    return ort::CreateStatus(base->GetApi(1))(ort::FAIL, text.c_str());
  }
  static Domain domain(api);
  if (domain.failed) return ort::CreateStatus(api)(ort::FAIL, ort::GetErrorMessage(api)(domain.failed));
  return ort::AddCustomOpDomain(api)(options, domain.of);
}
