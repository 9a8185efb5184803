// bf16 lane on AMX-BF16. Contract: bf16.h.
//
// TDPBF16PS multiplies 16 rows x 32 k by 32 k x 16 columns in 16 cycles, so tiles and sizes in bytes are those of the s8 lane
// (amx_tiles.h): with block_k = 256 and block_rows = 128 the strip of B (2 panels x 256 k) and the block of C (128 rows x 32 columns) take
// 16 KiB of L1 each, while the panels of A stream from L2. Not tuned on a machine with AMX yet.
#include <immintrin.h>

#include "gossamer/bf16.h"

#define GOSSAMER_TILE_PRODUCT _tile_dpbf16ps
#include "../amx_tiles.h"

namespace gossamer {
extern const Bf16Kernels bf16_amx;
const Bf16Kernels bf16_amx = {Isa::amx, 128, 256, run<Bf16Block>, begin, end};
}  // namespace gossamer
