// The steps of struct Winograd (training.h) for one instruction set; training_body.h includes this.
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

#define ESBNN_UNROLL _Pragma("GCC unroll 5")

// Calls, since inlined at every place they take most of the time of a compilation.
__attribute__((noinline)) static Part read_some(const float *from, int64_t lanes) {
  Part to{};
  std::memcpy(&to, from, size_t(lanes) * sizeof(float));
  return to;
}

__attribute__((noinline)) static void write_some(float *to, const Part &from, int64_t lanes) {
  std::memcpy(to, &from, size_t(lanes) * sizeof(float));
}

// WHOLE: all vectors are, which keeps them in registers.
template <bool WHOLE> static inline Part read_part(const float *from, int64_t lanes) {
  if (!WHOLE && lanes < WIDE) return read_some(from, lanes);
  Part to;
  std::memcpy(&to, from, sizeof(to));
  return to;
}

template <bool WHOLE> static inline void write_part(float *to, const Part &from, int64_t lanes) {
  if (!WHOLE && lanes < WIDE)
    write_some(to, from, lanes);
  else
    std::memcpy(to, &from, sizeof(from));
}

static inline IntPart bits_of(const Part &from) { return as<IntPart>(from); }

// +-1, as plus_minus_one
static inline Part sign_of(const Part &from) {
  const IntPart positive = from >= 0.0f;
  return as<Part>((~positive & INT32_MIN) | 0x3F800000);
}

static inline Part magnitude_of(const Part &from) { return as<Part>(bits_of(from) & INT32_MAX); }

// Calls loop(channel, lanes, place) for each vector of a tile's channels; its numbers are at `place` + i * apart.
template <typename Loop> static inline void each_vector(const Winograd &w, int64_t row, int64_t column, const Loop &loop) {
  const int64_t size = w.channels / w.groups, tile = (row - w.first) * w.tile_columns + column;
  for (int64_t group = 0; group < w.groups; group++)
    for (int64_t at = 0; at < size; at += WIDE)
      loop(group * size + at, size - at, group * w.numbers() * w.apart + tile * size + at);
}

// Of sign(map + shift) where there is a shift.
template <int STRIDE, bool WHOLE> static void x_to_tiles(const Winograd &given, int64_t row0, int64_t row1, float *) {
  using S = Side<STRIDE>;
  constexpr int N = S::NUMBERS;
  const Winograd w = given;
  const Part outside = Part{} + w.pad_value;
  for (int64_t row = row0; row < row1; row++) {
    const float *image = w.map + row / w.tile_rows * w.height * w.width * w.channels;
    const int64_t top = S::MOVE * (row % w.tile_rows) - w.padding_rows;
    for (int64_t column = 0; column < w.tile_columns; column++) {
      const int64_t left = S::MOVE * column - w.padding_columns;
      const bool inside = top >= 0 && left >= 0 && top + N <= w.height && left + N <= w.width;
      each_vector(w, row, column, [&](int64_t channel, int64_t lanes, int64_t place) {
        const Part shift = w.shift ? read_part<WHOLE>(w.shift + channel, lanes) : Part{};
        Part half[N][N]; // B' d
        ESBNN_UNROLL
        for (int j = 0; j < N; j++) {
          Part d[N], numbers[N];
          ESBNN_UNROLL
          for (int i = 0; i < N; i++) {
            const int64_t y = top + i, x = left + j;
            d[i] = outside;
            if (inside || (y >= 0 && x >= 0 && y < w.height && x < w.width)) {
              d[i] = read_part<WHOLE>(image + (y * w.width + x) * w.channels + channel, lanes);
              if (w.shift) d[i] = sign_of(d[i] + shift);
            }
          }
          S::of_pixels(d, numbers);
          ESBNN_UNROLL
          for (int i = 0; i < N; i++) half[i][j] = numbers[i];
        }
        ESBNN_UNROLL
        for (int i = 0; i < N; i++) {
          Part numbers[N];
          S::of_pixels(half[i], numbers);
          ESBNN_UNROLL
          for (int j = 0; j < N; j++) write_part<WHOLE>(w.tiles + place + (N * i + j) * w.apart, numbers[j], lanes);
        }
      });
    }
  }
}

template <int STRIDE, bool WHOLE> static void grad_to_tiles(const Winograd &given, int64_t row0, int64_t row1, float *) {
  using S = Side<STRIDE>;
  constexpr int N = S::NUMBERS;
  const Winograd w = given;
  for (int64_t row = row0; row < row1; row++) {
    const int64_t y = 2 * (row % w.tile_rows);
    const float *rows = w.map + (row / w.tile_rows * w.height + y) * w.width * w.channels;
    const bool lower = y + 1 < w.height;
    for (int64_t column = 0; column < w.tile_columns; column++) {
      const bool right = 2 * column + 1 < w.width;
      each_vector(w, row, column, [&](int64_t channel, int64_t lanes, int64_t place) {
        const float *from = rows + 2 * column * w.channels + channel;
        Part g[2][2] = {}, half[N][2]; // A g
        g[0][0] = read_part<WHOLE>(from, lanes);
        if (right) g[0][1] = read_part<WHOLE>(from + w.channels, lanes);
        if (lower) g[1][0] = read_part<WHOLE>(from + w.width * w.channels, lanes);
        if (lower && right) g[1][1] = read_part<WHOLE>(from + (w.width + 1) * w.channels, lanes);
        ESBNN_UNROLL
        for (int j = 0; j < 2; j++) {
          Part numbers[N];
          S::of_grad(g[0][j], g[1][j], numbers);
          ESBNN_UNROLL
          for (int i = 0; i < N; i++) half[i][j] = numbers[i];
        }
        ESBNN_UNROLL
        for (int i = 0; i < N; i++) {
          Part numbers[N];
          S::of_grad(half[i][0], half[i][1], numbers);
          ESBNN_UNROLL
          for (int j = 0; j < N; j++) write_part<WHOLE>(w.tiles + place + (N * i + j) * w.apart, numbers[j], lanes);
        }
      });
    }
  }
}

// B t B' of the tile at `from`.
template <int STRIDE, bool WHOLE, int N>
static inline void pixels_of(const float *from, int64_t apart, int64_t lanes, Part (&to)[N][N]) {
  Part half[N][N]; // B t
  ESBNN_UNROLL
  for (int j = 0; j < N; j++) {
    Part t[N], pixels[N];
    ESBNN_UNROLL
    for (int i = 0; i < N; i++) t[i] = read_part<WHOLE>(from + (N * i + j) * apart, lanes);
    Side<STRIDE>::to_pixels(t, pixels);
    ESBNN_UNROLL
    for (int i = 0; i < N; i++) half[i][j] = pixels[i];
  }
  ESBNN_UNROLL
  for (int i = 0; i < N; i++) Side<STRIDE>::to_pixels(half[i], to[i]);
}

// A gradient of the input at its place, with a rule through the estimator, as struct Estimator has it.
template <bool WHOLE>
static inline void write_pixel(const Winograd &w, int64_t at, int64_t lanes, const Part &shift, Part g, Part &total) {
  if (w.rule > IDENTITY) {
    const Part a = magnitude_of(read_part<WHOLE>(w.x + at, lanes) + shift);
    if (w.rule == CLIP) {
      const IntPart inside = Part{} + w.clip >= a;
      g = as<Part>(bits_of(g) & inside);
    } else {
      const Part slope = (Part{} + 2.0f) - a * 2.0f;
      g = g * (slope < 0.0f ? Part{} : slope); // a NaN stays one
    }
  }
  if (w.rule >= IDENTITY) {
    total += g;
    if (w.onto) g = g + read_part<WHOLE>(w.onto + at, lanes);
  }
  write_part<WHOLE>(w.map + at, g, lanes);
}

// A column of tiles, which begins in the row of pixels `y`. One behind the last is what that adds to the pixels on its
// right, one `below` the last row what that adds to the pixels there. A silent one writes nothing.
struct Column {
  int64_t row, column, y;
  bool below, silent;
};

// right: (numbers of a side, overlap, channels), what a tile adds to the next one; carry: (overlap, columns of pixels,
// channels), what a row of tiles adds to the next one.
template <int STRIDE, bool WHOLE>
static inline void column_to_x(const Winograd &w, const Column &c, float *right, float *carry, float *sums) {
  using S = Side<STRIDE>;
  constexpr int N = S::NUMBERS, MOVE = S::MOVE, OVERLAP = S::OVERLAP;
  const bool tiled = c.column < w.tile_columns && !c.below;
  const int rows = c.below ? OVERLAP : MOVE, columns = c.column < w.tile_columns ? MOVE : OVERLAP;
  const int64_t x = MOVE * c.column - w.padding_columns, apart = w.pixel_floats();
  const int64_t image = c.row / w.tile_rows * w.height * w.width * w.channels;
  const int64_t pixel = image + (c.y * w.width + x) * w.channels;
  float *const waiting = carry + MOVE * c.column * apart;
  bool there[MOVE][MOVE];
  for (int i = 0; i < MOVE; i++)
    for (int j = 0; j < MOVE; j++)
      there[i][j] = !c.silent && c.y + i >= 0 && c.y + i < w.height && x + j >= 0 && x + j < w.width;
  each_vector(w, c.row, c.column, [&](int64_t channel, int64_t lanes, int64_t place) {
    const Part shift = w.shift ? read_part<WHOLE>(w.shift + channel, lanes) : Part{};
    Part tile[N][N] = {}, total{};
    if (tiled) pixels_of<STRIDE, WHOLE, N>(w.tiles + place, w.apart, lanes, tile);
    // the tile and what the one on its left has added
    const auto sum = [&](int i, int j) {
      return j < OVERLAP ? read_part<WHOLE>(right + (i * OVERLAP + j) * apart + channel, lanes) + tile[i][j] : tile[i][j];
    };
    ESBNN_UNROLL
    for (int j = 0; j < MOVE; j++) {
      if (j >= columns) continue;
      ESBNN_UNROLL
      for (int i = 0; i < MOVE; i++) {
        if (i >= rows) continue;
        float *const above = waiting + (i * w.pixel_columns() + j) * apart + channel;
        Part g{};
        if (i < OVERLAP) g = read_part<WHOLE>(above, lanes);
        if (!c.below) {
          g = g + sum(i, j);
          if (i < OVERLAP) write_part<WHOLE>(above, sum(i + MOVE, j), lanes);
        }
        if (there[i][j])
          write_pixel<WHOLE>(w, pixel + (i * w.width + j) * w.channels + channel, lanes, shift, g, total);
      }
    }
    if (tiled)
      ESBNN_UNROLL
      for (int i = 0; i < N; i++)
        ESBNN_UNROLL
        for (int j = 0; j < OVERLAP; j++)
          write_part<WHOLE>(right + (i * OVERLAP + j) * apart + channel, tile[i][MOVE + j], lanes);
    if (w.rule >= IDENTITY) write_part<WHOLE>(sums + channel, read_part<WHOLE>(sums + channel, lanes) + total, lanes);
  });
}

// The pixels of tiles overlap. A block that begins within an image makes what the row above adds once more.
template <int STRIDE, bool WHOLE>
static void tiles_to_x(const Winograd &given, int64_t row0, int64_t row1, float *scratch) {
  using S = Side<STRIDE>;
  const Winograd w = given;
  const size_t right_floats = S::NUMBERS * S::OVERLAP * w.pixel_floats(), carry_bytes = w.carry_floats() * sizeof(float);
  float *const right = scratch, *const carry = right + right_floats, *const nowhere = carry + w.carry_floats();
  const bool begun = row0 > w.first && row0 % w.tile_rows;
  if (row0 == w.first) std::memcpy(carry, w.carry_in, carry_bytes);
  for (int64_t row = row0 - begun; row < row1; row++) {
    const bool silent = row < row0;
    const int64_t within = row % w.tile_rows, top = S::MOVE * within - w.padding_rows;
    float *const sums = silent || w.rule < IDENTITY ? nowhere : w.sums + (row - w.first) * w.channels;
    if (silent || within == 0) std::memset(carry, 0, carry_bytes);
    std::memset(right, 0, right_floats * sizeof(float));
    if (w.rule >= IDENTITY) std::memset(sums, 0, w.channels * sizeof(float));
    for (int64_t column = 0; column <= w.tile_columns; column++)
      column_to_x<STRIDE, WHOLE>(w, {row, column, top, false, silent}, right, carry, sums);
    if (within == w.tile_rows - 1 && !silent)
      for (int64_t column = 0; column <= w.tile_columns; column++)
        column_to_x<STRIDE, WHOLE>(w, {row, column, top + S::MOVE, true, false}, right, carry, sums);
  }
  if (row1 == w.last) std::memcpy(w.carry_out, carry, carry_bytes);
}

// For weights the "tiles" are the filters of a group, and the map has 3x3 taps for each.
static inline int64_t weight_tile(const Winograd &w, int64_t filter) {
  return filter / w.tile_rows * w.numbers() * w.apart + filter % w.tile_rows * w.channels;
}

template <int STRIDE, bool WHOLE> static void weight_to_tiles(const Winograd &given, int64_t filter0, int64_t filter1, float *) {
  constexpr int N = Side<STRIDE>::NUMBERS;
  const Winograd w = given;
  for (int64_t filter = filter0; filter < filter1; filter++)
    for (int64_t at = 0; at < w.channels; at += WIDE) {
      const int64_t lanes = w.channels - at;
      Part half[N][3]; // G k
      ESBNN_UNROLL
      for (int j = 0; j < 3; j++) {
        Part k[3], numbers[N];
        ESBNN_UNROLL
        for (int i = 0; i < 3; i++) k[i] = read_part<WHOLE>(w.map + (filter * 9 + 3 * i + j) * w.channels + at, lanes);
        Side<STRIDE>::of_taps(k, numbers);
        ESBNN_UNROLL
        for (int i = 0; i < N; i++) half[i][j] = numbers[i];
      }
      float *to = w.tiles + weight_tile(w, filter) + at;
      ESBNN_UNROLL
      for (int i = 0; i < N; i++) {
        Part numbers[N];
        Side<STRIDE>::of_taps(half[i], numbers);
        ESBNN_UNROLL
        for (int j = 0; j < N; j++) write_part<WHOLE>(to + (N * i + j) * w.apart, numbers[j], lanes);
      }
    }
}

template <int STRIDE, bool WHOLE> static void tiles_to_weight(const Winograd &given, int64_t filter0, int64_t filter1, float *) {
  constexpr int N = Side<STRIDE>::NUMBERS;
  const Winograd w = given;
  for (int64_t filter = filter0; filter < filter1; filter++)
    for (int64_t at = 0; at < w.channels; at += WIDE) {
      const int64_t lanes = w.channels - at;
      const float *from = w.tiles + weight_tile(w, filter) + at;
      Part half[3][N]; // G' t
      ESBNN_UNROLL
      for (int j = 0; j < N; j++) {
        Part t[N], taps[3];
        ESBNN_UNROLL
        for (int i = 0; i < N; i++) t[i] = read_part<WHOLE>(from + (N * i + j) * w.apart, lanes);
        Side<STRIDE>::to_taps(t, taps);
        ESBNN_UNROLL
        for (int i = 0; i < 3; i++) half[i][j] = taps[i];
      }
      ESBNN_UNROLL
      for (int i = 0; i < 3; i++) {
        Part taps[3];
        Side<STRIDE>::to_taps(half[i], taps);
        ESBNN_UNROLL
        for (int j = 0; j < 3; j++) write_part<WHOLE>(w.map + (filter * 9 + 3 * i + j) * w.channels + at, taps[j], lanes);
      }
    }
}

// Each by its stride and by whether a group's channels fill their vectors.
#define ESBNN_CHOICE(NAME, STEP, CHANNELS) \
  static void NAME(const Winograd &w, int64_t row0, int64_t row1, float *scratch) { \
    const bool whole = (CHANNELS) % WIDE == 0; \
    (w.stride == 1 ? whole ? STEP<1, true> : STEP<1, false> : whole ? STEP<2, true> : STEP<2, false>)(w, row0, row1, scratch); \
  }
ESBNN_CHOICE(x_to_tiles, x_to_tiles, w.channels / w.groups)
ESBNN_CHOICE(grad_to_tiles, grad_to_tiles, w.channels / w.groups)
ESBNN_CHOICE(tiles_to_x, tiles_to_x, w.channels / w.groups)
ESBNN_CHOICE(weight_to_tiles, weight_to_tiles, w.channels)
ESBNN_CHOICE(tiles_to_weight, tiles_to_weight, w.channels)
#undef ESBNN_CHOICE
#undef ESBNN_UNROLL
