// Behind the C interface of training on bits (interface.h): from its arguments to the structs of training.h, and the
// division of the rows among threads. Sums over rows are those of blocks that depend on the shape alone, added up in the
// blocks' order, so that they are the same for any number of threads. The caller has checked the arguments.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "interface.h"
#include "scratch.h"
#include "training.h"

namespace {

using namespace esbnn;

const Training &training_of(int path) {
  int usable;
  const char *name = esbnn_path(path, &usable);
#ifdef ESBNN_X86
  if (!std::strncmp(name, "avx512", 6) || !std::strncmp(name, "amx", 3)) return avx512_training;
  if (!std::strncmp(name, "avx2", 4)) return avx2_training;
#endif
  (void)name;
  return portable_training;
}

const float *floats(void *p) { return static_cast<const float *>(p); }

thread_local Scratch totals_of_blocks, own;

constexpr int64_t BLOCKS = 128, LEAST = 1 << 14; // blocks at most, and values of a block

// Rows of a block of a map of `rows` rows.
int64_t block_rows(int64_t rows, int64_t channels) {
  const int64_t wanted = std::max((rows + BLOCKS - 1) / BLOCKS, LEAST / std::max<int64_t>(channels, 1) + 1);
  return (wanted + GROUP - 1) / GROUP * GROUP;
}

// Calls part(row0, row1, block) for every block.
template <typename Part> void each_block(int64_t rows, int64_t step, int threads, const Part &part) {
  const int64_t blocks = (rows + step - 1) / step;
  (void)threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < blocks; i++) part(i * step, std::min(rows, (i + 1) * step), i);
}

// As each_block with part(row0, row1, totals), where a block's `count` totals start at 0 and are then added to `sum`;
// false where memory is short.
template <typename Number, typename Part>
bool summed(int64_t rows, int64_t step, int threads, int64_t count, Number *sum, const Part &part) {
  const int64_t blocks = (rows + step - 1) / step;
  Number *all = totals_of_blocks.need<Number>(blocks * count);
  if (!all) return false;
  std::memset(all, 0, blocks * count * sizeof(Number));
  std::atomic<bool> whole{true};
  each_block(rows, step, threads, [&](int64_t row0, int64_t row1, int64_t i) {
    if (!part(row0, row1, all + i * count)) whole = false;
  });
  std::memset(sum, 0, count * sizeof(Number));
  for (int64_t i = 0; i < blocks; i++)
    for (int64_t j = 0; j < count; j++) sum[j] += all[i * count + j];
  return whole;
}

Tail tail_of(const int64_t *n, void *const *p) {
  Tail t;
  t.filters = n[1], t.copies = n[2], t.sums_kind = SumsKind(n[3]), t.act = Activation(n[4]);
  t.residual_kind = Kind(n[5]), t.y_kind = Kind(n[6]);
  t.sums = p[0], t.centre = floats(p[1]), t.factor = floats(p[2]), t.offset = floats(p[3]), t.inner = floats(p[4]);
  t.shift_in = floats(p[5]), t.slope = floats(p[6]), t.shift_out = floats(p[7]);
  t.low = floats(p[8])[0], t.high = floats(p[8])[1];
  t.residual = p[9], t.y = p[10];
  t.sums_grad = static_cast<float *>(p[11]), t.residual_grad = static_cast<float *>(p[12]);
  return t;
}

} // namespace

API int esbnn_train_tail(int path, const int64_t *n, void *const *p) {
  const Tail t = tail_of(n, p);
  std::atomic<int> failed{0};
  each_block(n[0], block_rows(n[0], t.channels()), int(n[7]), [&](int64_t row0, int64_t row1, int64_t) {
    float *scratch = own.need<float>(scratch_floats(t.channels()));
    if (scratch)
      training_of(path).forward(t, row0, row1, scratch);
    else
      failed = 1;
  });
  return failed;
}

API int esbnn_train_tail_backward(int path, const int64_t *n, void *const *p, double *totals) {
  const Tail t = tail_of(n, p);
  const auto part = [&](int64_t row0, int64_t row1, double *sums) {
    float *scratch = own.need<float>(scratch_floats(t.channels()));
    if (scratch) training_of(path).backward(t, row0, row1, sums, scratch);
    return scratch != nullptr;
  };
  return !summed(n[0], block_rows(n[0], t.channels()), int(n[7]), TOTALS * t.channels(), totals, part);
}

API void esbnn_statistics(int path, const int64_t *n, void *const *p) {
  Statistics s{n[1], p[0], SumsKind(n[2]), floats(p[1]), floats(p[2]), floats(p[3]), floats(p[4]), p[5], Kind(n[3])};
  each_block(n[0], block_rows(n[0], n[1]), int(n[4]), [&](int64_t row0, int64_t row1, int64_t) {
    training_of(path).statistics(s, row0, row1);
  });
}

API int esbnn_estimator(int path, const int64_t *n, void *const *p, float clip, double *total) {
  Estimator e;
  e.channels = n[1], e.groups = n[2], e.words = n[3], e.rule = Rule(n[4]), e.clip = clip;
  e.grad = p[0], e.x = p[1], e.shift = floats(p[2]), e.mask = static_cast<const uint32_t *>(p[3]);
  e.onto = p[4], e.y = p[5];
  e.grad_kind = Kind(n[5]), e.x_kind = Kind(n[6]), e.onto_kind = Kind(n[7]), e.y_kind = Kind(n[8]);
  const auto part = [&](int64_t row0, int64_t row1, double *sums) {
    float *scratch = own.need<float>(e.channels);
    if (scratch) training_of(path).estimator(e, row0, row1, sums, scratch);
    return scratch != nullptr;
  };
  if (!total) {
    std::atomic<int> failed{0};
    each_block(n[0], block_rows(n[0], e.channels), int(n[9]), [&](int64_t row0, int64_t row1, int64_t) {
      if (!part(row0, row1, nullptr)) failed = 1;
    });
    return failed;
  }
  return !summed(n[0], block_rows(n[0], e.channels), int(n[9]), e.channels, total, part);
}

API void esbnn_signs(int path, const int64_t *n, void *const *p) {
  const Signs s{n[1], n[2], n[3], p[0], floats(p[1]), static_cast<const uint32_t *>(p[2]), p[3], Kind(n[4]), Kind(n[5])};
  each_block(n[0], block_rows(n[0], n[1]), int(n[6]), [&](int64_t row0, int64_t row1, int64_t) {
    training_of(path).signs(s, row0, row1);
  });
}

API int esbnn_moments(int path, const int64_t *n, const void *sums, int64_t *both) {
  const int64_t filters = n[1];
  const auto part = [&](int64_t row0, int64_t row1, int64_t *found) {
    training_of(path).moments(sums, SumsKind(n[2]), filters, n[3], row0, row1, found, found + filters);
    return true;
  };
  return !summed(n[0], block_rows(n[0], filters), int(n[4]), 2 * filters, both, part);
}

API int esbnn_winograd(int path, const int64_t *n, const float *reals, void *const *p, double *totals) {
  Winograd w;
  w.first = n[0], w.last = n[1], w.height = n[2], w.width = n[3], w.channels = n[4], w.groups = n[5];
  w.tile_rows = n[6], w.tile_columns = n[7], w.padding_rows = n[8], w.padding_columns = n[9], w.apart = n[10];
  w.rule = int(n[12]), w.stride = n[13], w.pad_value = reals[0], w.clip = reals[1];
  w.map = static_cast<float *>(p[0]), w.tiles = static_cast<float *>(p[1]);
  w.shift = floats(p[2]), w.x = floats(p[3]), w.onto = floats(p[4]);
  const int64_t step = n[11], rows = w.last - w.first, threads = std::max<int64_t>(1, n[14]);
  const auto loop = training_of(path).winograd[step];
  if (step != TILES_TO_X) {
    const bool weights = step == WEIGHT_TO_TILES || step == TILES_TO_WEIGHT;
    const int64_t values = std::max<int64_t>(1, w.numbers() * w.channels * (weights ? 1 : w.tile_columns));
    const int64_t units = weights ? w.groups * w.tile_rows : rows, start = weights ? 0 : w.first;
    each_block(units, std::max<int64_t>(1, LEAST / values), int(threads),
               [&](int64_t from, int64_t to, int64_t) { loop(w, start + from, start + to, nullptr); });
    return 0;
  }
  w.carry_in = floats(p[5]), w.carry_out = static_cast<float *>(p[6]);
  w.sums = totals ? totals_of_blocks.need<float>(rows * w.channels) : nullptr;
  std::atomic<int> failed{totals && !w.sums};
  // as few blocks as threads: most of them begin within an image
  if (!failed)
    each_block(rows, (rows + threads - 1) / threads, int(threads), [&](int64_t from, int64_t to, int64_t) {
      float *scratch = own.need<float>(w.scratch_floats());
      if (scratch)
        loop(w, w.first + from, w.first + to, scratch);
      else
        failed = 1;
    });
  if (totals && !failed)
    for (int64_t i = 0; i < rows * w.channels; i++) totals[i % w.channels] += w.sums[i];
  return failed;
}
