// Training on bits with AVX-512.
#define ISA training_avx512
#include "training_body.h"

const esbnn::Training esbnn::avx512_training = {
    esbnn::ISA::forward,   esbnn::ISA::backward, esbnn::ISA::statistics,
    esbnn::ISA::estimator, esbnn::ISA::signs,    esbnn::ISA::moments,
    {esbnn::ISA::x_to_tiles, esbnn::ISA::grad_to_tiles, esbnn::ISA::tiles_to_x, esbnn::ISA::weight_to_tiles,
     esbnn::ISA::tiles_to_weight}};
