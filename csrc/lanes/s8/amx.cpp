// s8 lane on AMX-INT8. Contract: s8.h.
//
// TDPBUSD multiplies 16 x 64 bytes by 64 x 16 bytes in 16 cycles; amx_tiles.h walks the tiles. block_k = 512 and block_rows = 128: the
// strip of B (2 panels x 512 k) and the block of C (128 rows x 32 columns) take 16 KiB of L1 each, while the panels of A, contiguous,
// stream from L2 (128 rows x 4096 k are 512 KiB). These sizes follow from the caches; they have not been tuned on a machine with AMX yet.
#include <immintrin.h>

#include "gossamer/s8.h"

#define GOSSAMER_TILE_PRODUCT _tile_dpbusd
#include "../amx_tiles.h"

namespace gossamer {
extern const S8Kernels s8_amx;
const S8Kernels s8_amx = {{Isa::amx, 128, 512, run<S8Block>, begin, end}, nullptr};
}  // namespace gossamer
