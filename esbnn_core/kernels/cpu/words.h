// For paths whose tiles read activations and weights as they are stored, a word of 16 filters at a time (included inside
// namespace esbnn::ISA, before the tiles).
using Unit = uint32_t;
using Weight = uint32_t;
constexpr int UNITS = 1, TILE_BLOCKS = 2, PIXEL_STEP = 1;
constexpr int64_t WEIGHT_STEP = LANES;

struct Seen {
  const Unit *units;
  int64_t row0, column0, width;
};

static int64_t block_step(const Conv &c) { return c.taps() * c.words * LANES; }

static int64_t needed_units(const Conv &c) { return c.words; }

static const Weight *weights_of(const Conv &c, int64_t block) { return c.lanes + block * block_step(c); }

template <typename Use> static bool each_part(const Conv &c, const Task &t, const Use &use) {
  use(t, Seen{c.activations + t.image * c.padded_h * c.padded_w * c.groups * c.words, 0, 0, c.padded_w});
  return true;
}
