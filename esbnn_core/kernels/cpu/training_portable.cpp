// Training on bits in plain C++, for processors without the other instruction sets; on Arm the compiler makes NEON of it.
#define ISA training_portable
#include "training_body.h"

const esbnn::Training esbnn::portable_training = {
    esbnn::ISA::forward,   esbnn::ISA::backward, esbnn::ISA::statistics,
    esbnn::ISA::estimator, esbnn::ISA::signs,    esbnn::ISA::moments,
    {esbnn::ISA::x_to_tiles, esbnn::ISA::grad_to_tiles, esbnn::ISA::tiles_to_x, esbnn::ISA::weight_to_tiles,
     esbnn::ISA::tiles_to_weight}};
