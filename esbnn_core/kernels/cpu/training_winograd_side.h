// Winograd's transforms of one side of a tile, and vectors of its channels, for one instruction set (struct Winograd of
// training.h); training_winograd.h includes this.
#pragma once

using Part = Floats::Part;
using IntPart = Ints::Part;
constexpr int WIDE = LANES / PARTS;

// The transforms of one side of a tile, of 4 numbers at stride 1: pixels d to B' d, gradients g to A g, numbers t to
// pixels B t, taps k to G k, numbers to taps G' t.
template <int STRIDE> struct Side {
  static constexpr int NUMBERS = 4, MOVE = 2, OVERLAP = 2; // MOVE: pixels from tile to tile
  static inline void of_pixels(const Part (&d)[4], Part (&to)[4]) {
    to[0] = d[0] - d[2], to[1] = d[1] + d[2], to[2] = d[2] - d[1], to[3] = d[1] - d[3];
  }
  static inline void of_grad(const Part &g0, const Part &g1, Part (&to)[4]) {
    to[0] = g0, to[1] = g0 + g1, to[2] = g0 - g1, to[3] = -g1;
  }
  static inline void to_pixels(const Part (&t)[4], Part (&to)[4]) {
    to[0] = t[0], to[1] = t[1] - t[2] + t[3], to[2] = t[1] + t[2] - t[0], to[3] = -t[3];
  }
  static inline void of_taps(const Part (&k)[3], Part (&to)[4]) {
    const Part ends = (k[0] + k[2]) * 0.5f, middle = k[1] * 0.5f;
    to[0] = k[0], to[1] = ends + middle, to[2] = ends - middle, to[3] = k[2];
  }
  static inline void to_taps(const Part (&t)[4], Part (&to)[3]) {
    const Part inner = (t[1] + t[2]) * 0.5f;
    to[0] = t[0] + inner, to[1] = (t[1] - t[2]) * 0.5f, to[2] = inner + t[3];
  }
};

// Of stride 2: every second pixel sees taps 0 and 2, by three products for two gradients, those between see tap 1.
template <> struct Side<2> {
  static constexpr int NUMBERS = 5, MOVE = 4, OVERLAP = 1;
  static inline void of_pixels(const Part (&d)[5], Part (&to)[5]) {
    to[0] = d[0] - d[2], to[1] = d[2], to[2] = d[2] - d[4], to[3] = d[1], to[4] = d[3];
  }
  static inline void of_grad(const Part &g0, const Part &g1, Part (&to)[5]) {
    to[0] = g0, to[1] = g0 + g1, to[2] = -g1, to[3] = g0, to[4] = g1;
  }
  static inline void to_pixels(const Part (&t)[5], Part (&to)[5]) {
    to[0] = t[0], to[1] = t[3], to[2] = t[1] - t[0] + t[2], to[3] = t[4], to[4] = -t[2];
  }
  static inline void of_taps(const Part (&k)[3], Part (&to)[5]) {
    to[0] = k[0], to[1] = k[0] + k[2], to[2] = k[2], to[3] = to[4] = k[1];
  }
  static inline void to_taps(const Part (&t)[5], Part (&to)[3]) {
    to[0] = t[0] + t[1], to[1] = t[3] + t[4], to[2] = t[1] + t[2];
  }
};

static inline Part read_part(const float *from) {
  Part to;
  std::memcpy(&to, from, sizeof(to));
  return to;
}

static inline void write_part(float *to, const Part &from) { std::memcpy(to, &from, sizeof(from)); }

static inline IntPart bits_of(const Part &from) { return as<IntPart>(from); }

// +-1, as plus_minus_one
static inline Part sign_of(const Part &from) {
  const IntPart positive = from >= 0.0f;
  return as<Part>((~positive & INT32_MIN) | 0x3F800000);
}

static inline Part magnitude_of(const Part &from) { return as<Part>(bits_of(from) & INT32_MAX); }

// Calls loop(channel, place) for each vector of a tile's channels; its numbers are at `place` + i * apart.
template <typename Loop> static inline void each_vector(const Winograd &w, int64_t row, int64_t column, const Loop &loop) {
  const int64_t size = w.channels / w.groups, tile = (row - w.first) * w.tile_columns + column;
  for (int64_t group = 0; group < w.groups; group++)
    for (int64_t at = 0; at < size; at += WIDE)
      loop(group * size + at, group * w.numbers() * w.apart + tile * size + at);
}

#define ESBNN_UNROLL _Pragma("GCC unroll 5")
