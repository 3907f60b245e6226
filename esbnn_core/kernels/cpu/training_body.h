// The loops of training.h for one instruction set. As in body.h, every step is rounded on its own. The loops walk GROUP
// rows at once, channel vector by channel vector: nearly the order of memory, with the parameters in registers.
#include "half.h"
#include "training.h"

namespace esbnn {
namespace ISA {

static inline Floats zeros() { return Floats{}; }

// GCC makes a call of it otherwise, in the innermost loops.
__attribute__((always_inline)) static inline Floats choose(const Ints &mask, const Floats &yes, const Floats &no) {
  Floats to;
  for (int i = 0; i < PARTS; i++) to.of[i] = mask.of[i] ? yes.of[i] : no.of[i];
  return to;
}

static inline Floats magnitude(const Floats &a) { return as<Floats>(as<Words>(a) & 0x7FFFFFFFu); }

// `at`[index...] of a vector of parameters
static inline Floats vector_of(const float *at, int64_t index, int lanes) { return load(at, index, FLOAT32, lanes); }

static inline Floats load_sums(const void *sums, SumsKind kind, int64_t index, int lanes) {
  if (kind == CENTRED) return load(sums, index, FLOAT32, lanes);
  if (kind == INT32) {
    const int32_t *from = static_cast<const int32_t *>(sums) + index;
    return convert<float>(lanes == LANES ? load_vector<int32_t>(from) : load_some<int32_t>(from, lanes));
  }
  const int16_t *from = static_cast<const int16_t *>(sums) + index;
  return convert<float>(convert<int32_t>(lanes == LANES ? load_vector<int16_t>(from) : load_some<int16_t>(from, lanes)));
}

static inline void add_to(float *total, const Floats &more, int lanes) {
  store(total, 0, FLOAT32, lanes, load(total, 0, FLOAT32, lanes) + more);
}

// Asks for what the same place of the next group reads (WRITE: or writes): the order of the loops has steps of a row,
// which the processor does not foresee.
template <int WRITE = 0> static inline void ahead(const void *at, int64_t index, int64_t channels, Kind kind) {
  const int64_t bytes = kind == FLOAT32 ? 4 : 2;
  // a number and not a pointer, which may not leave its array; into the second cache
  const uintptr_t there = reinterpret_cast<uintptr_t>(at) + uintptr_t((index + GROUP * channels) * bytes);
  __builtin_prefetch(reinterpret_cast<const void *>(there), WRITE, 2);
}

// Up to GROUP rows of one channel vector; the sums' rows are counted from another place than the maps'.
struct Place {
  int64_t row, sums_row, filter;
  int rows, lanes;
};

#include "training_tail.h"
#include "training_winograd.h"

template <bool ANY> static void statistics_vector(const Statistics &given, const Place &p) {
  const Statistics s = given;
  const int lanes = ANY ? p.lanes : LANES;
  const Kind kind = ANY ? s.y_kind : FLOAT32;
  const Floats centre = vector_of(s.centre, p.filter, lanes), slope = vector_of(s.slope, p.filter, lanes);
  const Floats constant = vector_of(s.constant, p.filter, lanes);
  for (int r = 0; r < p.rows; r++) {
    const int64_t at = (p.row + r) * s.filters + p.filter;
    const Floats d = load_sums(s.sums, s.sums_kind, at, lanes) - centre;
    store(s.y, at, kind, lanes, load(s.sums_grad, at, FLOAT32, lanes) + constant + d * slope);
  }
}

// How many rows make one vector of LANES numbers, where that is a whole number above 1; else 1.
static inline int64_t joined(int64_t filters) { return filters < LANES && LANES % filters == 0 ? LANES / filters : 1; }

static void statistics(const Statistics &s, int64_t row0, int64_t row1);

// Rows of few filters, `together` of them as one row.
static void statistics_joined(const Statistics &s, int64_t row0, int64_t row1, int64_t together) {
  float vectors[3][LANES];
  for (int l = 0; l < LANES; l++) {
    const int64_t filter = l % s.filters;
    vectors[0][l] = s.centre[filter], vectors[1][l] = s.constant[filter], vectors[2][l] = s.slope[filter];
  }
  Statistics wide = s;
  wide.filters = LANES, wide.centre = vectors[0], wide.constant = vectors[1], wide.slope = vectors[2];
  statistics(wide, row0 / together, row1 / together);
}

static void statistics(const Statistics &s, int64_t row0, int64_t row1) {
  const int64_t together = joined(s.filters);
  if (together > 1 && row0 % together == 0) {
    const int64_t whole = row1 / together * together;
    statistics_joined(s, row0, whole, together);
    row0 = whole;
  }
  for (int64_t row = row0; row < row1; row += GROUP) {
    const int rows = row1 - row < GROUP ? int(row1 - row) : GROUP;
    for (int64_t filter = 0; filter < s.filters; filter += LANES) {
      const int lanes = s.filters - filter < LANES ? int(s.filters - filter) : LANES;
      const bool any = lanes < LANES || s.y_kind != FLOAT32;
      (any ? statistics_vector<true> : statistics_vector<false>)(s, Place{row, row, filter, rows, lanes});
    }
  }
}

// All bits where the bit of a channel is 1, for the channels from `channel` on of a row of packed words.
static inline Ints spread_bits(const uint32_t *words, int64_t channel, int64_t size, int64_t group_words, int lanes) {
  static const int32_t lane_bit[LANES] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
  const int64_t within = channel % size;
  uint32_t bits = 0;
  if (within % LANES == 0 && within + lanes <= size) {
    bits = words[channel / size * group_words + within / 32] >> within % 32;
  } else {
    for (int l = 0; l < lanes; l++) {
      const int64_t at = (channel + l) % size;
      bits |= (words[(channel + l) / size * group_words + at / 32] >> at % 32 & 1) << l;
    }
  }
  return ((Ints{} + int32_t(bits & 0xFFFF)) & load_vector<int32_t>(lane_bit)) != Ints{};
}

template <Rule RULE, bool ANY> static void estimator_vector(const Estimator &given, const Place &p, float *total) {
  const Estimator e = given;
  const int lanes = ANY ? p.lanes : LANES, rows = ANY ? p.rows : GROUP;
  const Kind grad_kind = ANY ? e.grad_kind : FLOAT32, x_kind = ANY ? e.x_kind : FLOAT32;
  const Kind onto_kind = ANY ? e.onto_kind : FLOAT32, y_kind = ANY ? e.y_kind : FLOAT32;
  const int64_t channel = p.filter;
  const Floats shift = vector_of(e.shift, channel, lanes), clip = zeros() + e.clip;
  Floats sum = zeros();
  for (int r = 0; r < rows; r++) {
    const int64_t at = (p.row + r) * e.channels + channel;
    ahead(e.grad, at, e.channels, grad_kind);
    if (RULE == CLIP || RULE == POLY2) ahead(e.x, at, e.channels, x_kind);
    if (e.onto) ahead(e.onto, at, e.channels, onto_kind);
    Floats g = load(e.grad, at, grad_kind, lanes);
    if (RULE == CLIP) {
      const Floats a = magnitude(load(e.x, at, x_kind, lanes) + shift);
      g = as<Floats>(as<Words>(g) & as<Words>(clip >= a));
    } else if (RULE == POLY2) {
      const Floats a = magnitude(load(e.x, at, x_kind, lanes) + shift);
      const Floats slope = (zeros() + 2.0f) - a * 2.0f;
      g = g * choose(slope < zeros(), zeros(), slope); // a NaN stays one
    } else if (RULE == MASKED) {
      const uint32_t *words = e.mask + (p.row + r) * e.groups * e.words;
      g = as<Floats>(as<Words>(g) & as<Words>(spread_bits(words, channel, e.channels / e.groups, e.words, lanes)));
    }
    sum = sum + g;
    if (e.onto) g = g + load(e.onto, at, onto_kind, lanes);
    store(e.y, at, y_kind, lanes, g);
  }
  add_to(total + channel, sum, lanes);
}

using EstimatorLoop = void (*)(const Estimator &, const Place &, float *);

static void estimator(const Estimator &e, int64_t row0, int64_t row1, double *total, float *few) {
  static const EstimatorLoop loops[][2] = {
      {estimator_vector<IDENTITY, false>, estimator_vector<IDENTITY, true>},
      {estimator_vector<CLIP, false>, estimator_vector<CLIP, true>},
      {estimator_vector<POLY2, false>, estimator_vector<POLY2, true>},
      {estimator_vector<MASKED, false>, estimator_vector<MASKED, true>}};
  const bool reads_x = e.rule == CLIP || e.rule == POLY2;
  const bool narrow = e.grad_kind != FLOAT32 || (reads_x && e.x_kind != FLOAT32) ||
                      (e.onto && e.onto_kind != FLOAT32) || e.y_kind != FLOAT32;
  std::memset(few, 0, e.channels * sizeof(float));
  for (int64_t row = row0; row < row1; row += GROUP) {
    const int rows = row1 - row < GROUP ? int(row1 - row) : GROUP;
    for (int64_t channel = 0; channel < e.channels; channel += LANES) {
      const int lanes = e.channels - channel < LANES ? int(e.channels - channel) : LANES;
      const bool any = narrow || rows < GROUP || lanes < LANES;
      loops[e.rule][any](e, Place{row, row, channel, rows, lanes}, few);
    }
    if (total && ((row + GROUP - row0) % FLUSH == 0 || row + GROUP >= row1)) flush(few, e.channels, total);
  }
}

static inline Floats plus_minus_one(const Ints &positive) {
  return as<Floats>((~as<Words>(positive) & 0x80000000u) | 0x3F800000u);
}

static void signs(const Signs &given, int64_t row0, int64_t row1) {
  const Signs s = given;
  for (int64_t row = row0; row < row1; row++)
    for (int64_t channel = 0; channel < s.channels; channel += LANES) {
      const int lanes = s.channels - channel < LANES ? int(s.channels - channel) : LANES;
      const int64_t at = row * s.channels + channel;
      Ints positive;
      if (s.x)
        positive = load(s.x, at, s.x_kind, lanes) + vector_of(s.shift, channel, lanes) >= 0.0f;
      else
        positive = spread_bits(s.bits + row * s.groups * s.words, channel, s.channels / s.groups, s.words, lanes);
      store(s.y, at, s.y_kind, lanes, plus_minus_one(positive));
    }
}

static void moments(const void *sums, SumsKind kind, int64_t filters, int64_t largest, int64_t row0, int64_t row1,
                    int64_t *total, int64_t *squares) {
  const int64_t square = largest * largest, most = 0x7FFFFFFF; // of an int32
  const int64_t fit = square ? most / square : most, few = fit < 128 ? fit : 128;
  const int64_t together = joined(filters);
  if (together > 1 && row0 % together == 0 && row1 - row0 > together) {
    int64_t wide[2][LANES] = {};
    const int64_t whole = row1 / together * together;
    moments(sums, kind, LANES, largest, row0 / together, row1 / together, wide[0], wide[1]);
    for (int l = 0; l < LANES; l++) total[l % filters] += wide[0][l], squares[l % filters] += wide[1][l];
    row0 = whole;
  }
  for (int64_t start = row0; start < row1; start += few) {
    const int64_t end = row1 - start < few ? row1 : start + few;
    for (int64_t filter = 0; filter < filters; filter += LANES) {
      const int lanes = filters - filter < LANES ? int(filters - filter) : LANES;
      Ints sum{}, squared{};
      for (int64_t row = start; row < end; row++) {
        const int64_t at = row * filters + filter;
        Ints s;
        if (kind == INT32) {
          const int32_t *from = static_cast<const int32_t *>(sums) + at;
          s = lanes == LANES ? load_vector<int32_t>(from) : load_some<int32_t>(from, lanes);
        } else {
          const int16_t *from = static_cast<const int16_t *>(sums) + at;
          s = convert<int32_t>(lanes == LANES ? load_vector<int16_t>(from) : load_some<int16_t>(from, lanes));
        }
        sum = sum + s, squared = squared + s * s;
      }
      int32_t both[2][LANES];
      std::memcpy(both[0], &sum, sizeof(sum)), std::memcpy(both[1], &squared, sizeof(squared));
      for (int l = 0; l < lanes; l++) total[filter + l] += both[0][l], squares[filter + l] += both[1][l];
    }
  }
}

} // namespace ISA
} // namespace esbnn
