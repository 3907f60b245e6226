// The steps of struct Winograd (training.h) for one instruction set; training_body.h includes this.
#pragma once

using Part = Floats::Part;
constexpr int WIDE = LANES / PARTS;

// WHOLE: all vectors are, which keeps them in registers.
template <bool WHOLE> static inline Part read_part(const float *from, int64_t lanes) {
  Part to{};
  if (WHOLE || lanes >= WIDE)
    std::memcpy(&to, from, sizeof(to));
  else
    for (int64_t l = 0; l < lanes; l++) to[l] = from[l];
  return to;
}

template <bool WHOLE> static inline void write_part(float *to, const Part &from, int64_t lanes) {
  if (WHOLE || lanes >= WIDE)
    std::memcpy(to, &from, sizeof(from));
  else
    for (int64_t l = 0; l < lanes; l++) to[l] = from[l];
}

// Calls loop(channel, lanes, place) for each vector of a tile's channels; its 16 numbers are at `place` + i * apart.
template <typename Loop> static inline void each_vector(const Winograd &w, int64_t row, int64_t column, const Loop &loop) {
  const int64_t size = w.channels / w.groups, tile = (row - w.first) * w.tile_columns + column;
  for (int64_t group = 0; group < w.groups; group++)
    for (int64_t at = 0; at < size; at += WIDE)
      loop(group * size + at, size - at, group * 16 * w.apart + tile * size + at);
}

using IntPart = Ints::Part;

static inline IntPart bits_of(const Part &from) { return as<IntPart>(from); }

// +-1, as plus_minus_one
static inline Part sign_of(const Part &from) {
  const IntPart positive = from >= 0.0f;
  return as<Part>((~positive & INT32_MIN) | 0x3F800000);
}

static inline Part magnitude_of(const Part &from) { return as<Part>(bits_of(from) & INT32_MAX); }

// SIGNED: of sign(map + shift).
template <bool WHOLE, bool SIGNED> static void x_to_tiles(const Winograd &given, int64_t row0, int64_t row1, float *) {
  const Winograd w = given;
  const Part outside = Part{} + w.pad_value;
  for (int64_t row = row0; row < row1; row++) {
    const float *image = w.map + row / w.tile_rows * w.height * w.width * w.channels;
    const int64_t top = 2 * (row % w.tile_rows) - w.padding_rows;
    for (int64_t column = 0; column < w.tile_columns; column++) {
      const int64_t left = 2 * column - w.padding_columns;
      const bool inside = top >= 0 && left >= 0 && top + 4 <= w.height && left + 4 <= w.width;
      each_vector(w, row, column, [&](int64_t channel, int64_t lanes, int64_t place) {
        const Part shift = SIGNED ? read_part<WHOLE>(w.shift + channel, lanes) : Part{};
        Part half[4][4]; // B' d
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
          Part d[4];
#pragma GCC unroll 4
          for (int i = 0; i < 4; i++) {
            const int64_t y = top + i, x = left + j;
            d[i] = outside;
            if (inside || (y >= 0 && x >= 0 && y < w.height && x < w.width)) {
              d[i] = read_part<WHOLE>(image + (y * w.width + x) * w.channels + channel, lanes);
              if (SIGNED) d[i] = sign_of(d[i] + shift);
            }
          }
          half[0][j] = d[0] - d[2], half[1][j] = d[1] + d[2], half[2][j] = d[2] - d[1], half[3][j] = d[1] - d[3];
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
          const Part *h = half[i];
          const Part numbers[4] = {h[0] - h[2], h[1] + h[2], h[2] - h[1], h[1] - h[3]};
#pragma GCC unroll 4
          for (int j = 0; j < 4; j++) write_part<WHOLE>(w.tiles + place + (4 * i + j) * w.apart, numbers[j], lanes);
        }
      });
    }
  }
}

template <bool WHOLE> static void grad_to_tiles(const Winograd &given, int64_t row0, int64_t row1, float *) {
  const Winograd w = given;
  for (int64_t row = row0; row < row1; row++) {
    const int64_t y = 2 * (row % w.tile_rows);
    const float *rows = w.map + (row / w.tile_rows * w.height + y) * w.width * w.channels;
    const bool lower = y + 1 < w.height;
    for (int64_t column = 0; column < w.tile_columns; column++) {
      const bool right = 2 * column + 1 < w.width;
      each_vector(w, row, column, [&](int64_t channel, int64_t lanes, int64_t place) {
        const float *from = rows + 2 * column * w.channels + channel;
        Part g[2][2] = {};
        g[0][0] = read_part<WHOLE>(from, lanes);
        if (right) g[0][1] = read_part<WHOLE>(from + w.channels, lanes);
        if (lower) g[1][0] = read_part<WHOLE>(from + w.width * w.channels, lanes);
        if (lower && right) g[1][1] = read_part<WHOLE>(from + (w.width + 1) * w.channels, lanes);
        const Part half[4][2] = {{g[0][0], g[0][1]},
                                 {g[0][0] + g[1][0], g[0][1] + g[1][1]},
                                 {g[0][0] - g[1][0], g[0][1] - g[1][1]},
                                 {-g[1][0], -g[1][1]}}; // A g
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
          const Part *h = half[i];
          const Part numbers[4] = {h[0], h[0] + h[1], h[0] - h[1], -h[1]};
#pragma GCC unroll 4
          for (int j = 0; j < 4; j++) write_part<WHOLE>(w.tiles + place + (4 * i + j) * w.apart, numbers[j], lanes);
        }
      });
    }
  }
}

// B t B' of the tile at `from`.
template <bool WHOLE> static inline void pixels_of(const float *from, int64_t apart, int64_t lanes, Part (&to)[4][4]) {
  Part half[4][4]; // B t
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    Part t[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) t[i] = read_part<WHOLE>(from + (4 * i + j) * apart, lanes);
    half[0][j] = t[0], half[1][j] = t[1] - t[2] + t[3], half[2][j] = t[1] + t[2] - t[0], half[3][j] = -t[3];
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const Part *h = half[i];
    to[i][0] = h[0], to[i][1] = h[1] - h[2] + h[3], to[i][2] = h[1] + h[2] - h[0], to[i][3] = -h[3];
  }
}

constexpr int BARE = -1; // in place of a Rule

// A gradient of the input at its place, with a RULE through the estimator, as struct Estimator has it.
template <bool WHOLE, int RULE>
static inline void write_pixel(const Winograd &w, int64_t at, int64_t lanes, const Part &shift, Part g, Part &total) {
  if (RULE == CLIP || RULE == POLY2) {
    const Part a = magnitude_of(read_part<WHOLE>(w.x + at, lanes) + shift);
    if (RULE == CLIP) {
      const IntPart inside = Part{} + w.clip >= a;
      g = as<Part>(bits_of(g) & inside);
    } else {
      const Part slope = (Part{} + 2.0f) - a * 2.0f;
      g = g * (slope < 0.0f ? Part{} : slope); // a NaN stays one
    }
  }
  if (RULE != BARE) {
    total += g;
    if (w.onto) g = g + read_part<WHOLE>(w.onto + at, lanes);
  }
  write_part<WHOLE>(w.map + at, g, lanes);
}

// One column of tiles, or, without `tiled`, what is left over behind the last one, or, with `last`, below it. there: which of
// its two by two pixels from `y` on are of the map, so that they are written. right: (4, 2, channels), what a tile adds
// to the next one; carry: (2, columns of pixels, channels), what a row of tiles adds to the next one.
struct Column {
  int64_t row, column, y;
  bool tiled, last, silent;
};

template <bool WHOLE, int RULE>
static inline void column_to_x(const Winograd &w, const Column &c, float *right, float *carry, float *sums) {
  const int64_t x = 2 * c.column - w.padding_columns, apart = w.pixel_floats();
  const int64_t image = c.row / w.tile_rows * w.height * w.width * w.channels;
  const int64_t pixel = image + (c.y * w.width + x) * w.channels;
  float *const waiting = carry + 2 * c.column * apart;
  bool there[2][2];
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 2; j++)
      there[i][j] = !c.silent && c.y + i >= 0 && c.y + i < w.height && x + j >= 0 && x + j < w.width;
  each_vector(w, c.row, c.column, [&](int64_t channel, int64_t lanes, int64_t place) {
    const Part shift = RULE == BARE ? Part{} : read_part<WHOLE>(w.shift + channel, lanes);
    Part tile[4][4] = {}, total{};
    if (c.tiled) pixels_of<WHOLE>(w.tiles + place, w.apart, lanes, tile);
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++)
#pragma GCC unroll 2
      for (int i = 0; i < 2; i++) {
        float *const upper = right + (2 * i + j) * apart + channel, *const lower = upper + 4 * apart;
        float *const from_above = waiting + (i * w.pixel_columns() + j) * apart + channel;
        Part g = read_part<WHOLE>(from_above, lanes);
        if (!c.last) {
          g += read_part<WHOLE>(upper, lanes) + tile[i][j];
          write_part<WHOLE>(from_above, read_part<WHOLE>(lower, lanes) + tile[i + 2][j], lanes);
          write_part<WHOLE>(upper, tile[i][j + 2], lanes);
          write_part<WHOLE>(lower, tile[i + 2][j + 2], lanes);
        }
        if (there[i][j])
          write_pixel<WHOLE, RULE>(w, pixel + (i * w.width + j) * w.channels + channel, lanes, shift, g, total);
      }
    if (RULE != BARE) write_part<WHOLE>(sums + channel, read_part<WHOLE>(sums + channel, lanes) + total, lanes);
  });
}

// Tiles of 4x4 pixels overlap by two. A block that begins within an image makes what the row above adds once more.
template <bool WHOLE, int RULE> static void tiles_to_x(const Winograd &given, int64_t row0, int64_t row1, float *scratch) {
  const Winograd w = given;
  float *const right = scratch, *const carry = right + 8 * w.pixel_floats(), *const nowhere = carry + w.carry_floats();
  const size_t carry_bytes = w.carry_floats() * sizeof(float);
  const bool begun = row0 > w.first && row0 % w.tile_rows;
  if (row0 == w.first) std::memcpy(carry, w.carry_in, carry_bytes);
  for (int64_t row = row0 - begun; row < row1; row++) {
    const bool silent = row < row0;
    const int64_t within = row % w.tile_rows, top = 2 * within - w.padding_rows;
    float *const sums = RULE == BARE || silent ? nowhere : w.sums + (row - w.first) * w.channels;
    if (silent || within == 0) std::memset(carry, 0, carry_bytes);
    std::memset(right, 0, 8 * w.pixel_floats() * sizeof(float));
    if (RULE != BARE) std::memset(sums, 0, w.channels * sizeof(float));
    for (int64_t column = 0; column <= w.tile_columns; column++)
      column_to_x<WHOLE, RULE>(w, {row, column, top, column < w.tile_columns, false, silent}, right, carry, sums);
    if (within == w.tile_rows - 1 && !silent)
      for (int64_t column = 0; column <= w.tile_columns; column++)
        column_to_x<WHOLE, RULE>(w, {row, column, top + 2, false, true, false}, right, carry, sums);
  }
  if (row1 == w.last) std::memcpy(w.carry_out, carry, carry_bytes);
}

// For weights the "tiles" are the filters of a group, and the map has 3x3 taps for each.
static inline int64_t weight_tile(const Winograd &w, int64_t filter) {
  return filter / w.tile_rows * 16 * w.apart + filter % w.tile_rows * w.channels;
}

template <bool WHOLE> static void weight_to_tiles(const Winograd &given, int64_t filter0, int64_t filter1, float *) {
  const Winograd w = given;
  for (int64_t filter = filter0; filter < filter1; filter++)
    for (int64_t at = 0; at < w.channels; at += WIDE) {
      const int64_t lanes = w.channels - at;
      Part half[4][3]; // G k
#pragma GCC unroll 4
      for (int j = 0; j < 3; j++) {
        Part k[3];
#pragma GCC unroll 4
        for (int i = 0; i < 3; i++) k[i] = read_part<WHOLE>(w.map + (filter * 9 + 3 * i + j) * w.channels + at, lanes);
        const Part ends = (k[0] + k[2]) * 0.5f, middle = k[1] * 0.5f;
        half[0][j] = k[0], half[1][j] = ends + middle, half[2][j] = ends - middle, half[3][j] = k[2];
      }
      float *to = w.tiles + weight_tile(w, filter) + at;
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        const Part *h = half[i], ends = (h[0] + h[2]) * 0.5f, middle = h[1] * 0.5f;
        const Part numbers[4] = {h[0], ends + middle, ends - middle, h[2]};
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) write_part<WHOLE>(to + (4 * i + j) * w.apart, numbers[j], lanes);
      }
    }
}

template <bool WHOLE> static void tiles_to_weight(const Winograd &given, int64_t filter0, int64_t filter1, float *) {
  const Winograd w = given;
  for (int64_t filter = filter0; filter < filter1; filter++)
    for (int64_t at = 0; at < w.channels; at += WIDE) {
      const int64_t lanes = w.channels - at;
      const float *from = w.tiles + weight_tile(w, filter) + at;
      Part half[3][4]; // G' t
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        Part t[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) t[i] = read_part<WHOLE>(from + (4 * i + j) * w.apart, lanes);
        const Part inner = (t[1] + t[2]) * 0.5f;
        half[0][j] = t[0] + inner, half[1][j] = (t[1] - t[2]) * 0.5f, half[2][j] = inner + t[3];
      }
#pragma GCC unroll 4
      for (int i = 0; i < 3; i++) {
        const Part *h = half[i], inner = (h[1] + h[2]) * 0.5f;
        const Part taps[3] = {h[0] + inner, (h[1] - h[2]) * 0.5f, inner + h[3]};
#pragma GCC unroll 4
        for (int j = 0; j < 3; j++) write_part<WHOLE>(w.map + (filter * 9 + 3 * i + j) * w.channels + at, taps[j], lanes);
      }
    }
}

// Each by whether a group's channels fill their vectors.
template <bool WHOLE> static void signs_to_tiles(const Winograd &w, int64_t row0, int64_t row1, float *scratch) {
  (w.shift ? x_to_tiles<WHOLE, true> : x_to_tiles<WHOLE, false>)(w, row0, row1, scratch);
}

template <bool WHOLE> static void tiles_through(const Winograd &w, int64_t row0, int64_t row1, float *scratch) {
  const auto loop = w.rule == BARE       ? tiles_to_x<WHOLE, BARE>
                    : w.rule == IDENTITY ? tiles_to_x<WHOLE, IDENTITY>
                    : w.rule == CLIP     ? tiles_to_x<WHOLE, CLIP>
                                         : tiles_to_x<WHOLE, POLY2>;
  loop(w, row0, row1, scratch);
}

#define ESBNN_EITHER(NAME, STEP, CHANNELS) \
  static void NAME(const Winograd &w, int64_t row0, int64_t row1, float *scratch) { \
    ((CHANNELS) % WIDE ? STEP<false> : STEP<true>)(w, row0, row1, scratch); \
  }
ESBNN_EITHER(x_to_tiles, signs_to_tiles, w.channels / w.groups)
ESBNN_EITHER(grad_to_tiles, grad_to_tiles, w.channels / w.groups)
ESBNN_EITHER(tiles_to_x, tiles_through, w.channels / w.groups)
ESBNN_EITHER(weight_to_tiles, weight_to_tiles, w.channels)
ESBNN_EITHER(tiles_to_weight, tiles_to_weight, w.channels)
#undef ESBNN_EITHER
