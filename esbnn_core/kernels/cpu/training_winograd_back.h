// From tiles back to the gradient of the input, through the sign's estimator (struct Winograd of training.h);
// training_winograd.h includes this.
#pragma once

// B t B' of the tile at `from`.
template <int STRIDE, int N>
static inline void pixels_of(const float *from, int64_t apart, Part (&to)[N][N]) {
  Part half[N][N]; // B t
  ESBNN_UNROLL
  for (int j = 0; j < N; j++) {
    Part t[N], pixels[N];
    ESBNN_UNROLL
    for (int i = 0; i < N; i++) t[i] = read_part(from + (N * i + j) * apart);
    Side<STRIDE>::to_pixels(t, pixels);
    ESBNN_UNROLL
    for (int i = 0; i < N; i++) half[i][j] = pixels[i];
  }
  ESBNN_UNROLL
  for (int i = 0; i < N; i++) Side<STRIDE>::to_pixels(half[i], to[i]);
}

// A gradient of the input at its place, with a rule through the estimator, as struct Estimator has it.
static inline void write_pixel(const Winograd &w, int64_t at, const Part &shift, Part g, Part &total) {
  if (w.rule > IDENTITY) {
    const Part a = magnitude_of(read_part(w.x + at) + shift);
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
    if (w.onto) g = g + read_part(w.onto + at);
  }
  write_part(w.map + at, g);
}

// A column of tiles, which begins in the row of pixels `y`. One behind the last is what that adds to the pixels on its
// right, one `below` the last row what that adds to the pixels there. A silent one writes nothing.
struct Column {
  int64_t row, column, y;
  bool below, silent;
};

// right: (numbers of a side, overlap, channels), what a tile adds to the next one; carry: (overlap, columns of pixels,
// channels), what a row of tiles adds to the next one.
template <int STRIDE>
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
  each_vector(w, c.row, c.column, [&](int64_t channel, int64_t place) {
    const Part shift = w.shift ? read_part(w.shift + channel) : Part{};
    Part tile[N][N] = {}, total{};
    if (tiled) pixels_of<STRIDE, N>(w.tiles + place, w.apart, tile);
    // the tile and what the one on its left has added
    const auto sum = [&](int i, int j) {
      return j < OVERLAP ? read_part(right + (i * OVERLAP + j) * apart + channel) + tile[i][j] : tile[i][j];
    };
    ESBNN_UNROLL
    for (int j = 0; j < MOVE; j++) {
      if (j >= columns) continue;
      ESBNN_UNROLL
      for (int i = 0; i < MOVE; i++) {
        if (i >= rows) continue;
        float *const above = waiting + (i * w.pixel_columns() + j) * apart + channel;
        Part g{};
        if (i < OVERLAP) g = read_part(above);
        if (!c.below) {
          g = g + sum(i, j);
          if (i < OVERLAP) write_part(above, sum(i + MOVE, j));
        }
        if (there[i][j])
          write_pixel(w, pixel + (i * w.width + j) * w.channels + channel, shift, g, total);
      }
    }
    if (tiled)
      ESBNN_UNROLL
      for (int i = 0; i < N; i++)
        ESBNN_UNROLL
        for (int j = 0; j < OVERLAP; j++)
          write_part(right + (i * OVERLAP + j) * apart + channel, tile[i][MOVE + j]);
    if (w.rule >= IDENTITY) write_part(sums + channel, read_part(sums + channel) + total);
  });
}

// The pixels of tiles overlap. A block that begins within an image makes what the row above adds once more.
template <int STRIDE>
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
      column_to_x<STRIDE>(w, {row, column, top, false, silent}, right, carry, sums);
    if (within == w.tile_rows - 1 && !silent)
      for (int64_t column = 0; column <= w.tile_columns; column++)
        column_to_x<STRIDE>(w, {row, column, top + S::MOVE, true, false}, right, carry, sums);
  }
  if (row1 == w.last) std::memcpy(w.carry_out, carry, carry_bytes);
}
