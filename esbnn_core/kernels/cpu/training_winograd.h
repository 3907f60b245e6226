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
template <typename Loop> static inline void each_vector(const Winograd &w, int64_t tile, const Loop &loop) {
  const int64_t size = w.channels / w.groups;
  for (int64_t group = 0; group < w.groups; group++)
    for (int64_t at = 0; at < size; at += WIDE)
      loop(group * size + at, size - at, group * 16 * w.apart + tile * size + at);
}

template <bool WHOLE> static void x_to_tiles(const Winograd &given, int64_t row0, int64_t row1) {
  const Winograd w = given;
  const Part outside = Part{} + w.pad_value;
  for (int64_t row = row0; row < row1; row++) {
    const float *image = w.map + row / w.tile_rows * w.height * w.width * w.channels;
    const int64_t top = 2 * (row % w.tile_rows) - w.padding_rows;
    for (int64_t column = 0; column < w.tile_columns; column++) {
      const int64_t left = 2 * column - w.padding_columns;
      const bool inside = top >= 0 && left >= 0 && top + 4 <= w.height && left + 4 <= w.width;
      each_vector(w, row * w.tile_columns + column, [&](int64_t channel, int64_t lanes, int64_t place) {
        Part half[4][4]; // B' d
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
          Part d[4];
#pragma GCC unroll 4
          for (int i = 0; i < 4; i++) {
            const int64_t y = top + i, x = left + j;
            const bool here = inside || (y >= 0 && x >= 0 && y < w.height && x < w.width);
            d[i] = here ? read_part<WHOLE>(image + (y * w.width + x) * w.channels + channel, lanes) : outside;
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

template <bool WHOLE> static void grad_to_tiles(const Winograd &given, int64_t row0, int64_t row1) {
  const Winograd w = given;
  for (int64_t row = row0; row < row1; row++) {
    const int64_t y = 2 * (row % w.tile_rows);
    const float *rows = w.map + (row / w.tile_rows * w.height + y) * w.width * w.channels;
    const bool lower = y + 1 < w.height;
    for (int64_t column = 0; column < w.tile_columns; column++) {
      const bool right = 2 * column + 1 < w.width;
      each_vector(w, row * w.tile_columns + column, [&](int64_t channel, int64_t lanes, int64_t place) {
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

// Adds two rows of B t B', the upper ones or the lower ones, of the tile at `from`.
template <bool UPPER, bool WHOLE>
static inline void add_half_tile(const float *from, int64_t apart, int64_t lanes, Part (&sum)[2][4]) {
  Part half[2][4]; // two rows of B t
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    Part t[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) t[i] = read_part<WHOLE>(from + (4 * i + j) * apart, lanes);
    half[0][j] = UPPER ? t[0] : t[1] + t[2] - t[0];
    half[1][j] = UPPER ? t[1] - t[2] + t[3] : -t[3];
  }
#pragma GCC unroll 4
  for (int i = 0; i < 2; i++) {
    const Part *h = half[i];
    sum[i][0] += h[0];
    sum[i][1] += h[1] - h[2] + h[3];
    sum[i][2] += h[1] + h[2] - h[0];
    sum[i][3] -= h[3];
  }
}

// A pair of rows of pixels is the upper half of one row of tiles and the lower half of the row above, so an image has
// one pair more than rows of tiles.
template <bool WHOLE> static void tiles_to_x(const Winograd &given, int64_t pair0, int64_t pair1) {
  const Winograd w = given;
  const int64_t size = w.channels / w.groups, above = w.tile_columns * size;
  for (int64_t pair = pair0; pair < pair1; pair++) {
    const int64_t image = pair / (w.tile_rows + 1), row = pair % (w.tile_rows + 1), top = 2 * row - w.padding_rows;
    float *const map = w.map + image * w.height * w.width * w.channels;
    const bool there[2] = {top >= 0 && top < w.height, top + 1 >= 0 && top + 1 < w.height};
    each_vector(w, (image * w.tile_rows + row) * w.tile_columns, [&](int64_t channel, int64_t lanes, int64_t place) {
      const float *from = w.tiles + place;
      Part sum[2][4] = {}; // columns 0 and 1 are whole, 2 and 3 wait for the next tile
      for (int64_t column = 0; column <= w.tile_columns; column++, from += size) {
        if (column < w.tile_columns && row < w.tile_rows) add_half_tile<true, WHOLE>(from, w.apart, lanes, sum);
        if (column < w.tile_columns && row > 0) add_half_tile<false, WHOLE>(from - above, w.apart, lanes, sum);
#pragma GCC unroll 4
        for (int j = 0; j < 2; j++) {
          const int64_t x = 2 * column - w.padding_columns + j;
#pragma GCC unroll 4
          for (int i = 0; i < 2; i++) {
            if (there[i] && x >= 0 && x < w.width)
              write_part<WHOLE>(map + ((top + i) * w.width + x) * w.channels + channel, sum[i][j], lanes);
            sum[i][j] = sum[i][j + 2], sum[i][j + 2] = Part{};
          }
        }
      }
    });
  }
}

// For weights the "tiles" are the filters of a group, and the map has 3x3 taps for each.
static inline int64_t weight_tile(const Winograd &w, int64_t filter) {
  return filter / w.tile_rows * 16 * w.apart + filter % w.tile_rows * w.channels;
}

template <bool WHOLE> static void weight_to_tiles(const Winograd &given, int64_t filter0, int64_t filter1) {
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

template <bool WHOLE> static void tiles_to_weight(const Winograd &given, int64_t filter0, int64_t filter1) {
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
#define ESBNN_EITHER(STEP, CHANNELS) \
  static void STEP(const Winograd &w, int64_t row0, int64_t row1) { \
    ((CHANNELS) % WIDE ? STEP<false> : STEP<true>)(w, row0, row1); \
  }
ESBNN_EITHER(x_to_tiles, w.channels / w.groups)
ESBNN_EITHER(grad_to_tiles, w.channels / w.groups)
ESBNN_EITHER(tiles_to_x, w.channels / w.groups)
ESBNN_EITHER(weight_to_tiles, w.channels)
ESBNN_EITHER(tiles_to_weight, w.channels)
#undef ESBNN_EITHER
