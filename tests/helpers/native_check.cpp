// Drives the C interface of the CPU kernels without Python and compares every bit with sums over unpacked whole numbers
// and an epilogue of one rounded step a line. Shares no code with the kernels and draws the same cases on every machine.
//   native_check CASES PATH...     prints for each path "PATH CASES VALUES HASH"; fails at the first difference
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <string>
#include <vector>

extern "C" {
const char *esbnn_path(int, int *);
int esbnn_lengths(int);
int64_t esbnn_lane_words(int path, int64_t groups, int64_t filters, int64_t taps, int64_t words);
void esbnn_lanes(int path, const uint32_t *, int64_t groups, int64_t filters, int64_t taps, int64_t words, uint32_t *);
int esbnn_conv(int path, const int64_t *shape, void *const *pointers);
void esbnn_pack(int path, const void *x, int kind, const float *shift, int64_t images, int64_t pixels, int64_t channels,
                int64_t groups, int64_t image_step, int64_t pixel_step, int64_t channel_step, uint32_t *, int threads);
int64_t esbnn_spin(int path, int64_t words, int64_t times);
}

using std::vector;

enum Kind { FLOAT32, BFLOAT16, FLOAT16 };

// splitmix64: the same numbers from every compiler and library
struct Random {
  uint64_t state;
  uint64_t next() {
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
  }
  int below(int n) { return int(next() % uint64_t(n)); }
  bool once_in(int n) { return below(n) == 0; }
  int pick(std::initializer_list<int> of) { return of.begin()[below(int(of.size()))]; }
};

// (exponent bits, fraction bits) of a narrow kind
static int exponent_bits(Kind kind) { return kind == BFLOAT16 ? 8 : 5; }

static double decode(uint16_t bits, Kind kind) {
  const int fraction = 15 - exponent_bits(kind), bias = (1 << (exponent_bits(kind) - 1)) - 1;
  const int exponent = bits >> fraction & ((1 << exponent_bits(kind)) - 1), digits = bits & ((1 << fraction) - 1);
  double size = exponent ? std::ldexp((1 << fraction) + digits, exponent - bias - fraction)
                         : std::ldexp(digits, 1 - bias - fraction);
  if (exponent == (1 << exponent_bits(kind)) - 1)
    size = digits ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
  return bits >> 15 ? -size : size;
}

// the nearest value of a narrow kind, ties to even
static double nearest(double value, Kind kind) {
  const int fraction = 15 - exponent_bits(kind), bias = (1 << (exponent_bits(kind) - 1)) - 1;
  if (value == 0 || std::isinf(value)) return value;
  int exponent;
  std::frexp(value, &exponent);
  exponent = std::max(exponent - 1, 1 - bias);
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(value, fraction - exponent)), exponent - fraction);
  return std::fabs(rounded) >= std::ldexp(1, bias + 1) ? std::copysign(INFINITY, value) : rounded;
}

// Real values of any kind, as memory and as float.
struct Reals {
  Kind kind;
  vector<float> values;
  vector<uint16_t> narrow;
  void *data() { return kind == FLOAT32 ? static_cast<void *>(values.data()) : narrow.data(); }
};

// with zeros, of both signs, where signs tie; all digits of the others in use, so that a step left unrounded shows
static Reals reals(Random &r, Kind kind, int64_t count) {
  Reals out{kind, vector<float>(count), {}};
  for (auto &value : out.values) {
    const int digits = int(r.next() >> 40) - (1 << 23);
    value = r.once_in(6) ? (r.once_in(2) ? 0.0f : -0.0f) : std::ldexp(float(digits), -22);
    if (kind == FLOAT32) continue;
    const int fraction = 15 - exponent_bits(kind), bias = (1 << (exponent_bits(kind) - 1)) - 1;
    const int exponent = r.once_in(6) ? 0 : bias - 7 + r.below(9);
    out.narrow.push_back(uint16_t(r.below(2) << 15 | exponent << fraction | r.below(1 << fraction)));
    value = float(decode(out.narrow.back(), kind));
  }
  return out;
}

// rows of `size` signs, each in whole words
static vector<uint32_t> packed(const vector<int8_t> &signs, int64_t size) {
  const int64_t words = (size + 31) / 32;
  vector<uint32_t> bits(signs.size() / size * words);
  for (size_t i = 0; i < signs.size(); i++)
    if (signs[i] > 0) bits[i / size * words + i % size / 32] |= uint32_t(1) << i % size % 32;
  return bits;
}

struct Check {
  int path, number = 0;
  int64_t values = 0;
  uint64_t hash = 1469598103934665603u;

  void equal(bool same, const char *what, size_t at, double got, double want) {
    if (same) return;
    std::printf("path %d, case %d: %s[%zu] is %.9g, wanted %.9g\n", path, number, what, at, got, want);
    std::exit(1);
  }
  void seen(uint32_t bits) { hash = (hash ^ bits) * 1099511628211u, values++; }
  void equal(const vector<uint32_t> &got, const vector<uint32_t> &want, const char *what) {
    for (size_t i = 0; i < want.size(); i++) equal(got[i] == want[i], what, i, got[i], want[i]), seen(got[i]);
  }
  void pack(Random &r);
  void conv(Random &r);
};

// Signs of (N, pixels, channels) with channels or pixels next to each other.
static vector<int8_t> signs_of(const Reals &x, const float *shift, int64_t images, int64_t pixels, int64_t channels,
                               bool channels_last) {
  vector<int8_t> signs(x.values.size());
  for (int64_t n = 0; n < images; n++)
    for (int64_t p = 0; p < pixels; p++)
      for (int64_t c = 0; c < channels; c++) {
        const int64_t within = channels_last ? p * channels + c : c * pixels + p;
        volatile float value = x.values[n * pixels * channels + within];
        if (shift) value = value + shift[c];
        signs[(n * pixels + p) * channels + c] = value >= 0 ? 1 : -1;
      }
  return signs;
}

void Check::pack(Random &r) {
  const int groups = r.pick({1, 2, 4}), size = r.pick({1, 8, 16, 17, 31, 32, 33, 64, 100}), channels = groups * size;
  const int images = 1 + r.below(3), pixels = r.pick({1, 7, 16, 33, 300}), threads = r.pick({1, 1, 3});
  const bool last = r.once_in(2);
  Reals x = reals(r, Kind(r.below(3)), int64_t(images) * pixels * channels), shift = reals(r, FLOAT32, channels);
  if (x.kind == FLOAT32)
    for (float special : {NAN, -INFINITY, INFINITY, 1e-45f, -1e-45f}) x.values[r.below(int(x.values.size()))] = special;
  const float *by = r.once_in(2) ? shift.values.data() : nullptr;
  vector<uint32_t> bits(int64_t(images) * pixels * groups * ((size + 31) / 32), 0xA5A5A5A5);
  esbnn_pack(path, x.data(), x.kind, by, images, pixels, channels, groups, int64_t(pixels) * channels,
             last ? channels : 1, last ? 1 : pixels, bits.data(), threads);
  equal(bits, packed(signs_of(x, by, images, pixels, channels, last), size), "packed");
}

void Check::conv(Random &r) {
  const bool all_differ = r.once_in(5); // the largest counts that there are
  const int N = 1 + r.below(3), groups = r.pick({1, 1, 2, 4}), copies = r.pick({1, 1, 2, 4});
  const int inner = all_differ ? r.pick({64, 256}) : r.pick({1, 16, 31, 33, 64, 80, 96, 200, 520});
  const int own = r.pick({1, 5, 8, 16, 17, 32, 40}), outside = r.pick({0, -1});
  const int kh = r.pick({1, 3, 3, 2, 5}), kw = kh == 1 ? 1 : r.pick({1, 3, 3, 2, 4});
  const int sh = r.pick({1, 1, 2}), sw = r.pick({1, 1, 2, 3}), dh = r.pick({1, 1, 2}), dw = r.pick({1, 1, 3});
  const int ph = kh == 1 ? 0 : r.pick({0, 1, 1, 6}), pw = kw == 1 ? 0 : r.pick({0, 1, 1, 6});
  const int H = dh * (kh - 1) + 1 + r.below(5), W = dw * (kw - 1) + 1 + r.below(20);
  const int OH = (H + 2 * ph - dh * (kh - 1) - 1) / sh + 1, OW = (W + 2 * pw - dw * (kw - 1) - 1) / sw + 1;
  const int C = groups * inner, O = groups * own, out = copies * O, taps = kh * kw, words = (inner + 31) / 32;
  const bool real = r.once_in(2), last = r.once_in(2), affine = !r.once_in(8);
  Reals x = reals(r, real ? Kind(r.below(3)) : FLOAT32, int64_t(N) * H * W * C);
  Reals shift = reals(r, FLOAT32, C), scale = reals(r, FLOAT32, out), bias = reals(r, FLOAT32, out);
  Reals prelu = reals(r, FLOAT32, out), rprelu = reals(r, FLOAT32, 3 * out), sign_shift = reals(r, FLOAT32, out);
  Reals residual = reals(r, Kind(r.below(3)), int64_t(N) * OH * OW * out);
  const float times = r.pick({1, 1, 4096}), over = r.pick({1, 1, 1 << 22}); // past float16's ends too
  for (auto &value : scale.values) value *= times / over;
  if (over > 1)
    for (auto &value : bias.values) value /= over;
  const bool shifted = real && !all_differ && r.once_in(2), with_prelu = r.once_in(2), with_residual = r.once_in(2);
  const bool with_rprelu = r.once_in(2), with_sign_shift = r.once_in(2);
  const Kind y_kind = Kind(r.below(3));
  int sign_groups = affine ? r.pick({0, 1, 2}) : 0;
  if (sign_groups && out % sign_groups) sign_groups = 1;
  vector<int8_t> signs(x.values.size(), 1), weight(int64_t(O) * taps * inner, -1);
  if (all_differ)
    std::fill(x.values.begin(), x.values.end(), 0.0f), std::fill(x.narrow.begin(), x.narrow.end(), uint16_t(0));
  else
    signs = signs_of(x, shifted ? shift.values.data() : nullptr, N, int64_t(H) * W, C, !real || last);
  if (!all_differ)
    for (auto &w : weight) w = r.once_in(2) ? 1 : -1;
  vector<uint32_t> x_bits = packed(signs, inner), weight_bits = packed(weight, inner);
  vector<uint32_t> lanes(esbnn_lane_words(path, groups, O, taps, words));
  esbnn_lanes(path, weight_bits.data(), groups, O, taps, words, lanes.data());

  const int size = sign_groups ? out / sign_groups : out, sign_words = sign_groups ? (size + 31) / 32 : 0;
  const bool whole = size % 32 == 0 && own % 16 == 0; // else the caller clears the bits
  vector<uint32_t> bits(int64_t(N) * OH * OW * sign_groups * sign_words, whole ? 0xA5A5A5A5 : 0);
  vector<uint32_t> y(int64_t(N) * OH * OW * out);
  const int64_t shape[] = {N, H, W, OH, OW, kh, kw, sh, sw, ph, pw, dh, dw, groups, words, O, inner, outside == 0,
                           copies, sign_groups, sign_words, real, x.kind, int64_t(C) * H * W, last ? C : 1,
                           last ? 1 : H * W, residual.kind, y_kind, r.pick({1, 1, 3})};
  const auto maybe = [&](bool given, Reals &of) { return affine && given ? of.data() : nullptr; };
  void *const pointers[] = {real ? x.data() : x_bits.data(), shifted ? shift.data() : nullptr, lanes.data(),
                            maybe(true, scale), maybe(true, bias), maybe(with_prelu, prelu),
                            maybe(with_residual, residual), maybe(with_rprelu, rprelu),
                            maybe(with_sign_shift, sign_shift), affine ? y.data() : nullptr,
                            affine ? nullptr : y.data(), sign_groups ? bits.data() : nullptr};
  static_assert(sizeof(shape) == 29 * 8 && sizeof(pointers) == 12 * sizeof(void *), "as driver.cpp counts them");
  equal(esbnn_conv(path, shape, pointers) == 0, "memory", 0, 1, 0);

  const uint16_t *narrow = reinterpret_cast<const uint16_t *>(y.data());
  vector<int8_t> after(int64_t(N) * OH * OW * out);
  for (int n = 0; n < N; n++)
    for (int oy = 0; oy < OH; oy++)
      for (int ox = 0; ox < OW; ox++)
        for (int o = 0; o < O; o++) {
          int sum = 0;
          for (int t = 0; t < taps; t++) {
            const int iy = oy * sh + t / kw * dh - ph, ix = ox * sw + t % kw * dw - pw;
            const bool in = iy >= 0 && iy < H && ix >= 0 && ix < W;
            const int8_t *w = &weight[(int64_t(o) * taps + t) * inner];
            const int8_t *at = in ? &signs[((int64_t(n) * H + iy) * W + ix) * C + o / own * inner] : nullptr;
            for (int c = 0; c < inner; c++) sum += w[c] * (in ? at[c] : outside);
          }
          for (int copy = 0; copy < copies; copy++) {
            const int c = copy * O + o;
            const int64_t place = ((int64_t(n) * OH + oy) * OW + ox) * out + c;
            if (!affine) {
              equal(int32_t(y[place]) == sum, "sum", place, int32_t(y[place]), sum), seen(y[place]);
              continue;
            }
            volatile float v = float(sum); // volatile: each step is rounded, whatever the compiler joins elsewhere
            v = v * scale.values[c];
            v = v + bias.values[c];
            if (with_prelu && !(v > 0)) v = prelu.values[c] * v;
            if (with_residual) v = v + residual.values[place];
            if (with_rprelu) {
              v = v + rprelu.values[c];
              if (!(v > 0)) v = rprelu.values[out + c] * v;
              v = v + rprelu.values[2 * out + c];
            }
            float got;
            if (y_kind == FLOAT32)
              std::memcpy(&got, &y[place], sizeof(got)), seen(y[place]);
            else
              v = float(nearest(v, y_kind)), got = float(decode(narrow[place], y_kind)), seen(narrow[place]);
            const float want = v;
            equal(std::memcmp(&got, &want, sizeof(got)) == 0, "y", place, got, want);
            if (with_sign_shift) v = v + sign_shift.values[c];
            after[place] = v >= 0 ? 1 : -1;
          }
        }
  if (sign_groups) equal(bits, packed(after, size), "signs");
}

int main(int count, char **arguments) {
  if (count < 3 || esbnn_lengths(0) != 29 || esbnn_lengths(1) != 12)
    return std::puts("usage: CASES PATH... of a library whose arguments have lengths 29 and 12"), 2;
  const int cases = std::atoi(arguments[1]);
  for (int a = 2; a < count; a++) {
    int path = 0, usable = 0;
    const char *name;
    while ((name = esbnn_path(path, &usable)) && std::strcmp(name, arguments[a])) path++;
    if (!name || !usable) return std::printf("no usable path %s\n", arguments[a]), 2;
    Check check{path};
    for (Random r{7}; check.number < cases; check.number++) check.conv(r), check.pack(r);
    const int64_t made = esbnn_spin(path, 34, 2), block = 2 * 8 * 16 * 34 * 32; // of eight pixels, twice
    if (made < 2 * block || made % block) return std::puts("the loop alone does not run"), 1;
    std::printf("%s %d %lld %016llx\n", name, cases, static_cast<long long>(check.values),
                static_cast<unsigned long long>(check.hash));
  }
  return 0;
}
