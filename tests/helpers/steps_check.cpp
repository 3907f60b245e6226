// Drives programs of the C library and the pooling before a norm without Python, and compares every bit with loops of its
// own. Draws the same cases on every machine.
//   steps_check CASES PATH...     prints for each path "PATH CASES VALUES HASH"; fails at the first difference
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

extern "C" {
const char *esbnn_path(int, int *);
int esbnn_program(int path, const int64_t *program, void *const *bases);
int esbnn_pool_before_norm(int path, const int64_t *shape, const float *x, int64_t copies, const float *weight,
                           const float *bias, const float *mean, const float *variance, double eps, float *y, int threads);
}

using std::vector;
enum { CLEAR = 1, AVERAGE_POOL = 3 };

static uint64_t state, hash;
static long long values;

static int below(int n) { // splitmix64
  uint64_t z = state += 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return int((z ^ z >> 31) % uint64_t(n));
}

static float number() { return float(below(20001) - 10000) / 512; }

static vector<float> numbers(int64_t count) {
  vector<float> made(static_cast<size_t>(count));
  for (float &one : made) one = number();
  return made;
}

static void equal(const vector<float> &got, const vector<float> &want, const char *what) {
  for (size_t i = 0; i < want.size(); i++) {
    uint32_t bits;
    std::memcpy(&bits, &got[i], sizeof(bits));
    hash = (hash ^ bits) * 0x100000001B3u, values++;
    if (std::memcmp(&got[i], &want[i], sizeof(float)) == 0) continue;
    std::printf("%s at %zu: %g, wanted %g\n", what, i, got[i], want[i]);
    std::exit(1);
  }
}

struct Size {
  int64_t n, h, w, c, oh, ow, kh, kw, sh, sw, ph, pw, filters;
};

// of(window) for every window and channel, a window as the places of its pixels
template <typename Of> static vector<float> windows(const Size &s, const vector<float> &x, int64_t copies, const Of &of) {
  vector<float> made;
  for (int64_t n = 0; n < s.n; n++)
    for (int64_t y = 0; y < s.oh; y++)
      for (int64_t column = 0; column < s.ow; column++)
        for (int64_t j = 0; j < copies * s.c; j++) {
          vector<float> found;
          for (int64_t a = std::max<int64_t>(0, y * s.sh - s.ph); a < std::min(s.h, y * s.sh - s.ph + s.kh); a++)
            for (int64_t b = std::max<int64_t>(0, column * s.sw - s.pw); b < std::min(s.w, column * s.sw - s.pw + s.kw); b++)
              found.push_back(x[size_t(((n * s.h + a) * s.w + b) * s.c + j % s.c)]);
          made.push_back(of(found, j));
        }
  return made;
}

static float mean(const vector<float> &of) {
  float sum = 0;
  for (const float one : of) sum += one;
  return sum / float(of.size());
}

static int64_t sizes(int64_t side, int64_t kernel, int64_t stride) { // the last window may be cut
  const int64_t most = (side - kernel + stride - 1) / stride + 1;
  return (most - 1) * stride >= side ? most - 1 : most;
}

static void program(int path, int threads) {
  Size s{1 + below(3), 2 + below(12), 2 + below(12), 1 + below(70), 0, 0, 1 + below(2), 1 + below(2), 0, 0, 0, 0, 0};
  s.sh = 1 + below(2), s.sw = 1 + below(3), s.filters = s.c;
  s.oh = sizes(s.h, s.kh, s.sh), s.ow = sizes(s.w, s.kw, s.sw);
  Size t = s;
  t.h = s.oh, t.w = s.ow, t.kh = t.kw = 1, t.sh = t.sw = 2, t.oh = sizes(t.h, 1, 2), t.ow = sizes(t.w, 1, 2);
  vector<float> x = numbers(s.n * s.h * s.w * s.c), work(size_t(s.n * s.oh * s.ow * s.c + 5), 9);
  vector<float> got(size_t(t.n * t.oh * t.ow * t.c));
  vector<int64_t> code{threads, 3, AVERAGE_POOL, 13, 2};
  const auto shape = [&](const Size &of) { code.insert(code.end(), &of.n, &of.filters + 1); };
  shape(s);
  code.insert(code.end(), {2, 0, 1, 20, AVERAGE_POOL, 13, 2});
  shape(t);
  code.insert(code.end(), {1, 20, 0, int64_t(reinterpret_cast<uintptr_t>(got.data())), CLEAR, 1, 1, 12, 1, 4});
  void *const bases[] = {nullptr, work.data(), x.data()};
  if (esbnn_program(path, code.data(), bases)) std::exit(1);
  const vector<float> first = windows(s, x, 1, [](const vector<float> &of, int64_t) { return mean(of); });
  equal(got, windows(t, first, 1, [](const vector<float> &of, int64_t) { return mean(of); }), "program");
  equal({work.begin(), work.begin() + 5}, {9, 0, 0, 0, 9}, "cleared");
}

static void pool(int path, int threads) {
  Size s{1 + below(2), 3 + below(12), 3 + below(12), 16 * (1 + below(5)), 0, 0, 1 + below(3), 1 + below(3), 0, 0, 0, 0, 0};
  s.sh = 1 + below(2), s.sw = 1 + below(2), s.ph = below(2) * (s.kh / 2), s.pw = s.kw / 2, s.filters = s.c;
  s.oh = (s.h + 2 * s.ph - s.kh) / s.sh + 1, s.ow = (s.w + 2 * s.pw - s.kw) / s.sw + 1;
  const int64_t copies = 1 + below(3), all = copies * s.c;
  const vector<float> x = numbers(s.n * s.h * s.w * s.c);
  vector<float> weight = numbers(all), bias = numbers(all), means = numbers(all), variance = numbers(all);
  for (int64_t c = 0; c < all; c++) {
    variance[size_t(c)] = std::abs(variance[size_t(c)]) + 1;
    weight[size_t(c)] += weight[size_t(c)] < 0 ? -1 : 1;
    bias[size_t(c)] += bias[size_t(c)] < 0 ? -100000 : 100000; // never so small that a zero's sign could matter
  }
  vector<float> got(size_t(s.n * s.oh * s.ow * all));
  if (!esbnn_pool_before_norm(path, &s.n, x.data(), copies, weight.data(), bias.data(), means.data(), variance.data(), 1e-5,
                              got.data(), threads))
    std::puts("refused"), std::exit(1);
  const auto chosen = [&](const vector<float> &of, int64_t j) {
    return weight[size_t(j)] < 0 ? *std::min_element(of.begin(), of.end()) : *std::max_element(of.begin(), of.end());
  };
  equal(got, windows(s, x, copies, chosen), "pool");
}

int main(int count, char **arguments) {
  if (count < 3) return std::puts("usage: CASES PATH..."), 2;
  const int cases = std::atoi(arguments[1]);
  for (int a = 2; a < count; a++) {
    int path = 0, usable = 0;
    const char *name;
    while ((name = esbnn_path(path, &usable)) && std::strcmp(name, arguments[a])) path++;
    if (!name || !usable) return std::printf("no usable path %s\n", arguments[a]), 2;
    state = 7, hash = 0, values = 0;
    for (int i = 0; i < cases; i++) program(path, 1 + i % 3), pool(path, 1 + i % 3);
    std::printf("%s %d %lld %016llx\n", name, cases, values, static_cast<unsigned long long>(hash));
  }
  return 0;
}
